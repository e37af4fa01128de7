"""What `faas nats-config` writes: whom the bus knows, what each may do there, and keys that stay, turn over, and are never shown."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas import seeds
from faas.cli.natsconfig import nats_config
from faas.config import TenantConfig
from faas.errors import ConfigInvalid
from faas.security.permissions import node_rights, operator_rights, tenant_rights
from faas.subjects import contains, overlaps

ACME = TenantConfig(name="acme", subscribe=("images.>",), publish=("acme.out",))
OTHER = TenantConfig(name="other", subscribe=("videos.>",), publish=("other.out",))
TENANT = tenant_rights(ACME, inbox="_INBOX_UACME")
TOML = """
[[tenant]]
name = "default"
subscribe = []
publish = []

[[tenant]]
name = "acme"
subscribe = ["images.>"]
publish = ["acme.out"]
"""


def configured(root: Path, **options: object) -> Path:
    """Type `faas nats-config` with these options; the folder that it wrote."""
    (root / "faas.toml").write_text(TOML)
    assert nats_config(config=root / "faas.toml", out=root / "nats", **options) == 0  # type: ignore[arg-type]
    return root / "nats"


def public(folder: Path, user: str) -> str:
    return seeds.public_key(seeds.read_seed(folder / f"{user}.nk"))


# ---------------------------------------------------------------- who may do what


@pytest.mark.parametrize(
    "subject",
    ["$JS.API.STREAM.DELETE.FAAS_EVENTS", "$JS.API.STREAM.MSG.GET.FAAS_OUTCOMES", "$JS.API.DIRECT.GET.FAAS_OUTCOMES", "$JS.ACK.FAAS_EVENTS.x.1",
     "$SYS.REQ.USER.INFO", "$KV.FAAS_REGISTRY.a", "$O.FAAS_PAYLOADS.C.x", "faas.usage.acme.f", "faas.outcome.acme.f.i", "faas.due.acme.f",
     "faas.retry.acme.f.i", "faas.dead.acme.f", "faas.log.acme.f.i", "faas.hook.acme.w", "faas.node.any.holds", "faas.janitor",
     "faas.submit.other.f", "faas.invoke.other.f", "faas.cancel.other.f.i", "_INBOX.x", "other.out", "images.a"],
)  # fmt: skip
def test_a_tenant_may_not_publish(subject: str) -> None:
    """Each of these is another tenant's, the runtime's, or a way around its own lists."""
    assert not any(contains(allowed, subject) for allowed in TENANT.publish)


@pytest.mark.parametrize(
    "subject",
    ["_INBOX.>", "_INBOX_UOTHER.>", "faas.outcome.other.>", "faas.log.other.>", "faas.usage.other.>", "faas.dead.other.>",
     "faas.chunk.other.>", "faas.invoke.acme.>", "faas.submit.acme.>", "videos.new", "$JS.>", "$SRV.>", "$KV.FAAS_REGISTRY.>"],
)  # fmt: skip
def test_a_tenant_may_not_listen_to(subject: str) -> None:
    """What it heard there would be another's; requests to its own functions would be answered by itself."""
    assert not any(overlaps(allowed, subject) for allowed in TENANT.subscribe)


@pytest.mark.parametrize("subject", [">", "faas.>", "faas.*.acme.>", "*.>"])
def test_a_tenant_may_not_listen_to_more_than_it_may_hear(subject: str) -> None:
    """The server refuses a subscription that reaches beyond, and narrows none."""
    assert not any(contains(allowed, subject) for allowed in TENANT.subscribe)


@pytest.mark.parametrize("subject", ["faas.submit.acme.f", "faas.invoke.acme.f", "faas.cancel.acme.f.i", "acme.out"])
def test_a_tenant_may_publish_what_is_its_own(subject: str) -> None:
    """Its functions by name, and what its list says."""
    assert any(contains(allowed, subject) for allowed in TENANT.publish)


