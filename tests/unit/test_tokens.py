"""Bearer tokens: what is stored of one, whose it is, and when it holds no longer; and the verb that makes it."""

from __future__ import annotations

import json
import sys
import tomllib
from datetime import date
from pathlib import Path

import aiohttp
import pytest

from faas.cli.main import main
from faas.config import HttpConfig, TenantConfig, TokenConfig, load_file
from faas.gateway.bearer import bearer
from faas.gateway.routes import Call, Route
from faas.gateway.server import Gateway
from faas.security.tokens import Tokens, digest_of, new_token

TODAY = date(2026, 11, 24)


def acme(token: str, **more: object) -> TenantConfig:
    return TenantConfig(name="acme", token=(TokenConfig(sha256=digest_of(token), **more),))  # type: ignore[arg-type]


def test_a_token_names_its_tenant_and_its_scopes() -> None:
    """All that a door has to know."""
    token = new_token("acme")
    principal = Tokens([acme(token, scopes=("read",), name="ci")]).principal(token, today=TODAY)

    assert principal is not None
    assert (principal.tenant, principal.name) == ("acme", "ci")
    assert (principal.may("read"), principal.may("invoke")) == (True, False)
    assert (principal.speaks_for("acme"), principal.speaks_for("other")) == (True, False)


def test_an_admin_may_what_the_others_may() -> None:
    """One token is enough for whoever may everything."""
    token = new_token("acme")
    principal = Tokens([acme(token, scopes=("admin",))]).principal(token, today=TODAY)

    assert principal is not None
    assert principal.may("invoke")


@pytest.mark.parametrize("presented", ["", "faas_acme_x", "\udcff", "x" * 10_000])
def test_what_nobody_was_given_is_nobodys_token(presented: str) -> None:
    """Whatever a stranger sends is an answer, and no error."""
    assert Tokens([acme(new_token("acme"))]).principal(presented, today=TODAY) is None


def test_the_digest_that_is_stored_is_no_token() -> None:
    """Whoever reads faas.toml gets in nowhere."""
    token = new_token("acme")

    assert Tokens([acme(token)]).principal(digest_of(token), today=TODAY) is None


def test_a_token_holds_until_the_day_before_it_expires() -> None:
    """The day that is written is the first without it."""
    token = new_token("acme")
    tokens = Tokens([acme(token, expires=TODAY)])

    assert tokens.principal(token, today=date(2026, 11, 23)) is not None
    assert tokens.principal(token, today=TODAY) is None


def test_no_two_tokens_are_the_same() -> None:
    """And each says whose it is, so that one that leaked can be ended."""
    first, second = new_token("acme"), new_token("acme")

    assert first != second
    assert first.startswith("faas_acme_")


# ---------------------------------------------------------------- the door


async def _answers(token: str, *headers: dict[str, str]) -> list[tuple[int, str]]:
    """(status, code or text) of a request with each of the headers, at a route that wants the scope `invoke`."""

    async def handle(call: Call) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=f"{call.tenant()} {call.principal.name}")

    async with Gateway.open("127.0.0.1", 0, HttpConfig(), waiting=list) as gateway, aiohttp.ClientSession(gateway.url) as http:
        gateway.identify = bearer(Tokens([acme(token)]))
        gateway.add([Route("POST", "/do/{tenant}", handle, "invoke"), Route("POST", "/see/{tenant}", handle, "admin")])
        found = []
        for sent in headers:
            path = sent.pop("path", "/do/acme")
            async with http.post(path, headers=sent) as answer:
                found.append(
                    (answer.status, (await answer.json(content_type=None))["code"] if answer.status != 200 else await answer.text())
                )
        return found


async def test_a_door_lets_in_the_tenant_of_the_token_and_nobody_else() -> None:
    """Without a token, with a wrong one, at another tenant's path, and beyond its scopes."""
    token = new_token("acme")
    own = {"Authorization": f"Bearer {token}"}

    answers = await _answers(
        token,
        dict(own),
        {"Authorization": f"bearer  {token}"},
        {},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer faas_acme_guess"},
        {**own, "path": "/do/other"},
        {**own, "path": "/see/acme"},
    )

    assert answers == [
        (200, "acme "),
        (200, "acme "),
        (401, "unauthorized"),
        (401, "unauthorized"),
        (401, "unauthorized"),
        (401, "invalid_token"),
        (403, "forbidden"),
        (403, "forbidden"),
    ]


# ---------------------------------------------------------------- the verb


def faas(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a line."""
    monkeypatch.setattr(sys, "argv", ["faas", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_new_token_is_let_in_by_the_lines_that_are_printed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copy and paste is all that a person has to do."""
    assert faas(monkeypatch, "token", "new", "acme", "--scope", "invoke", "--name", 'a "ci"', "--expires", "2999-01-31") == 0
    token, _, lines = capsys.readouterr().out.partition("\n")
    (tmp_path / "faas.toml").write_text(f'[[tenant]]\nname = "acme"\n{lines}')
    parsed = load_file(tmp_path / "faas.toml", {})
    principal = Tokens(parsed.tenant).principal(token, today=TODAY)

    assert principal is not None
    assert (principal.tenant, principal.name, sorted(principal.scopes)) == ("acme", 'a "ci"', ["invoke"])
    assert parsed.tenant[0].token[0].expires == date(2999, 1, 31)
    assert token not in lines
    assert tomllib.loads(lines)


def test_a_new_token_as_json_has_all_that_a_program_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that provisions tenants writes the file itself."""
    assert faas(monkeypatch, "token", "new", "acme", "--json") == 0
    made = json.loads(capsys.readouterr().out)

    assert digest_of(made["token"]) == made["sha256"]
    assert (made["tenant"], made["scopes"], made["expires"]) == ("acme", ["invoke", "read"], None)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["Acme"], "no tenant's name"),
        (["acme", "--scope", "write"], "use invoke, read or admin"),
        (["acme", "--expires", "soon"], "write a day"),
        (["acme", "--expires", "2020-01-01"], "never hold"),
        (["acme", "--expires", "999999999d"], "write a day"),
        (["acme", "--name", "a\nb"], "--name"),
    ],
)
def test_what_makes_no_token_is_said_in_one_line(
    arguments: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing that looks like a token is printed."""
    assert faas(monkeypatch, "token", "new", *arguments) == 2
    said = capsys.readouterr()

    assert word in said.err
    assert said.out == ""
