"""Real builds of a small profile: once, whole or absent, by hash, and ended with whoever asked for them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.environments.build import Builder, BuildProgress
from faas.environments.installer import run_uv
from faas.environments.interpreter import own_interpreter
from faas.environments.lockfile import read_lock
from faas.environments.profile import load_profile, shipped_runtimes
from faas.environments.store import RECORD_FILE
from faas.errors import EnvironmentFailed
from faas.model import RuntimeProfile

# Under uvloop, as a node runs; the tests themselves run under asyncio's own loop.
BUILD_IN_A_PROCESS = """
import sys, uvloop
from pathlib import Path
from faas.environments.build import Builder
from faas.environments.profile import load_profile

def progress(at):
    print(at.phase, flush=True)
    if at.phase == sys.argv[3]:
        sys.stdin.read()          # the build stands still here, until this process is killed or its input closes

async def main():
    async with Builder(Path(sys.argv[1])) as builder:
        print((await builder.ensure(load_profile(Path(sys.argv[2])), progress)).digest, flush=True)

uvloop.run(main())
"""


@pytest.fixture
def profile(tmp_path: Path) -> RuntimeProfile:
    """A copy of `standard`, so that a test may change its files."""
    shutil.copytree(shipped_runtimes() / "standard", tmp_path / "runtimes" / "standard")
    return load_profile(tmp_path / "runtimes" / "standard")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "environments"


@pytest.fixture
async def builder(state: Path) -> AsyncIterator[Builder]:
    async with Builder(state) as builder:
        yield builder


def run_python(executable: str, code: str) -> str:
    return subprocess.check_output([executable, "-I", "-c", code], text=True).strip()


def write_lock(profile: RuntimeProfile, text: str) -> None:
    Path(profile.folder, "requirements.lock").write_text(text)


def point_elsewhere(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def environments(state: Path) -> list[str]:
    """What lies in the folder besides lock files: built environments and unfinished ones."""
    return sorted(path.name for path in state.iterdir() if path.suffix != ".lock")


def start_build(state: Path, profile: RuntimeProfile, stop_at: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_IN_A_PROCESS, str(state), profile.folder, stop_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], phase: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == phase:
            return
    raise AssertionError(f"the build ended before {phase!r}")


async def test_an_environment_holds_what_the_lock_says_compiled(builder: Builder, profile: RuntimeProfile) -> None:
    """The worker needs msgspec there, and a cold start that compiles would be paid by the first event."""
    environment = await builder.ensure(profile)

    path, version = run_python(environment.python, "import msgspec; print(msgspec.__file__, msgspec.__version__)").split()
    assert f"msgspec=={version} " in read_lock(profile).data.decode()
    assert list(Path(path).parent.glob("__pycache__/__init__.*.pyc"))
    assert Path(environment.python).parent.parent.name == environment.digest
    assert environment.size_bytes > 0


async def test_the_interpreter_it_is_made_from_is_not_touched(builder: Builder, profile: RuntimeProfile) -> None:
    """It may be the system's, or the one that runs the node."""
    listing = "import sysconfig, os; print(sorted(os.listdir(sysconfig.get_path('purelib'))))"
    before = run_python(own_interpreter().executable, listing)

    environment = await builder.ensure(profile)

    assert run_python(own_interpreter().executable, listing) == before
    assert run_python(environment.python, "import sys; print(sys.prefix)") == str(Path(environment.python).parent.parent)


async def test_a_second_request_builds_nothing(builder: Builder, profile: RuntimeProfile) -> None:
    """Every start of a node asks."""
    phases: list[str] = []
    first = await builder.ensure(profile)

    again = await builder.ensure(profile, lambda progress: phases.append(progress.phase))

    assert (again, phases, await builder.find(profile)) == (first, [], first)


async def test_two_that_ask_at_once_share_one_build(builder: Builder, profile: RuntimeProfile, state: Path) -> None:
    """Two functions of one profile start together when a node comes up."""
    phases: list[str] = []

    def note(progress: BuildProgress) -> None:
        phases.append(progress.phase)

    one, two = await asyncio.gather(builder.ensure(profile, note), builder.ensure(profile, note))

    assert one == two
    assert phases.count("creating") == 1
    assert environments(state) == [one.digest]