@pytest.mark.parametrize(
    "subject",
    ["$JS.API.STREAM.DELETE.FAAS_EVENTS", "$JS.API.STREAM.CREATE.MINE", "$JS.API.STREAM.UPDATE.MINE", "$JS.API.STREAM.PURGE.FAAS_OUTCOMES",
     "$JS.API.STREAM.PURGE.FAAS_USAGE", "$JS.API.STREAM.MSG.DELETE.FAAS_OUTCOMES", "$JS.API.CONSUMER.DELETE.MINE.x", "$JS.API.ACCOUNT.PURGE.A",
     "$JS.API.META.LEADER.STEPDOWN", "$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.A.CONNECT", "faas.due.acme.f", "elsewhere.x"],
)  # fmt: skip
def test_a_node_may_not_publish(subject: str) -> None:
    """A node that is taken over can do less than the bus can: outcomes and usage cannot be deleted from it."""
    assert not any(contains(allowed, subject) for allowed in node_rights([ACME, OTHER]).publish)


def test_a_node_hears_and_says_what_its_tenants_may() -> None:
    """Its at-most-once triggers and `[output]` are theirs; a stream of theirs is read only where it was named."""
    rights = node_rights([ACME, OTHER], streams=["ORDERS"], node="gpu-1")

    assert {"images.>", "videos.>", "_INBOX_faas_node.gpu-1.>", "faas.node.gpu-1.>"} <= set(rights.subscribe)
    assert {"acme.out", "other.out", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.*"} <= set(rights.publish)
    assert not any(overlaps(allowed, "_INBOX_faas_node.gpu-2.x") for allowed in rights.subscribe)
    assert not any(contains(allowed, "$JS.API.STREAM.UPDATE.ORDERS") for allowed in rights.publish)


@pytest.mark.parametrize("rights", [node_rights([ACME, OTHER]), operator_rights([ACME, OTHER], inbox="_INBOX_UOP"), TENANT])
def test_nobody_listens_to_the_inboxes_of_all(rights: object) -> None:
    """Whoever could would read every answer on the bus."""
    assert not any(overlaps(allowed, "_INBOX.x") for allowed in rights.subscribe)  # type: ignore[attr-defined]


@given(name=st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True), other=st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True))
def test_no_name_of_a_tenant_reaches_anothers_subjects(name: str, other: str) -> None:
    """A name is a token of a subject, never a pattern."""
    rights = tenant_rights(TenantConfig(name=name, subscribe=(), publish=()), inbox="_INBOX_UX")
    if name != other:
        assert not any(overlaps(allowed, f"faas.*.{other}.>") for allowed in (*rights.publish, *rights.subscribe))


def test_each_tenant_has_an_account_into_which_its_own_rights_come(tmp_path: Path) -> None:
    """What the server itself answers stays in the account of who asked: permissions alone do not bound a reply subject."""
    accounts = re.split(r"^  \"(FAAS[^\"]*)\": \{$", (configured(tmp_path) / "faas-users.conf").read_text(), flags=re.MULTILINE)
    found = dict(zip(accounts[1::2], accounts[2::2], strict=True))

    assert set(found) == {"FAAS", "FAAS-default", "FAAS-acme"}
    assert public(tmp_path / "nats", "tenant-acme") in found["FAAS-acme"]
    assert public(tmp_path / "nats", "node") in found["FAAS"]
    assert '{ service: "faas.submit.acme.>", accounts: ["FAAS-acme"] }' in found["FAAS"]
    assert '{ service: "faas.invoke.acme.>", accounts: ["FAAS-acme"], response_threshold: "24h" }' in found["FAAS"]
    assert '{ stream: { account: FAAS, subject: "images.>" } }' in found["FAAS-acme"]
    assert "acme" not in found["FAAS-default"]


# ---------------------------------------------------------------- keys


