"""What a function mounts: found and digested when it is read, put in place before a worker loads it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import sys
from pathlib import Path

import pytest
from folders import PROFILES, folder, only_error, without_line

from faas.errors import EnvironmentFailed, MountFailed
from faas.model import FunctionReport, FunctionVersion
from faas.pool.mounts import Mounts
from faas.registry.spec import read_functions

OWN = '[[mount]]\nsource = "assets/model"\ntarget = "model"\n'


def own(root: Path, name: str = "fn", **files: bytes) -> Path:
    """A function that mounts a folder of its own with these files."""
    made = folder(root, name, OWN)
    (made / "assets/model/deep").mkdir(parents=True)
    (made / "assets/model/deep/.hidden").write_bytes(b"h")
    for file, data in {"weights": b"w" * 1000, **files}.items():
        (made / "assets/model" / file).write_bytes(data)
    return made


def of_the_node(root: Path, source: Path, name: str = "fn") -> Path:
    """A function that mounts a folder of the machine."""
    return folder(root, name, f'[[mount]]\nsource = "{source}"\ntarget = "model"\n')


def read(root: Path, *allowed: Path) -> tuple[list[FunctionVersion], list[FunctionReport]]:
    functions, invalid, _ = read_functions(root, PROFILES, mounts=[str(folder) for folder in allowed])
    return functions, invalid


def only(root: Path, *allowed: Path) -> FunctionVersion:
    (function,), invalid = read(root, *allowed)
    assert invalid == []
    return function


def error_of(root: Path, *allowed: Path) -> str:
    functions, (report,) = read(root, *allowed)
    assert functions == []
    return without_line(report.error)


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    made = tmp_path / "functions"
    made.mkdir()
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights").write_bytes(b"w" * 1000)
    return made


# ---------------------------------------------------------------- found


def test_a_mounted_folder_is_no_source_and_counts_into_the_version(functions: Path) -> None:
    """Weights are larger than source may be, and other weights are another function."""
    made = own(functions, large=b"\0" * (17 * 2**20))
    before = only(functions)
    (made / "assets/model/weights").write_bytes(b"W" * 1000)
    after = only(functions)

    assert [file.path for file in before.files] == ["handler.py"]
    assert [mounted.target for mounted in before.mounts] == ["model"]
    assert before.mounts[0].digest != after.mounts[0].digest
    assert before.version != after.version


def test_the_digest_of_an_own_folder_is_of_paths_and_contents_alone(functions: Path, tmp_path: Path) -> None:
    """The same on every machine, whenever it was copied there."""
    first = own(functions, "a")
    second = own(functions, "b")
    os.utime(second / "assets/model/weights", (1, 1))
    one, two = (function.mounts[0].digest for function in read(functions)[0])
    (second / "assets/model/weights").rename(second / "assets/model/other")
    renamed = read(functions)[0][1].mounts[0].digest

    assert first != second
    assert one == two != renamed


def test_a_folder_of_the_node_has_a_digest_of_sizes_and_times(functions: Path, data: Path) -> None:
    """Nobody reads tens of gigabytes to start a node; the version stays the same on all nodes."""
    of_the_node(functions, data / "model")
    before = only(functions, data)
    os.utime(data / "model/weights", (1, 1))
    after = only(functions, data)

    assert before.mounts[0].source == str(data / "model")
    assert before.mounts[0].digest != after.mounts[0].digest
    assert before.version == after.version


def test_a_folder_of_the_node_must_be_allowed(functions: Path, data: Path, tmp_path: Path) -> None:
    """A function is code of somebody; the machine's folders are the operator's."""
    of_the_node(functions, data / "model")
    (tmp_path / "dat").mkdir()

    assert "[node]" in error_of(functions)
    assert error_of(functions).startswith("fn/function.toml: mount[0].source: ")
    assert "[node]" in error_of(functions, tmp_path / "dat")
    assert only(functions, data / "model").mounts


def test_a_link_does_not_lead_out_of_what_is_allowed(functions: Path, data: Path, tmp_path: Path) -> None:
    """Neither the folder itself nor what lies in it."""
    (tmp_path / "secret").mkdir()
    (data / "link").symlink_to(tmp_path / "secret")
    made = of_the_node(functions, data / "link")
    through = error_of(functions, data)
    (made / "function.toml").write_text(f'[[mount]]\nsource = "{data}/model"\ntarget = "model"\n')
    (data / "model" / "inner").symlink_to(tmp_path / "secret")
    inside = error_of(functions, data)

    assert "[node]" in through
    assert "model/inner: is a link that leads out" in inside


def test_links_inside_of_what_is_allowed_are_followed(functions: Path, data: Path) -> None:
    """Caches of models are made of them."""
    (data / "model" / "snapshot").symlink_to("weights")
    of_the_node(functions, data / "model")

    assert only(functions, data).mounts


@pytest.mark.parametrize(
    ("source", "target", "key", "word"),
    [
        ("../other", "m", "mount[0].source", "without . and .."),
        ("a/../../b", "m", "mount[0].source", "without . and .."),
        ("/data/../etc", "m", "mount[0].source", "without . and .."),
        (".", "m", "mount[0].source", "without . and .."),
        ("", "m", "mount[0].source", "no folder"),
        ("a//b", "m", "mount[0].source", "no folder"),
        ("a\\nb", "m", "mount[0].source", "no folder"),
        ("nowhere", "m", "mount[0].source", "No such file"),
        ("handler.py", "m", "mount[0].source", "is no folder"),
        ("link", "m", "mount[0].source", "links are none"),
        ("full/link", "m", "mount[0].source", "links are none"),
        ("full", "m", "mount[0].source", "full/link: is no regular file"),
        ("pipes", "m", "mount[0].source", "pipes/pipe: is no regular file"),
        ("/proc/self/nowhere", "m", "mount[0].source", "no folder of this machine"),
        ("data", "Model", "mount[0].target", "plain name"),
        ("data", "a/b", "mount[0].target", "plain name"),
        ("data", "..", "mount[0].target", "plain name"),
        ("data", "", "mount[0].target", "plain name"),
    ],
)
def test_a_mount_that_cannot_be_names_its_key(functions: Path, *, source: str, target: str, key: str, word: str) -> None:
    """One line is enough to mend it, and nothing outside of the function is reached."""
    made = folder(functions, "fn", f'[[mount]]\nsource = "{source}"\ntarget = "{target}"\n')
    for name in ("data", "full", "pipes"):
        (made / name).mkdir()
    (made / "link").symlink_to("/etc")
    (made / "full/link").symlink_to("/etc")
    os.mkfifo(made / "pipes/pipe")
    error = error_of(functions)

    assert error.startswith(f"fn/function.toml: {key}: "), error
    assert word in error


def test_a_target_taken_twice_is_refused(functions: Path) -> None:
    """One of the two would win by chance."""
    made = own(functions)
    (made / "function.toml").write_text(OWN + OWN)

    assert only_error(functions).startswith("fn/function.toml: line 6: mount[1].target: 'model' is taken already")


# ---------------------------------------------------------------- put in place


async def test_an_own_folder_is_copied_once_and_can_only_be_read(functions: Path, tmp_path: Path) -> None:
    """A worker must not change what the next one finds."""
    own(functions)
    mounts = Mounts(tmp_path / "state/mounts")
    function = only(functions)
    (path,) = (await mounts.stage(function)).values()
    changed = Path(path).stat().st_ctime_ns
    again = await mounts.stage(function)

    assert again == {"model": path}
    assert Path(path).stat().st_ctime_ns == changed
    assert Path(path).name == function.mounts[0].digest
    assert Path(path, "weights").read_bytes() == b"w" * 1000
    assert Path(path, "deep/.hidden").read_bytes() == b"h"
    assert {stat.S_IMODE(file.stat().st_mode) for file in Path(path).rglob("*") if file.is_file()} == {0o444}
    assert {stat.S_IMODE(at.stat().st_mode) for at in (Path(path), Path(path, "deep"))} == {0o555}


async def test_a_folder_of_the_node_is_used_where_it_is(functions: Path, data: Path, tmp_path: Path) -> None:
    """It may be larger than the state folder's disk."""
    of_the_node(functions, data / "model")
    mounts = Mounts(tmp_path / "state/mounts", [str(data)])

    assert await mounts.stage(only(functions, data)) == {"model": str(data / "model")}
    assert not (tmp_path / "state").exists()


