"""What a secret is: where it is read from, whose it is, which values verify, when its version changes, and that nothing shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from faas.config import SecretsConfig
from faas.errors import ConfigInvalid, SecretMissing
from faas.security.secrets import Secrets, variable_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def write(path: Path, value: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(value)
    path.chmod(mode)
    return path


def a_folder_of(folder: Path) -> Secrets:
    return Secrets(SecretsConfig(folder=str(folder)))


def an_environment_of(**variables: str) -> Secrets:
    return Secrets(SecretsConfig(provider="environment"), environ=dict(variables))


@pytest.mark.parametrize(("written", "value"), [(b"abc", b"abc"), (b"abc\n", b"abc"), (b"abc\r\n", b"abc"), (b"a\nb\n\n", b"a\nb\n")])
def test_one_line_end_after_a_value_is_no_part_of_it(folder: Path, written: bytes, value: bytes) -> None:
    """Editors and echo leave one, and a signature over it would never match; a key of several lines stays whole."""
    write(folder / "hf_token", written)

    assert a_folder_of(folder).get("hf_token").value == value


def test_a_previous_value_verifies_beside_the_current_one_and_is_not_it(folder: Path) -> None:
    """A rotation lasts until the last sender has moved on."""
    write(folder / "hook", b"new")
    write(folder / "hook.previous", b"old\n")

    secret = a_folder_of(folder).get("hook")

    assert (secret.value, secret.values) == (b"new", (b"new", b"old"))


def test_a_previous_value_that_is_gone_verifies_no_longer(folder: Path) -> None:
    """Removing the file ends the rotation at once: what is remembered of it must not verify on."""
    write(folder / "hook", b"new")
    previous = write(folder / "hook.previous", b"old")
    secrets = a_folder_of(folder)
    secrets.get("hook")
    previous.unlink()

    assert secrets.get("hook").values == (b"new",)


def test_a_changed_file_shows_at_the_next_use_and_has_another_version(folder: Path) -> None:
    """Rotated without a restart, even within one tick of the file system's clock and at the same length."""
    file = write(folder / "hook", b"one")
    secrets = a_folder_of(folder)
    first = secrets.get("hook")
    file.write_bytes(b"two")

    second = secrets.get("hook")

    assert second.value == b"two"
    assert second.version != first.version


def test_a_file_put_in_the_place_of_another_shows_at_the_next_use(folder: Path) -> None:
    """The way to change a secret that is in use: nobody ever reads half of it. Its times may be older than those of the first."""
    file = write(folder / "hook", b"one")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    secrets = a_folder_of(folder)
    assert secrets.get("hook").value == b"one"
    other = write(folder / "hook.new", b"two")
    os.utime(other, (1_000_000_000, 1_000_000_000))
    other.rename(file)

    assert secrets.get("hook").value == b"two"


def test_a_version_stays_while_the_value_does_and_a_previous_one_changes_nothing(folder: Path) -> None:
    """A worker is replaced when its version is another one: touching a file must not replace every worker."""
    file = write(folder / "hook", b"one")
    secrets = a_folder_of(folder)
    first = secrets.get("hook").version
    write(folder / "hook.previous", b"zero")
    os.utime(file)

    assert secrets.get("hook").version == first


def test_a_version_tells_nothing_about_the_value(folder: Path) -> None:
    """It is shown to whoever may list functions: the same value has another version under another name and on another node."""
    write(folder / "one", b"0000")
    write(folder / "two", b"0000")
    here, there = a_folder_of(folder), a_folder_of(folder)

    assert len({here.get("one").version, here.get("two").version, there.get("one").version, there.get("two").version}) == 4
    assert Secrets(SecretsConfig(folder=str(folder)), key=b"k").get("one") == Secrets(SecretsConfig(folder=str(folder)), key=b"k").get(
        "one"
    )


def test_neither_a_secret_nor_its_provider_prints_a_value(folder: Path) -> None:
    """They end up in tracebacks and in logs, which others read."""
    write(folder / "hook", b"tell-nobody")
    secrets = a_folder_of(folder)

    shown = f"{secrets.get('hook')!r} {secrets.get('hook')} {secrets!r} {secrets._files!r}"

    assert "tell-nobody" not in shown


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../hook",
        "/etc/passwd",
        "a/b",
        "a\0b",
        "a\n",
        ".hidden",
        "hook.previous",
        "hook_previous",
        "-a",
        "a__b",
        "a" * 64,
        "é",
        "a b",
    ],
)
def test_a_name_that_is_none_is_never_looked_for(folder: Path, name: str) -> None:
    """A name comes from a function or a trigger: it must lead nowhere but to a file of the folder."""
    inside = folder / "secrets"
    write(folder / "hook", b"outside")
    write(inside / "hook.previous", b"x")

    with pytest.raises(SecretMissing) as caught:
        a_folder_of(inside).get(name)

    assert "name" in caught.value.detail


@pytest.mark.parametrize("tenant", ["", "..", "../x", "a/b", "A", "."])
def test_a_tenant_that_is_none_has_no_secrets(folder: Path, tenant: str) -> None:
    """The tenant is a part of the path too."""
    write(folder / "hook", b"x")

    with pytest.raises(SecretMissing):
        a_folder_of(folder).get("hook", tenant)


