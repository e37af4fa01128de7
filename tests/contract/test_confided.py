"""What a worker does with secrets: where they are, who else sees them, and that nothing that it says shows them."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import msgspec
import pytest
from conftest import Printed, death_of, failure_of, invoke_message, load_message, result_of
from processes import is_alive

from faas.pool.backend import Sandbox
from faas.pool.grants import Granted
from faas.pool.worker import Worker
from faas.worker import wire
from faas.worker.redaction import Redactor

TOKEN = "hf_Tell-Nobody/0123456789"
VALUES = {"hf_token": TOKEN, "db": "user:pass word@host"}
HIDDEN = "[secret hf_token]"

SEEN = """
import os
def handle(event, ctx):
    folder = ctx.secrets.folder
    file = folder / "hf_token"
    status, above = file.stat(), folder.stat()
    return {
        "values": dict(ctx.secrets), "shown": f"{ctx.secrets!r} {ctx.secrets}", "names": sorted(os.listdir(folder)), "file": file.read_text(),
        "mode": status.st_mode & 0o7777, "folder_mode": above.st_mode & 0o777, "owner": status.st_uid == os.geteuid(),
        "folder": str(folder), "mounts": open("/proc/self/mounts").read(), "environ": dict(os.environ),
        "pid": os.getpid(), "cmdline": open("/proc/self/cmdline").read(), "kernel": open("/proc/self/environ", "rb").read().hex(),
    }
"""


async def confided(worker: Worker, code: str, values: dict[str, str] = VALUES) -> wire.Loaded | wire.LoadFailed:
    """Load it as the pool does."""
    worker.lease()
    worker.grant(Granted("v1", values, Redactor({name: [value.encode()] for name, value in values.items()})))
    return await worker.load(msgspec.structs.replace(load_message(code), secrets=values))


async def test_a_handler_has_its_secrets_by_name_and_as_files_that_no_other_user_reads(spare: Worker) -> None:
    """A str for most, a path for libraries that want one."""
    await confided(spare, SEEN)
    seen = await result_of(spare, invoke_message())
    assert isinstance(seen, dict)

    assert seen["values"] == VALUES
    assert (seen["names"], seen["file"]) == (["db", "hf_token"], TOKEN)
    assert (seen["mode"], seen["folder_mode"], seen["owner"]) == (0o400, 0o700, True)


async def test_secrets_are_neither_in_the_environment_nor_on_the_command_line(spare: Worker) -> None:
    """Every program that a handler starts inherits the one, and everybody on the machine reads the other."""
    await confided(spare, SEEN)
    seen = await result_of(spare, invoke_message())
    assert isinstance(seen, dict)

    assert TOKEN not in json.dumps(seen["environ"]) + seen["cmdline"]
    assert TOKEN.encode() not in bytes.fromhex(seen["kernel"])
    assert "faas" in seen["cmdline"]


async def test_printing_all_secrets_shows_their_names_alone(spare: Worker) -> None:
    """`print(ctx)` while something is looked for must not need to be hidden afterwards."""
    await confided(spare, SEEN)
    seen = await result_of(spare, invoke_message())
    assert isinstance(seen, dict)

    assert seen["shown"] == "<secrets hf_token, db> <secrets hf_token, db>"


async def test_files_of_secrets_lie_on_no_disk_and_the_node_does_not_see_them(spare: Worker) -> None:
    """On a tmpfs of the worker's own, where that is permitted: nothing to remove where the node is killed, nothing for others to open."""
    await confided(spare, SEEN)
    seen = await result_of(spare, invoke_message())
    assert isinstance(seen, dict)
    mounts = [line.split() for line in seen["mounts"].splitlines()]
    own = [fields for fields in mounts if fields[1] == seen["folder"]]
    if not own:
        pytest.skip("mount namespaces are not permitted here")

    assert own[0][2] == "tmpfs"
    assert {"nosuid", "nodev", "noexec"} <= set(own[0][3].split(","))
    assert list(Path(seen["folder"]).iterdir()) == []
    assert seen["folder"] not in Path("/proc/self/mounts").read_text()


