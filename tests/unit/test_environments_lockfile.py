"""Locks and digests as text: what they say, what changes them, and what is said about a build that failed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from faas.environments.build import environment_digest
from faas.environments.failure import explain, of_profile
from faas.environments.installer import InstallerFailed, child_environ, fits, wheel_folders
from faas.environments.interpreter import Interpreter, find_interpreter, own_interpreter
from faas.environments.lock import parse_source
from faas.environments.lockfile import Pin, is_stale, lock_path, parse_lock, read_lock, source_digest, source_path, stray_line
from faas.environments.profile import load_profiles, shipped_runtimes
from faas.errors import EnvironmentFailed
from faas.model import ProfileLimits, ProfilePool, RuntimeProfile

PY311 = Interpreter(executable="/opt/python3.11", version="3.11", platform="linux-x86_64")
PROFILE = RuntimeProfile(name="ai", folder="/runtimes/ai", preload=("torch",))
LOCK = b"a==1 \\\n    --hash=sha256:00\n"
SHIPPED, _ = load_profiles(shipped_runtimes())


def with_(profile: RuntimeProfile, **changes: object) -> RuntimeProfile:
    return msgspec.structs.replace(profile, **changes)


@pytest.mark.parametrize(
    "same",
    [
        with_(PROFILE, name="other", folder="/elsewhere"),
        with_(PROFILE, pool=ProfilePool(max=3)),
        with_(PROFILE, limits=ProfileLimits(cpus=1)),
    ],
)
def test_a_digest_stands_for_content_alone(same: RuntimeProfile) -> None:
    """A moved checkout or a new limit must not cost minutes of building."""
    assert environment_digest(same, LOCK, PY311) == environment_digest(PROFILE, LOCK, PY311)


def test_a_digest_stays_the_same_over_runs_of_the_program() -> None:
    """It names folders and stands in usage records: a new one for the same content would build everything again."""
    assert environment_digest(PROFILE, LOCK, PY311) == "ce4ba0e4427401537decdb0a2a5b9f7e7615b3c1dff512d1aa2e0c78fe741f2e"


@pytest.mark.parametrize(
    "other",
    [
        (with_(PROFILE, preload=("numpy",)), LOCK, PY311),
        (with_(PROFILE, warmup="1"), LOCK, PY311),
        (with_(PROFILE, version="2"), LOCK, PY311),
        (PROFILE, LOCK + b"b==1\n", PY311),
        (PROFILE, LOCK, msgspec.structs.replace(PY311, version="3.12")),
        (PROFILE, LOCK, msgspec.structs.replace(PY311, platform="linux-aarch64")),
    ],
)
def test_a_digest_changes_with_what_processes_are_made_of(other: tuple[RuntimeProfile, bytes, Interpreter]) -> None:
    """An environment of other content, taken for this one, would run a function on packages that nobody locked."""
    assert environment_digest(*other) != environment_digest(PROFILE, LOCK, PY311)


def test_a_lock_tells_its_pins_and_how_much_there_is_to_download() -> None:
    """A build says how large it is before it starts."""
    lock = parse_lock(
        b"# download-bytes: 1234 (Linux on x86_64, Python 3.11)\n# source-sha256: abc\n"
        b"torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:00\nnumpy==2.4 \\\n    --hash=sha256:11\n    # via x\nsix==1\n"
    )

    assert (lock.download_bytes, lock.source_sha256) == (1234, "abc")
    assert lock.pins == (Pin("torch", "2.13.0+cpu", "sys_platform == 'linux'"), Pin("numpy", "2.4"), Pin("six", "1"))


def test_a_missing_lock_says_what_to_type(tmp_path: Path) -> None:
    """It is the first thing that the author of a profile meets."""
    with pytest.raises(EnvironmentFailed, match="type: faas lock ai"):
        read_lock(with_(PROFILE, folder=str(tmp_path)))


def test_editing_the_requirements_or_their_overrides_makes_a_lock_stale(tmp_path: Path) -> None:
    """Else an edit without `faas lock` would change nothing, silently."""
    profile = with_(PROFILE, folder=str(tmp_path))
    source_path(profile).write_text("numpy\n")
    lock_path(profile).write_text(f"# source-sha256: {source_digest(profile)}\nnumpy==2\n")
    fresh = is_stale(profile)
    (tmp_path / "overrides.in").write_text("x ; python_version < '0'\n")

    assert (fresh, is_stale(profile)) == (False, True)


def test_hashes_in_requirements_are_taken_out_and_kept() -> None:
    """They are of files that the machine that locks cannot see."""
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"

    source = parse_source(f"# why\nTorch==2.13.0+cpu ; sys_platform == 'linux' \\\n    --hash={one} \\\n    --hash={two}\nnumpy>=2\n")

    assert source.text.split("\n") == ["# why", "Torch==2.13.0+cpu ; sys_platform == 'linux'", "numpy>=2", ""]
    assert source.hashes == {("torch", "2.13.0+cpu"): (one, two)}
    assert source.local == (Pin("Torch", "2.13.0+cpu"),)


@pytest.mark.parametrize("profile", SHIPPED.values(), ids=SHIPPED)
def test_a_shipped_lock_is_up_to_date_and_says_where_nothing_of_its_maker_lay(profile: RuntimeProfile) -> None:
    """It is read on other machines, where a path or a host of this one would be wrong."""
    text = read_lock(profile).data.decode()

    assert not is_stale(profile)
    assert read_lock(profile).download_bytes > 0
    assert re.findall(r"https?:|file:|(?<![\w.])/\w+/|--find-links|--index", text) == []


@pytest.mark.parametrize("profile", SHIPPED.values(), ids=SHIPPED)
def test_every_line_of_a_shipped_lock_has_a_hash(profile: RuntimeProfile) -> None:
    """A build refuses a line without one."""
    for block in re.split(r"^(?=[^\s#])", read_lock(profile).data.decode(), flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl", False),
        ("torch-2.13.0+cpu-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("torch-2.13.0+cpu-py3-none-any.whl", True),
        ("torch-2.13.0+cpu-1-cp39-abi3-linux_x86_64.whl", True),
        ("torchvision-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("torch.whl", False),
    ],
)
def test_a_wheel_counts_only_where_it_would_install(file: str, expected: bool) -> None:
    """One taken wrongly sends the build to folders alone, where it then fails."""
    assert fits(file, Pin("Torch", "2.13.0+cpu"), PY311) is expected


async def test_folders_of_wheels_are_those_that_exist(tmp_path: Path) -> None:
    """uv fails on a find-links folder that does not exist."""
    environ = {"PIP_FIND_LINKS": f"{tmp_path} {tmp_path}/absent https://example.org/wheels file://{tmp_path}"}

    assert await wheel_folders(environ) == [tmp_path]


def test_a_child_gets_nothing_that_would_point_it_elsewhere() -> None:
    """A `UV_PYTHON` or an active virtual environment must not send an install into an interpreter of the user's."""
    given = {
        "PATH": "/bin",
        "UV_PYTHON": "/usr/bin/python3",
        "PIP_TARGET": "/",
        "PYTHONPATH": "/x",
        "VIRTUAL_ENV": "/v",
        "SSL_CERT_FILE": "/c",
    }

    assert child_environ(given) == {"PATH": "/bin", "SSL_CERT_FILE": "/c"}