async def test_a_function_without_mounts_touches_no_disk(functions: Path, tmp_path: Path) -> None:
    """Most have none."""
    folder(functions, "fn")

    assert await Mounts(tmp_path / "state/mounts").stage(only(functions)) == {}
    assert not (tmp_path / "state").exists()


async def test_many_ask_at_once_and_get_one_copy(functions: Path, tmp_path: Path) -> None:
    """Two functions with the same weights load at the same moment."""
    own(functions, "a")
    own(functions, "b")
    found, _ = read(functions)
    mounts = [Mounts(tmp_path / "mounts"), Mounts(tmp_path / "mounts")]  # as two processes would
    staged = await asyncio.gather(*(one.stage(function) for one in mounts for function in found for _ in range(4)))

    assert len({paths["model"] for paths in staged}) == 1
    assert [at.name for at in (tmp_path / "mounts").iterdir() if at.is_dir()] == [found[0].mounts[0].digest]


async def test_two_processes_may_copy_at_once(functions: Path, tmp_path: Path) -> None:
    """Two nodes that share a disk."""
    own(functions, large=b"x" * 2**22)
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom folders import PROFILES\n"
        "from faas.pool.mounts import Mounts\nfrom faas.registry.spec import read_functions\n"
        "(function,), _, _ = read_functions(Path(sys.argv[1]), PROFILES)\n"
        "print(asyncio.run(Mounts(Path(sys.argv[2])).stage(function))['model'])\n"
    )
    arguments = (sys.executable, "-c", code, str(functions), str(tmp_path / "mounts"))
    started = [
        await asyncio.create_subprocess_exec(*arguments, cwd=Path(__file__).parent, stdout=asyncio.subprocess.PIPE) for _ in range(2)
    ]
    said = {(await process.communicate())[0].splitlines()[-1] for process in started}

    assert len(said) == 1
    assert Path(os.fsdecode(said.pop()), "large").stat().st_size == 2**22


