"""What bounds a tenant: which subjects its functions may take, and where anything of it may go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from folders import PROFILES
from hypothesis import given
from hypothesis import strategies as st

from faas import admission
from faas.bus.connection import Message
from faas.config import TenantConfig
from faas.model import EventInvalid, FunctionSpec, FunctionVersion
from faas.registry.spec import read_functions
from faas.security.tenants import Tenants

ACME = TenantConfig(name="acme", subscribe=("images.>", "orders.*.paid"), publish=("acme.>",))
SILENT = TenantConfig(name="silent", subscribe=(), publish=())
LISTED = Tenants([ACME, SILENT])
HANDLER = "def handle(event):\n    return 1\n"


def read(root: Path, spec: str, tenants: Tenants = LISTED) -> str:
    """What is wrong with a function of this declaration; "" where nothing is."""
    (root / "f").mkdir()
    (root / "f" / "handler.py").write_text(HANDLER)
    (root / "f" / "function.toml").write_text(spec)
    _, invalid, _ = read_functions(root, PROFILES, tenants=tenants)
    return invalid[0].error if invalid else ""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            'tenant = "acme"\n[[trigger]]\nsubject = "videos.new"\n',
            "f/function.toml: line 3: trigger[0].subject: videos.new: the tenant acme may subscribe to images.>, orders.*.paid alone, "
            "says subscribe of its [[tenant]]",
        ),
        ('tenant = "acme"\n[[trigger]]\nsubject = "orders.>"\n', "orders.>: the tenant acme may subscribe to"),
        ('tenant = "acme"\n[[trigger]]\nsubject = "orders.*.*"\n', "orders.*.*: the tenant acme may subscribe to"),
        (
            'tenant = "acme"\n[output]\npublish = "images.small"\n',
            "f/function.toml: line 3: output.publish: images.small: the tenant acme may publish to acme.> alone",
        ),
        ('tenant = "silent"\n[output]\npublish = "images.small"\n', "the tenant silent may publish to nothing alone"),
        ('tenant = "acne"\n', "f/function.toml: line 1: tenant: no tenant acne; [[tenant]] of faas.toml lists acme, default, silent"),
    ],
)
def test_what_reaches_beyond_its_tenant_is_invalid_by_file_and_key(tmp_path: Path, spec: str, said: str) -> None:
    """Refused while events flow it would be found by whoever sends the first one."""
    assert said in read(tmp_path, spec)


@pytest.mark.parametrize(
    "spec",
    [
        'tenant = "acme"\n[[trigger]]\nsubject = "images.*.uploaded"\n[output]\npublish = "acme.out"\n',
        'tenant = "acme"\n[[trigger]]\nsubject = "orders.*.paid"\n',
        'tenant = "acme"\n[[trigger]]\nwebhook = "hook"\nverify = "none"\n',
        '[[trigger]]\nsubject = "anything.at.all"\n[output]\npublish = "more.of.it"\n',
    ],
)
def test_what_stays_within_its_tenant_is_served(tmp_path: Path, spec: str) -> None:
    """The tenant `default` exists without being listed, and what bounds no tenant bounds nothing."""
    assert read(tmp_path, spec) == ""


def test_without_any_list_every_tenant_exists(tmp_path: Path) -> None:
    """A node on its own machine needs no [[tenant]] to try a name."""
    assert read(tmp_path, 'tenant = "anyone"\n[[trigger]]\nsubject = "x.y"\n', Tenants()) == ""


def test_an_inbox_may_be_answered_and_another_tenants_subject_may_not() -> None:
    """Who can name an inbox was told it by its listener; a subject of others is known to everybody."""
    assert LISTED.not_answered("acme", "_INBOX.abc.1") == ""
    assert LISTED.not_answered("acme", "_R_.abc.1") == ""  # as the server calls the inbox of who asks from another account
    assert LISTED.not_answered("acme", "acme.replies") == ""
    assert "may publish to acme.> alone" in LISTED.not_answered("acme", "images.small")
    assert LISTED.not_answered("default", "images.small") == ""


@given(tail=st.text(alphabet="ABCDEFGJKLMNOPSTU.*>_ $abc", max_size=30), tenant=st.sampled_from(["acme", "silent", "default", "other"]))
@pytest.mark.parametrize("head", ["$JS.API.", "$JS.ACK.", "$KV.", "$O.", "$SYS.", "faas.usage.", "faas.outcome.", "faas.due.", "$"])
def test_no_answer_goes_to_the_runtime_or_to_nats_whoever_names_it(head: str, tail: str, tenant: str) -> None:
    """A node may purge a stream and write usage: a caller that made it do so by a reply subject would borrow that."""
    assert LISTED.not_answered(tenant, head + tail)


@pytest.mark.parametrize("name", ["Faas-Reply-To", "faas-chunk-to"])
def test_an_event_that_names_a_place_beyond_the_functions_tenant_is_invalid(name: str) -> None:
    """It is the function's tenant that publishes there, whoever sent the event."""
    function = FunctionVersion(spec=FunctionSpec(name="f", tenant="acme"), version="v", files=())
    message = Message("images.a", "", b"1", {name: "billing.total"})

    found = admission.of_message(message, function, answered=False, now=time.time(), tenants=LISTED)

    assert isinstance(found, EventInvalid)
    assert "'billing.total': the tenant acme may publish to acme.> alone" in found.detail