def test_the_interpreter_is_a_real_one() -> None:
    """A virtual environment's own would tie every environment to the node's, and a shim answers differently tomorrow."""
    executable = Path(own_interpreter().executable)

    assert executable.is_absolute()
    assert not (executable.parent.parent / "pyvenv.cfg").exists()
    assert "shims" not in executable.parts


async def test_an_interpreter_that_is_not_there_is_named_with_the_way_out() -> None:
    """The alternative that needs nothing is to leave the key out."""
    with pytest.raises(EnvironmentFailed, match=r"no python3\.99 on PATH.*leave `python` out"):
        await find_interpreter("ai", "3.99")


async def test_a_shim_without_a_version_behind_it_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version managers put a pythonX.Y on PATH for every version that anyone ever installed."""
    shim = tmp_path / "python3.98"
    shim.write_text("#!/bin/sh\necho 'python3.98: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EnvironmentFailed, match=r"no python3\.98 on PATH that runs"):
        await find_interpreter("ai", "3.98")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "error: No solution found when resolving dependencies\n  cause: Because torch{sys_platform == 'linux'}==2.13.0+cpu has no wheels with a "
            "matching Python ABI tag (e.g., `cp312`) and you require torch{sys_platform == 'linux'}==2.13.0+cpu, we can conclude that ...",
            "requirements.lock does not cover Python 3.11 on linux-x86_64: there is no wheel of torch 2.13.0+cpu for it",
        ),
        (
            "  cause: Hash mismatch for `six==1.17.0`\n",
            "the file of six==1.17.0 that was found for Python 3.11 on linux-x86_64 is none that",
        ),
        ("  cause: Failed to fetch: https://example.org/simple/six/", "a package index did not answer"),
        ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
        ("error: In `--require-hashes` mode, all requirements must have a hash, but none were provided for: six==1", "type: faas lock ai"),
        (
            "error: No solution found when resolving dependencies\n\nhint: Wheels are required for `docopt` because building from source is disabled "
            "for all packages (i.e., with `--no-build`)",
            "docopt has no wheel for Python 3.11 on linux-x86_64, and nothing is built from source",
        ),
        ("error: something new", "its last lines say why"),
    ],
)
def test_a_failed_build_says_first_what_to_do_and_then_what_uv_said(output: str, sentence: str) -> None:
    """uv's words alone name neither the lock nor the command that mends it."""
    detail = explain(InstallerFailed(output), of_profile(PROFILE), PY311)

    assert detail.startswith(sentence) or sentence in detail.partition("\n")[0]
    assert detail.endswith(output)