async def test_the_folder_of_secrets_goes_with_its_worker_however_that_ends(spare: Worker) -> None:
    """A machine that runs for months must not gather them."""
    await confided(spare, SEEN)
    seen = await result_of(spare, invoke_message())
    assert isinstance(seen, dict)
    folder = Path(seen["folder"])
    assert folder.is_dir()

    spare.kill()
    await death_of(spare)

    assert not folder.exists()


async def test_a_worker_of_a_function_without_secrets_has_none_and_no_folder(spare: Worker) -> None:
    """Nothing is paid for what is not used, and asking for one says what to type."""
    await confided(spare, "def handle(event, ctx):\n    print(ctx.secrets, ctx.secrets.folder)\n    return ctx.secrets['hf_token']\n", {})
    failed = await failure_of(spare, invoke_message())

    assert 'name it in secrets = ["hf_token"] of function.toml' in failed.detail


async def test_no_process_above_the_worker_ever_holds_a_secret(sandbox: Sandbox, spare: Worker) -> None:
    """The zygote forks the next worker, whose function may have other secrets after a rotation, and an init is there longer."""
    if os.geteuid() != 0:
        pytest.skip("only root may look into their memory")
    await confided(spare, SEEN)
    await result_of(spare, invoke_message())

    above = ancestors(spare.pid)
    found = [pid for pid in above if TOKEN.encode() in memory(pid)]

    assert len(above) >= 3
    assert TOKEN.encode() in memory(spare.pid)
    assert found == []


def ancestors(pid: int) -> list[int]:
    """The processes above one, up to this one."""
    found: list[int] = []
    while (pid := int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])) not in (0, 1, os.getpid()):
        found.append(pid)
    assert all(map(is_alive, found))
    return found


def memory(pid: int) -> bytes:
    """All private memory of a process that can be read."""
    held = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if fields[1] == "rw-p":
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                os.lseek(file.fileno(), begin, os.SEEK_SET)
                try:
                    held.append(file.read(end - begin))
                except OSError:
                    continue
    return b"".join(held)


# ---------------------------------------------------------------- what it says


PRINTS = f"""
import base64, logging, os, subprocess, sys
TOKEN = {TOKEN!r}.replace("{TOKEN}", "")
def handle(event, ctx):
    token = ctx.secrets["hf_token"]
    print("plain", token)
    print("split ", end=""); print(token[:9], end=""); print(token[9:])
    print("basic", base64.b64encode(f"me:{{token}}".encode()).decode())
    logging.getLogger("app").warning("logged %s", token)
    ctx.progress(0.5, "with " + token)
    os.write(1, b"raw " + token[:9].encode()); os.write(1, token[9:].encode() + b"\\n")
    subprocess.run(["sh", "-c", 'echo child "$(cat ' + str(ctx.secrets.folder / "hf_token") + ')" >&2'], check=True)
    print("y" * 8185 + token)
    os.write(2, b"z" * 8180 + token.encode() + b"\\n")
    sys.stdout.write("w" * 8189 + token); sys.stdout.write("!\\n")
    return token
"""


async def test_nothing_that_it_prints_or_logs_shows_a_secret(spare: Worker, printed: Printed) -> None:
    """By print, by logging, by a program that it starts, in parts, and across the places where long lines are cut."""
    await confided(spare, PRINTS.replace(TOKEN, "-"))
    assert await result_of(spare, invoke_message()) == TOKEN  # a result is the author's own
    spare.retire()
    await death_of(spare)
    lines = [line.text for whose, line in printed.whole if whose is spare]
    said = "\n".join(lines)

    for words in ("plain ", "split ", "logged ", "with ", "raw ", "child "):
        assert f"{words}{HIDDEN}" in lines
    assert "basic " in said
    for at in range(len(TOKEN) - 6):
        assert TOKEN[at : at + 7] not in said
    assert base64.b64encode(f"me:{TOKEN}".encode()).decode()[8:20] not in said
    assert said.replace("\n", "").count(HIDDEN) == 10  # a long line may be cut within what stands in its place