async def test_what_a_killed_process_left_is_copied_anew(functions: Path, tmp_path: Path) -> None:
    """Half a file is no weights."""
    own(functions)
    function = only(functions)
    left = tmp_path / "mounts" / f"{function.mounts[0].digest}.unfinished"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"w")
    left.chmod(0o555)
    paths = await Mounts(tmp_path / "mounts").stage(function)

    assert Path(paths["model"], "weights").read_bytes() == b"w" * 1000
    assert not left.exists()


async def test_a_caller_that_gives_up_leaves_nothing(functions: Path, tmp_path: Path) -> None:
    """And the next one gets its copy."""
    own(functions)
    function = only(functions)
    mounts = Mounts(tmp_path / "mounts")
    (tmp_path / "mounts").mkdir()
    with (tmp_path / "mounts" / f"{function.mounts[0].digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process copies
        waiting = asyncio.ensure_future(mounts.stage(function))
        await asyncio.wait([waiting], timeout=0.1)
        waiting.cancel()
        await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert not [at for at in (tmp_path / "mounts").iterdir() if at.is_dir()]
    assert Path((await mounts.stage(function))["model"]).is_dir()


@pytest.mark.parametrize("change", ["content", "gone", "pipe"])
async def test_a_folder_that_changed_since_is_refused(functions: Path, tmp_path: Path, change: str) -> None:
    """The version says which weights ran; others under its name would be a lie."""
    made = own(functions)
    function = only(functions)
    weights = made / "assets/model/weights"
    weights.unlink()
    if change == "content":
        weights.write_bytes(b"W" * 1000)
    elif change == "gone":
        (made / "assets").rename(made / "moved")
    else:
        os.mkfifo(weights)
    with pytest.raises(MountFailed, match="start the node again"):
        await Mounts(tmp_path / "mounts").stage(function)

    assert not [at for at in (tmp_path / "mounts").iterdir() if at.is_dir()]


async def test_a_folder_of_the_node_is_looked_at_again(functions: Path, data: Path, tmp_path: Path) -> None:
    """Between reading and loading, a link may have been put in its place."""
    of_the_node(functions, data / "model")
    function = only(functions, data)
    mounts = Mounts(tmp_path / "mounts", [str(data)])
    (data / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFailed, match="is no folder any more"):
        await mounts.stage(function)
    (data / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFailed, match="leads out of the folders"):
        await mounts.stage(function)


async def test_a_state_folder_that_cannot_be_written_is_said(functions: Path, tmp_path: Path) -> None:
    """With the folder's name, and as the end of an invocation, not of the node."""
    own(functions)
    (tmp_path / "mounts").write_text("a file")
    with pytest.raises(EnvironmentFailed, match="cannot be copied to"):
        await Mounts(tmp_path / "mounts").stage(only(functions))


def test_a_failed_mount_can_be_told_like_any_environment_that_failed() -> None:
    """Whoever waits for an environment asks whose it is, and whether its builder was killed."""
    failed: EnvironmentFailed = MountFailed("f", "assets", "is gone")

    assert (failed.name, failed.detail, failed.interrupted) == ("f", "assets: is gone", False)