async def test_two_processes_that_ask_at_once_share_one_build(builder: Builder, profile: RuntimeProfile, state: Path) -> None:
    """`faas build` beside a running node, on one state folder."""
    other = start_build(state, profile, "resolving")
    await asyncio.to_thread(read_until, other, "resolving")
    waiting = asyncio.Event()
    phases: list[str] = []

    def note(progress: BuildProgress) -> None:
        phases.append(progress.phase)
        waiting.set()

    mine = asyncio.create_task(builder.ensure(profile, note))
    await waiting.wait()
    output, _ = await asyncio.to_thread(other.communicate)  # closes its input, so that its build goes on

    environment = await mine
    assert output.split()[-1] == environment.digest
    assert phases == ["waiting for the same build in another process", "ready"]


async def test_who_stops_waiting_for_another_process_leaves_nothing_locked(builder: Builder, profile: RuntimeProfile, state: Path) -> None:
    """A node that is told to stop meanwhile must stop, and may not keep the next one from building."""
    other = start_build(state, profile, "resolving")
    await asyncio.to_thread(read_until, other, "resolving")
    waiting = asyncio.Event()
    mine = asyncio.create_task(builder.ensure(profile, lambda progress: waiting.set()))
    await waiting.wait()
    mine.cancel()
    await asyncio.wait([mine])
    other.kill()
    await asyncio.to_thread(other.communicate)

    assert mine.cancelled()
    assert (await builder.ensure(profile)).digest in environments(state)


async def test_a_build_killed_half_way_leaves_nothing_that_counts(profile: RuntimeProfile, state: Path) -> None:
    """Whole or absent: half an environment would fail at import, in every function, for good."""
    process = start_build(state, profile, "compiling bytecode")
    await asyncio.to_thread(read_until, process, "compiling bytecode")
    process.kill()
    await asyncio.to_thread(process.communicate)
    (left,) = environments(state)

    async with Builder(state) as builder:
        found, leftovers = await builder.find(profile), environments(state)
        environment = await builder.ensure(profile)

    assert left.startswith("building-")
    assert (found, leftovers) == (None, [])
    assert environments(state) == [environment.digest]


@pytest.mark.parametrize("phase", ["creating", "resolving", "compiling bytecode"])
async def test_a_cancelled_build_leaves_nothing_and_the_next_succeeds(
    builder: Builder, profile: RuntimeProfile, state: Path, phase: str
) -> None:
    """The node that is told to stop while it builds is started again later, on the same folder."""
    reached = asyncio.Event()

    def note(progress: BuildProgress) -> None:
        if progress.phase == phase:
            reached.set()

    task = asyncio.create_task(builder.ensure(profile, note))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])

    left = environments(state)
    environment = await builder.ensure(profile)
    assert (task.cancelled(), left, environments(state)) == (True, [], [environment.digest])


async def test_a_build_under_way_is_no_leftover(profile: RuntimeProfile, state: Path) -> None:
    """A node that starts may not delete what `faas build` is building."""
    process = start_build(state, profile, "compiling bytecode")
    await asyncio.to_thread(read_until, process, "compiling bytecode")

    async with Builder(state):
        kept = environments(state)
    output, _ = await asyncio.to_thread(process.communicate)

    assert len(kept) == 1
    assert environments(state) == [output.split()[-1]]


async def test_a_file_of_another_hash_is_refused(builder: Builder, profile: RuntimeProfile, state: Path) -> None:
    """What was locked is what runs: a replaced file on an index or in a folder must not get in."""
    write_lock(profile, "six==1.17.0 \\\n    --hash=sha256:" + "0" * 64 + "\n")

    with pytest.raises(EnvironmentFailed, match=r"six==1\.17\.0.*is none that requirements\.lock allows"):
        await builder.ensure(profile)

    assert environments(state) == []