def test_seeds_are_for_their_owner_alone_and_never_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed in a terminal is a seed in its scrollback, and in a log of whatever ran the command."""
    folder = configured(tmp_path)
    configured(tmp_path, json=True)

    said = capsys.readouterr()
    for user in ("operator", "node", "tenant-default", "tenant-acme"):
        file = folder / f"{user}.nk"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        seed = file.read_text().strip()
        assert seed not in said.out + said.err + (folder / "faas-users.conf").read_text()
        assert public(folder, user) in (folder / "faas-users.conf").read_text()


def test_a_second_time_changes_no_key(tmp_path: Path) -> None:
    """It is typed again for each new tenant; everybody else's programs go on."""
    folder = configured(tmp_path)
    before = {file.name: file.read_text() for file in folder.iterdir()}

    configured(tmp_path)

    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_a_rotation_lets_both_keys_hold_until_the_first_is_retired(tmp_path: Path) -> None:
    """A tenant's programs get the new seed one after another; meanwhile none is cut off."""
    folder = configured(tmp_path)
    first = public(folder, "tenant-acme")

    configured(tmp_path, rotate=("tenant-acme",))
    second, between = public(folder, "tenant-acme"), (folder / "faas-users.conf").read_text()
    configured(tmp_path, retire=("tenant-acme",))
    after = (folder / "faas-users.conf").read_text()

    assert first != second
    assert (first in between, second in between) == (True, True)
    assert (first in after, second in after) == (False, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotate": ("tenant-acne",)}, "--rotate tenant-acne: no such user; there are: node, operator, tenant-acme, tenant-default"),
        ({"retire": ("node",)}, "--retire node: no key of it waits to end; --rotate node gives it another one first"),
        ({"rotate": ("node", "node")}, "--rotate node: its key before still holds; first let it end with --retire node"),
        ({"rotate": ("../x",)}, "no such user"),
        ({"node": ("a.b",)}, "--node 'a.b': use letters, digits, - and _"),
        ({"stream": ("A >",)}, "--stream 'A >': use letters, digits, - and _"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path: Path, options: dict[str, object], said: str) -> None:
    """Each says what to type instead."""
    configured(tmp_path)

    with pytest.raises(ConfigInvalid) as raised:
        configured(tmp_path, **options)

    assert said in str(raised.value)


def test_nodes_and_streams_that_were_named_once_stay(tmp_path: Path) -> None:
    """Typed again for a new tenant, without them, it would cut them off."""
    folder = configured(tmp_path, node=("gpu-1",), stream=("ORDERS",))
    configured(tmp_path, node=("gpu-2",))

    said = (folder / "faas-users.conf").read_text()
    assert {"gpu-1", "gpu-2"} == {line.strip() for line in (folder / "nodes").read_text().splitlines()}
    assert public(folder, "node-gpu-1") in said
    assert public(folder, "node-gpu-2") in said
    assert "$JS.API.CONSUMER.MSG.NEXT.ORDERS.*" in said


def test_a_name_that_was_written_by_hand_becomes_no_path(tmp_path: Path) -> None:
    """It would be a seed outside the folder, and a subject of somebody else."""
    folder = configured(tmp_path)
    (folder / "nodes").write_text("../../elsewhere\n")

    with pytest.raises(ConfigInvalid, match=r"nodes '\.\./\.\./elsewhere': use letters"):
        configured(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[tenant]]\nname = "default"\npublish = []\n', "tenant[0].subscribe: is missing, and a permission has to name its subjects"),
        ('[[tenant]]\nname = "acme"\nsubscribe = []\npublish = []\n', "default is not listed, and exists all the same"),
        (
            '[[tenant]]\nname = "default"\nsubscribe = []\npublish = ["a.*.c", "a.b.*"]\n',
            "tenant[0].publish: a.*.c and a.b.* share subjects, which would come twice",
        ),
    ],
)
def test_a_tenant_without_lists_gets_no_permissions_by_guess(tmp_path: Path, text: str, said: str) -> None:
    """Its default, all but the runtime's own, is more than a permission can say, and more than anybody meant to write."""
    (tmp_path / "faas.toml").write_text(text)

    with pytest.raises(ConfigInvalid) as raised:
        nats_config(config=tmp_path / "faas.toml", out=tmp_path / "nats")

    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["", "SUA\n", "hello\n", "SAAHPQF3GOP4IP5SHKHCNBOHD5TMGSW4QQL6RTZAPEEYOQ2NRBIAKCCLQA\n", "SU" + "A" * 56])
def test_what_is_no_seed_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    """It may be a seed with one letter missing."""
    (tmp_path / "x.nk").write_text(text)

    with pytest.raises(ConfigInvalid) as raised:
        seeds.read_seed(tmp_path / "x.nk")

    assert "x.nk" in str(raised.value)
    assert text.strip() == "" or text.strip() not in str(raised.value)


def test_a_framed_seed_is_read_as_others_write_it(tmp_path: Path) -> None:
    """`nsc` and `nk` put lines around it."""
    seed = seeds.new_seed()
    (tmp_path / "x.nk").write_text(f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n")

    assert seeds.read_seed(tmp_path / "x.nk") == seed