def test_a_tenant_has_the_secrets_of_its_own_folder_alone(folder: Path) -> None:
    """One name of two tenants is two secrets, and what only another one has is not there."""
    write(folder / "hook", b"of the default tenant")
    write(folder / "acme" / "hook", b"of acme")
    write(folder / "only", b"x")
    write(folder / "acme" / "own", b"x")
    secrets = a_folder_of(folder)

    assert secrets.get("hook").value == b"of the default tenant"
    assert secrets.get("hook", "acme").value == b"of acme"
    for name, tenant in (("only", "acme"), ("own", "default"), ("own", "other")):
        with pytest.raises(SecretMissing, match=r"install -m 600 /dev/stdin"):
            secrets.get(name, tenant)


def test_a_secret_that_is_missing_says_where_it_belongs(folder: Path) -> None:
    """The message is all that whoever called the function sees."""
    with pytest.raises(SecretMissing) as caught:
        a_folder_of(folder).get("hf_token")

    assert str(caught.value) == (
        f"secret hf_token: there is no {folder}/hf_token; write it with install -m 600 /dev/stdin {folder}/hf_token"
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: os.mkfifo(path), "is no file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\n"), "is empty"),
        (lambda path: path.write_bytes(b"x" * (32 * 1024 + 1)), "more than 32 KiB"),
        (lambda path: path.symlink_to("loop"), "cannot be read"),
    ],
)
def test_what_is_no_secret_is_refused_with_what_it_is(folder: Path, make, problem: str) -> None:
    """A pipe would be waited for without end, and an empty key verifies whatever anybody signs with nothing."""
    make(folder / "loop")

    with pytest.raises(SecretMissing, match=problem):
        a_folder_of(folder).get("loop")


def test_a_link_in_the_folder_is_followed(folder: Path) -> None:
    """Kubernetes puts its secrets in place so, and turns them over by changing the link."""
    write(folder / "..data" / "hook", b"one")
    (folder / "hook").symlink_to("..data/hook")

    assert a_folder_of(folder).get("hook").value == b"one"


def test_a_file_that_others_may_read_is_said_once_and_read(folder: Path) -> None:
    """Mounted secrets often are; refusing them would stop a node over what it cannot change."""
    file = write(folder / "hook", b"tell-nobody", mode=0o644)
    secrets = a_folder_of(folder)

    with capture_logs() as said:
        assert secrets.get("hook").value == secrets.get("hook").value == b"tell-nobody"

    assert [(line["event"], line["type"]) for line in said] == [("secret.open_to_others", f"chmod 600 {file}")]
    assert "tell-nobody" not in str(said)


def test_a_folder_that_is_none_is_refused_at_the_start(folder: Path) -> None:
    """Else every function that has a secret would fail, one by one."""
    with pytest.raises(ConfigInvalid, match="is no folder; make it with mkdir -m 700"):
        a_folder_of(folder / "missing")


def test_a_node_without_secrets_says_how_to_have_them() -> None:
    with pytest.raises(SecretMissing, match=r'write folder = "secrets" under \[secrets\] in faas.toml'):
        Secrets(SecretsConfig()).get("hook")


def test_variables_of_the_node_hold_secrets_of_each_tenant() -> None:
    """The other provider: for containers whose platform hands secrets out so."""
    secrets = an_environment_of(FAAS_SECRET_HF_TOKEN="a\n", FAAS_SECRET_ACME__HF_TOKEN="b", FAAS_SECRET_HF_TOKEN_PREVIOUS="z")

    assert secrets.get("hf_token").values == (b"a", b"z")
    assert secrets.get("hf-token", "acme").values == (b"b",)
    with pytest.raises(SecretMissing, match="FAAS_SECRET_OTHER__HF_TOKEN is not set in the environment of the node"):
        secrets.get("hf_token", "other")


def test_variables_that_hold_secrets_are_taken_out_of_the_environment() -> None:
    """Whatever the node starts, a build of a package included, inherits its environment."""
    environ = {"FAAS_SECRET_A": "x", "PATH": "/bin"}

    Secrets(SecretsConfig(provider="environment"), environ=environ)

    assert environ == {"PATH": "/bin"}


def test_no_variable_of_the_node_but_its_secrets_can_be_named() -> None:
    """A function that asks for `path` or `aws_secret_access_key` gets none of the node's own."""
    secrets = an_environment_of(PATH="/bin", AWS_SECRET_ACCESS_KEY="x")

    for name in ("path", "PATH", "aws_secret_access_key"):
        with pytest.raises(SecretMissing):
            secrets.get(name)


def test_no_two_tenants_share_a_variable() -> None:
    """Else the name of a secret would reach for another tenant's."""
    places = [(name, tenant) for tenant in ("default", "a", "a-", "a--b", "b") for name in ("a", "b", "b-c", "B_C", "a-b")]
    by_variable: dict[str, set[str]] = {}
    for name, tenant in places:
        by_variable.setdefault(variable_of(name, tenant), set()).add(tenant)

    assert {len(tenants) for tenants in by_variable.values()} == {1}


def test_what_is_no_secret_costs_no_descriptor(folder: Path) -> None:
    """It is looked for again at every event, and a node has only so many."""
    (folder / "hook").mkdir()
    secrets = a_folder_of(folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(SecretMissing):
            secrets.get("hook")

    assert len(os.listdir("/proc/self/fd")) == before