@pytest.mark.parametrize("raised", ["ValueError(token)", "ValueError('x' * 1990 + token)", "KeyError(token)", "SystemExit(token)"])
async def test_a_failure_shows_no_secret_in_its_detail_or_traceback(spare: Worker, raised: str) -> None:
    """They go onto the bus, into dead letters and to whoever called; a detail is cut, and not within a secret."""
    await confided(spare, f"def handle(event, ctx):\n    token = ctx.secrets['hf_token']\n    raise {raised}\n")
    failed = await failure_of(spare, invoke_message())

    assert TOKEN[:7] not in failed.detail + failed.traceback
    assert HIDDEN in failed.traceback


async def test_a_load_that_fails_shows_no_secret(spare: Worker) -> None:
    """A client that cannot log in quotes what it logged in with."""
    code = "class H:\n    def load(self, ctx):\n        raise OSError('no login with ' + ctx.secrets['hf_token'])\n    def handle(self, event):\n        pass\n"
    worker, message = spare, msgspec.structs.replace(load_message(code, handler="handler:H"), secrets=VALUES)
    worker.grant(Granted("v1", VALUES, Redactor({"hf_token": [TOKEN.encode()]})))
    answer = await worker.load(message)

    assert isinstance(answer, wire.LoadFailed)
    assert answer.detail == f"OSError: no login with {HIDDEN}"
    assert TOKEN not in answer.traceback


async def test_frames_that_a_handler_writes_itself_show_no_secret_either(spare: Worker, printed: Printed) -> None:
    """Its own code hides them first; whoever goes around that code meets the node, which hides them again."""
    code = """
import time
from faas.worker import wire
def handle(event, ctx):
    peer = ctx._send.__self__
    token = ctx.secrets["hf_token"]
    peer.send(wire.Log(stream="stdout", text="forged " + token, at=time.time()))
    peer.send(wire.Failed(reason="error", detail="forged " + token, traceback=token, run_us=0, cpu_us=0, memory_peak_bytes=0))
    time.sleep(60)
"""
    await confided(spare, code)
    failed = await failure_of(spare, invoke_message())
    spare.kill()
    await death_of(spare)

    assert failed.detail == f"forged {HIDDEN}"
    assert failed.traceback == HIDDEN
    assert printed.of(spare) == [f"forged {HIDDEN}"]


# ---------------------------------------------------------------- the wire


def test_a_long_message_is_left_in_a_file_without_its_secrets(tmp_path: Path) -> None:
    """The file is on a disk, where what was removed stays for a while."""
    load = msgspec.structs.replace(load_message("#" * 200_000), secrets=VALUES, secrets_folder="/x")

    frame = wire.encode(load, str(tmp_path), "1")

    (file,) = tmp_path.iterdir()
    assert TOKEN.encode() not in file.read_bytes()
    (body,) = wire.FrameReader().feed(frame)
    spilled = wire.decode_host(body)
    assert isinstance(spilled, wire.Spilled)
    assert spilled.secrets == VALUES


def test_the_most_secrets_that_a_function_may_have_fit_into_a_frame(tmp_path: Path) -> None:
    """Else the node could not send what it has promised."""
    most = {"x" * 60: "\u20ac" * ((wire.SECRETS_BYTES - 60) // 3)}
    for code in ("#", "#" * 200_000):
        frame = wire.encode(msgspec.structs.replace(load_message(code), secrets=most), str(tmp_path), str(len(code)))
        assert len(frame) <= wire.FRAME_LIMIT_BYTES
        assert len(list(wire.FrameReader().feed(frame))) == 1


async def test_a_large_function_gets_its_secrets_too(spare: Worker) -> None:
    """They travel beside the file that holds the rest."""
    await confided(spare, SEEN + "#" * 200_000)
    seen = await result_of(spare, invoke_message())

    assert isinstance(seen, dict)
    assert seen["values"] == VALUES


def test_a_message_that_is_shown_shows_no_secret() -> None:
    """A traceback with locals, a log line, a debugger's window."""
    load = msgspec.structs.replace(load_message("x"), secrets=VALUES)

    assert TOKEN not in f"{load!r} {load} {wire.Spilled(file='spill-x', size=1, secrets=VALUES)!r} {Granted('v', VALUES)!r}"
