"""Webhooks as functions declare them: what can be meant, what cannot, and functions that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import folder, only_error, read, without_line

from faas.bus.cover import cover, filters
from faas.model import FunctionSpec, FunctionVersion
from faas.registry.hooks import contradictions, hooks_of
from faas.registry.registry import Registration, Revision
from faas.triggers import Trigger
from faas.units import Size


@pytest.mark.parametrize("scheme", ["standard", "github", "stripe", "slack", "hmac-sha256", "token"])
def test_a_webhook_has_a_name_a_scheme_and_a_secret(tmp_path: Path, scheme: str) -> None:
    """All that the contract knows."""
    folder(tmp_path, "fn", f'[[trigger]]\nwebhook = "orders"\nverify = "{scheme}"\nsecret = "orders_secret"')
    functions, invalid = read(tmp_path)

    assert invalid == []
    (trigger,) = functions[0].spec.triggers
    assert (trigger.webhook, trigger.verify, trigger.secret) == ("orders", scheme, "orders_secret")


def test_a_webhook_that_is_not_verified_says_so_in_words(tmp_path: Path) -> None:
    """It is never what is left when something was forgotten."""
    folder(tmp_path, "fn", '[[trigger]]\nwebhook = "open"\nverify = "none"')

    assert read(tmp_path)[0][0].spec.triggers[0].verify == "none"


HOOK = '[[trigger]]\nwebhook = "a"\nverify = "github"\nsecret = "s"\n'


@pytest.mark.parametrize(
    ("spec", "key", "word"),
    [
        ('[[trigger]]\nwebhook = "a"\nsecret = "s"', "trigger[0].verify", "standard, github, stripe, slack, hmac-sha256, token, none"),
        ('[[trigger]]\nwebhook = "a"', "trigger[0].verify", "lets anybody send"),
        ('[[trigger]]\nwebhook = "a"\nverify = "md5"\nsecret = "s"', "trigger[0].verify", "hmac-sha256"),
        ('[[trigger]]\nwebhook = "a"\nverify = "github"', "trigger[0].secret", "a_secret"),
        ('[[trigger]]\nwebhook = "a"\nverify = "none"\nsecret = "s"', "trigger[0].secret", "no effect"),
        ('[[trigger]]\nverify = "github"\nsecret = "s"', "trigger[0].webhook", "is missing"),
        ('[[trigger]]\nsecret = "s"\nsubject = "a.b"', "trigger[0].webhook", "is missing"),
        (f'{HOOK}subject = "a.b"', "trigger[0].subject", "each"),
        (f'{HOOK}stream = "ORDERS"', "trigger[0].stream", "each"),
        (f'{HOOK}delivery = "at-most-once"', "trigger[0].delivery", "stored"),
        (f"{HOOK}{HOOK}", "trigger[1].webhook", "already"),
        ('[[trigger]]\nwebhook = "a.b"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "*"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = ">"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "a/b"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "A"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "a\\n"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "' + "a" * 64 + '"\nverify = "none"', "trigger[0].webhook", "at most 63"),
        ('[[trigger]]\nwebhook = "a"\nverify = "github"\nsecret = "../s"', "trigger[0].secret", "no name of a secret"),
        ('[[trigger]]\nwebhook = "a"\nverify = "github"\nsecret = "' + "s" * 64 + '"', "trigger[0].secret", "at most 63"),
    ],
)
def test_what_cannot_be_names_the_key_and_what_would_be_right(tmp_path: Path, spec: str, key: str, word: str) -> None:
    """A webhook that is not what its author meant is open, or closed, and he hears of it from somebody else."""
    folder(tmp_path, "fn", spec)
    error = only_error(tmp_path)

    assert without_line(error).startswith(f"fn/function.toml: {key}"), error
    assert word in error


def spec(name: str, *triggers: Trigger, tenant: str = "default", payload_bytes: int = 1000) -> FunctionSpec:
    from faas.model import Limits

    return FunctionSpec(name=name, tenant=tenant, triggers=triggers, limits=Limits(payload_bytes=Size(payload_bytes)))


def hook(name: str, verify: str = "github", secret: str = "s") -> Trigger:
    return Trigger(webhook=name, verify=verify, secret=secret)  # type: ignore[arg-type]


def test_the_stream_takes_each_webhook_exactly_and_its_functions_share_it() -> None:
    """Never faas.hook.>: a cover that is wider than what is served acknowledges what nobody takes."""
    one, two = spec("one", hook("a"), hook("b")), spec("two", hook("a"), Trigger(subject="x.y"))

    assert cover([one, two]).subjects == [
        "x.y", "faas.submit.default.one", "faas.hook.default.a", "faas.hook.default.b", "faas.submit.default.two",
    ]  # fmt: skip
    assert filters(two) == ["faas.due.default.two", "faas.hook.default.a", "faas.submit.default.two", "x.y"]


def version(of: FunctionSpec) -> FunctionVersion:
    return FunctionVersion(spec=of, version="1", files=())


def test_a_webhook_knows_its_functions_and_the_most_that_one_of_them_takes() -> None:
    """One delivery is an invocation for each of them; a body that none of them takes is not read."""
    served = [spec("two", hook("a"), payload_bytes=5000), spec("one", hook("a")), spec("one", hook("a"), tenant="other")]
    found = hooks_of([version(one) for one in served])

    assert set(found) == {("default", "a"), ("other", "a")}
    assert found["default", "a"].functions == ("one", "two")
    assert found["default", "a"].payload_bytes == 5000
    assert found["other", "a"].functions == ("one",)


def registered(name: str, *history: tuple[str, Trigger], tenant: str = "default", withdrawn: bool = False) -> Registration:
    revisions = tuple(
        Revision(version=at, bundle="b", size_bytes=1, runtime="standard", triggers=(trigger,), by="me", at=at) for at, trigger in history
    )
    return Registration(tenant=tenant, name=name, version=revisions[-1].version, history=revisions, withdrawn=withdrawn)


def test_of_two_functions_that_verify_one_webhook_otherwise_the_later_one_is_wrong() -> None:
    """One subject, so the weaker word would let anybody set off the function that asked for more."""
    strict, loose = registered("strict", ("1", hook("a"))), registered("loose", ("2", hook("a", "none", "")))
    found = contradictions([loose, strict])

    assert list(found) == [("default", "loose")]
    assert 'verify = "github", secret = "s"' in found["default", "loose"]


def test_who_has_said_it_longer_stays_right_when_deployed_again() -> None:
    """Another deploy of the same words must not turn the other function out."""
    strict = registered("strict", ("1", hook("a")), ("9", hook("a")))
    loose = registered("loose", ("2", hook("a", "none", "")))

    assert list(contradictions([strict, loose])) == [("default", "loose")]


def test_who_changes_its_mind_is_the_later_one() -> None:
    """Having been first counts only for what was said first."""
    turned = registered("turned", ("1", hook("a")), ("9", hook("a", "none", "")))
    other = registered("other", ("2", hook("a")))

    assert list(contradictions([turned, other])) == [("default", "turned")]


def test_webhooks_of_other_tenants_and_of_withdrawn_functions_contradict_nothing() -> None:
    """The name is the tenant's own, and who takes nothing has no say."""
    one = registered("one", ("1", hook("a")))
    others = [registered("two", ("2", hook("a", "none", "")), tenant="t"), registered("three", ("0", hook("a", "token")), withdrawn=True)]

    assert contradictions([one, *others]) == {}