async def test_a_line_without_a_hash_is_refused(builder: Builder, profile: RuntimeProfile) -> None:
    """A lock edited by hand is no lock."""
    write_lock(profile, "msgspec==0.22.0\n")

    with pytest.raises(EnvironmentFailed, match="does not pin everything by hash; type: faas lock standard"):
        await builder.ensure(profile)


async def test_a_missing_uv_says_what_to_install(
    builder: Builder, profile: RuntimeProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package works without its extra `local` until something has to be built."""
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EnvironmentFailed, match=r'pip install "faas\[local\]"'):
        await builder.ensure(profile)


async def test_an_unwritable_folder_is_named(profile: RuntimeProfile, tmp_path: Path) -> None:
    """A full or read-only disk is the operator's to mend."""
    (tmp_path / "file").write_text("no folder")

    async with Builder(tmp_path / "file" / "environments") as builder:
        with pytest.raises(EnvironmentFailed, match="--state DIR"):
            await builder.ensure(profile)


async def test_an_environment_whose_interpreter_is_gone_is_built_again(builder: Builder, profile: RuntimeProfile) -> None:
    """An upgrade of the system's Python removes what the environment's `python` points to."""
    environment = await builder.ensure(profile)
    point_elsewhere(Path(environment.python), "/nowhere/python3")

    again = await builder.ensure(profile)

    assert run_python(again.python, "import msgspec; print(msgspec.__name__)") == "msgspec"


async def test_an_environment_with_a_broken_record_is_absent(builder: Builder, profile: RuntimeProfile) -> None:
    """A power failure may leave an empty file."""
    environment = await builder.ensure(profile)
    Path(environment.python).parent.parent.joinpath(RECORD_FILE).write_text("")

    assert await builder.find(profile) is None
    assert await builder.ensure(profile) == environment


def fake_uv(folder: Path) -> Path:
    """A program that takes uv's place, writes its process id and never ends."""
    program = folder / "uv"
    program.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nprint('pid', os.getpid(), file=sys.stderr, flush=True)\nsignal.pause()\n"
    )
    program.chmod(0o755)
    return program


RUN_UV_IN_A_PROCESS = """
import sys, uvloop
from pathlib import Path
from faas.environments.installer import run_uv
uvloop.run(run_uv(sys.argv[1], (), folder=Path(sys.argv[2]), on_line=lambda line: print(line, flush=True)))
"""


def start_uv(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN_UV_IN_A_PROCESS, str(fake_uv(folder)), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def wait_for_death(pid: int, descriptor: int) -> None:
    """Until the process behind a pidfd has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd and the parent-death signal are Linux's")
async def test_uv_dies_with_a_node_that_is_killed(tmp_path: Path) -> None:
    """It would go on downloading and writing for nobody."""
    process = start_uv(tmp_path)
    assert process.stdout is not None
    pid = int((await asyncio.to_thread(process.stdout.readline)).split()[1])
    descriptor = os.pidfd_open(pid)

    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)

    await wait_for_death(pid, descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux's")
async def test_uv_ends_when_the_build_is_cancelled(tmp_path: Path) -> None:
    """A node that stops may leave nothing running."""
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_uv(str(fake_uv(tmp_path)), (), folder=tmp_path, on_line=lambda line: pid.set_result(int(line.split()[1])))
    )
    descriptor = os.pidfd_open(await pid)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    await wait_for_death(pid.result(), descriptor)


async def test_progress_tells_the_size_before_anything_is_fetched(builder: Builder, profile: RuntimeProfile) -> None:
    """Whoever waits on a slow line wants to know for what."""
    seen: list[BuildProgress] = []

    await builder.ensure(profile, seen.append)

    assert [progress.phase for progress in seen][:2] == ["creating", "resolving"]
    assert seen[-1].phase == "ready"
    assert {progress.download_bytes for progress in seen} == {read_lock(profile).download_bytes}


async def test_the_record_of_an_environment_is_one_that_other_programs_can_read(builder: Builder, profile: RuntimeProfile) -> None:
    """It stands on disk, where people look."""
    environment = await builder.ensure(profile)

    record = json.loads(Path(environment.python).parent.parent.joinpath(RECORD_FILE).read_text())

    assert record["digest"] == environment.digest