def test_a_wheel_that_is_nowhere_to_be_had_is_named() -> None:
    """On a closed machine the lock's file for another Python is out of reach, which uv's words about an index do not say."""
    detail = explain(
        InstallerFailed("  cause: Failed to fetch: the index"), of_profile(PROFILE), PY311, absent=(Pin("torch", "2.13.0+cpu"),)
    )

    assert "no find-links folder of pip has torch 2.13.0+cpu for Python 3.11 on linux-x86_64" in detail


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "line",
    [
        "--find-links /tmp",
        "-r /etc/passwd",
        "-e .",
        f"evil @ file:///tmp/evil.tar.gz {HASH}",
        f"https://example.org/evil.whl {HASH}",
        f"./evil.tar.gz {HASH}",
        "six==1.17.0",
        "six==1.17.0 --hash=md5:00",
        f"six>=1 {HASH}",
        f"six==1 ; --index-url=https://example.org {HASH}",
        f"six==1 {HASH} --index-url=https://example.org",
        f"six==1 \\\n    {HASH} \\\n    -r /etc/passwd",
    ],
)
def test_a_line_that_faas_lock_does_not_write_is_found(line: str) -> None:
    """Whoever deploys a function writes its lock: options, URLs and paths in it would be followed by the node."""
    assert stray_line(parse_lock(f"# by hand\n\n{line}\n".encode()))


def test_what_faas_lock_writes_is_no_stray_line() -> None:
    """Markers, several hashes, and the line ends of an editor on Windows."""
    text = f"# head\nsix==1.17.0 \\\n    {HASH} \\\n    {HASH}\ncolorama==0.4.6 ; sys_platform == 'win32' \\\n    {HASH}\n"

    assert stray_line(parse_lock(text.encode())) == ""
    assert stray_line(parse_lock(text.replace("\n", "\r\n").encode())) == ""
