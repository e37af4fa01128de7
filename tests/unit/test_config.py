"""What `faas.toml` and its environment variables may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.config import load_file, node_name, parse_address
from faas.errors import ConfigInvalid

FULL = """
[node]
mounts = ["/data", "/srv/weights"]
[bus]
sync = "default"
ack_wait = "2s"
replicas = 3
max_payload = "2MiB"
outcome_retention = "2h"
max_bytes = "1GiB"
[pool]
slots = 3
[prices]
version = "2026-11"
cpu_hour = 0.04
gib_hour = 0.005
gpu_hour = { H200 = 4.0, default = 2 }
bill_loading = true
"""


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "faas.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_nothing_written_is_the_defaults_of_the_contract() -> None:
    """The embedded server syncs always; nothing costs until a table says so."""
    parsed = load_file(None, {})
    bus, pool, prices = parsed.bus, parsed.pool, parsed.prices

    assert (bus.sync, bus.ack_wait_s, bus.replicas, bus.outcome_retention_s) == ("always", 20, 1, 86_400)
    assert pool.slots_or_default >= 4
    assert (prices.cpu_hour, prices.version) == (0.0, "none")


def test_every_key_is_read(tmp_path: Path) -> None:
    """The whole of what a node may be told today."""
    parsed = load_file(write(tmp_path, FULL), {})
    bus, pool, prices = parsed.bus, parsed.pool, parsed.prices

    assert (bus.sync, bus.ack_wait_s, bus.replicas, bus.max_payload_bytes, bus.max_bytes) == ("default", 2, 3, 2**21, 2**30)
    assert parsed.node.mounts == ("/data", "/srv/weights")
    assert pool.slots_or_default == 3
    assert prices.gpu_hour == {"H200": 4.0, "default": 2.0}
    assert prices.bill_loading


def test_an_environment_variable_wins_over_the_file(tmp_path: Path) -> None:
    """One setting for one start, without editing a file."""
    environ = {"FAAS_BUS__ACK_WAIT": "5s", "FAAS_POOL__SLOTS": "7", "FAAS_NATS": "nats://ignored", "OTHER__X": "1"}
    parsed = load_file(write(tmp_path, FULL), environ)
    bus, pool = parsed.bus, parsed.pool

    assert (bus.ack_wait_s, bus.sync, pool.slots) == (5, "default", 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[buz]\n", ("buz", "bus")),
        ('[bus]\nsinc = "always"', ("bus.sinc", "did you mean sync")),
        ('[bus]\nsync = "sometimes"', ("bus.sync", "always")),
        ('[bus]\nack_wait = "1ms"', ("bus.ack_wait", "between 1s and 10m")),
        ("[bus]\nack_wait = 2", ("bus.ack_wait", '"30s"')),
        ("[bus]\nreplicas = 2", ("bus.replicas", "1, 3 or 5")),
        ("[pool]\nslots = -1", ("pool.slots", "between")),
        ("[prices]\ncpu_hour = -1.0", ("prices.cpu_hour", "between 0")),
        ("[prices]\ncpu_hour = nan", ("prices.cpu_hour", "between 0")),
        ('[prices]\nversion = ""', ("prices.version", "empty")),
        ("[pool]\nbase_image = 'x'", ("pool.base_image", "not supported yet")),
        ('[[tenant]]\nname = "A"', ("tenant[0].name", "a-z")),
        ('[[tenant]]\nname = "a"\n[[tenant]]\nname = "a"', ("tenant[1].name", "twice")),
        ('[[tenant]]\nname = "a"\npublish = ["faas.>"]', ("tenant[0].publish", "belong to the runtime")),
        ('[[tenant]]\nname = "a"\nsubscribe = ["a..b"]', ("tenant[0].subscribe", "NATS subject")),
        ('[[tenant]]\nname = "a"\npolicy = "p"', ("tenant", "policy")),
        ('[[tenant]]\nname = "a"\n[[tenant.token]]\nsha256 = "x"', ("tenant[0].token[0].sha256", "faas token new a")),
        (f'[[tenant]]\nname = "a"\n[[tenant.token]]\nsha256 = "{"0" * 64}"\nscopes = ["write"]', ("scopes", "write")),
        ('[[policy]]\nname = "a"', ("policy", "not supported yet")),
        ('[[tenant]]\nname = "a"\n[[tenant]]\nname = "b"\npolicy = "a"', ("tenant[1].policy", "not supported yet")),
        ("[secrets]\n", ("secrets.folder", "is missing")),
        ('[secrets]\nprovider = "environment"\nfolder = "x"', ("secrets.folder", "no effect")),
        ('[secrets]\nprovider = "vault"', ("secrets.provider", "environment")),
        ('[http]\nmax_body = "1B"\n', ("http.max_body", "between 1KiB and 1TiB")),
        ('[node]\nmounts = ["data"]', ("node.mounts", "absolute")),
        ('[node]\nmounts = ["/data/../etc"]', ("node.mounts", "absolute")),
        ('[node]\nmounts = "/data"', ("node.mounts", "a list")),
        ('[node]\nmount = ["/data"]', ("node.mount", "did you mean mounts")),
        ("[bus\n", ("line 1",)),
        (b"\xff\xfe", ("UTF-8",)),
        ("bus = 1", ("bus",)),
        ("a." * 1001 + "a = 1", ("dots",)),
        ("a = " + "9" * 5000, ("digits",)),
        ("a = " + "[" * 5000, ("nested",)),
        ("[prices]\ngib_hour = inf", ("prices.gib_hour", "between 0")),
        ('[bus]\nmax_bytes = "' + "9" * 400 + 'B"', ("bus.max_bytes", "count")),
    ],
)
def test_what_cannot_be_names_file_and_key(tmp_path: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    """One line is enough to mend it."""
    with pytest.raises(ConfigInvalid) as raised:
        load_file(write(tmp_path, text), {})

    said = str(raised.value)
    assert "faas.toml" in said
    assert all(word in said for word in words), said


def test_a_folder_of_secrets_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    """Else the node would find other secrets, or none, by where it was started."""
    assert load_file(write(tmp_path, '[secrets]\nfolder = "secrets"'), {}).secrets.folder == str(tmp_path / "secrets")
    assert load_file(write(tmp_path, '[secrets]\nfolder = "/run/secrets"'), {}).secrets.folder == "/run/secrets"
    assert load_file(None, {"FAAS_SECRETS__FOLDER": "secrets"}).secrets.folder == "secrets"


def test_a_variable_that_holds_a_secret_is_no_key_of_the_file() -> None:
    """That of a tenant has two underscores in it, as the variable of a key has."""
    assert load_file(None, {"FAAS_SECRET_ACME__HF_TOKEN": "x"}) == load_file(None, {})


def test_a_wrong_variable_is_named_as_such() -> None:
    """Not as a file that nobody wrote."""
    with pytest.raises(ConfigInvalid, match="FAAS_BUS__ACK_WAIT"):
        load_file(None, {"FAAS_BUS__ACK_WAIT": "soon"})
    with pytest.raises(ConfigInvalid, match="FAAS_POOL__SLOT: unknown key; did you mean slots"):
        load_file(None, {"FAAS_POOL__SLOT": "1"})


def test_a_variable_is_read_by_the_type_of_its_key() -> None:
    """A version that looks like a date or a number is text all the same."""
    environ = {"FAAS_PRICES__VERSION": "2026-11-01", "FAAS_PRICES__GPU_HOUR": "{ H200 = 4 }", "FAAS_PRICES__BILL_LOADING": "true"}
    prices = load_file(None, environ).prices

    assert (prices.version, prices.gpu_hour, prices.bill_loading) == ("2026-11-01", {"H200": 4.0}, True)


def test_a_variable_may_be_a_list() -> None:
    """As TOML writes it; one folder without brackets is told so."""
    assert load_file(None, {"FAAS_NODE__MOUNTS": '["/data"]'}).node.mounts == ("/data",)
    with pytest.raises(ConfigInvalid, match="FAAS_NODE__MOUNTS: must be a list"):
        load_file(None, {"FAAS_NODE__MOUNTS": "/data"})


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It was asked for by name."""
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load_file(tmp_path / "none.toml", {})


@pytest.mark.parametrize("text", ["", "4222", ":1", "host", "host:", "host:70000", "host:-1", "host:x", "host:²", "::1", "a b:1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    """With the option's name."""
    with pytest.raises(ConfigInvalid, match="--bus"):
        parse_address(text, "--bus")


def test_an_address_may_have_a_host_of_any_kind() -> None:
    """Names, and numbers of both families."""
    assert parse_address("127.0.0.1:0", "--bus") == ("127.0.0.1", 0)
    assert parse_address("[::1]:4222", "--bus") == ("::1", 4222)


def test_a_nodes_name_is_kept_in_its_state_folder(tmp_path: Path) -> None:
    """The same node after a restart."""
    first = node_name(tmp_path, None)
    (tmp_path / "node-name").write_text(first)

    assert node_name(tmp_path, None) == first
    assert node_name(tmp_path, "given") == "given"
    with pytest.raises(ConfigInvalid, match="--node"):
        node_name(tmp_path, "no spaces")
