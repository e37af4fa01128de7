"""A hostile function that looks for the secrets of another one on its node: what the process pool keeps from it, and what it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from node import FAAS, PROJECT, head, ready, write_function

TOKEN = "hf_Tell-Nobody/0123456789"
NOBODY = 65534
HOLDS = "def handle(event, ctx):\n    return [ctx.secrets['hf_token'], str(ctx.secrets.folder)]\n"
LOOKS = '''
import glob, os

def holds(path):
    with open(path, "rb") as file:
        return TOKEN in file.read()

def remembers(pid):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            fields = line.split()
            if fields[1].startswith("rw"):
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                os.lseek(memory.fileno(), begin, os.SEEK_SET)
                try:
                    if TOKEN in memory.read(end - begin):
                        return True
                except OSError:
                    pass
    return False

def handle(event, ctx):
    """Every way that is known to its author."""
    global TOKEN
    TOKEN = bytes.fromhex(event["token"])
    tried, found = 0, []
    ways = [(path, lambda path=path: holds(path)) for path in [event["file"], *glob.glob(event["folder"] + "/*")]]
    for pid in [pid for pid in os.listdir("/proc") if pid.isdigit()]:
        ways += [
            (f"environ of {pid}", lambda pid=pid: holds(f"/proc/{pid}/environ")),
            (f"command line of {pid}", lambda pid=pid: holds(f"/proc/{pid}/cmdline")),
            (f"memory of {pid}", lambda pid=pid: pid != os.readlink("/proc/self") and remembers(pid)),
            (f"files of {pid}", lambda pid=pid: any(map(holds, glob.glob(f"/proc/{pid}/root{event['folder']}/*")))),
        ]
    for way, look in ways:
        try:
            tried += 1
            if look():
                found.append(way)
        except OSError:
            pass
    try:
        ctx.secrets["hf_token"]
    except KeyError:
        found.append("ctx refuses")
    return {"tried": tried, "found": found}
'''


def permitted() -> bool:
    """Whether this machine lets root become nobody, and nobody make namespaces of its own."""
    tools = all(map(shutil.which, ("unshare", "setpriv")))
    command = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "unshare", "-U", "-m", "-p", "-f", "true"]
    return os.geteuid() == 0 and tools and subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not permitted(), reason="needs root, and user namespaces for everybody else")


@pytest.fixture
def root() -> Iterator[Path]:
    """A project of nobody's; pytest's own folders are root's alone."""
    root = Path(tempfile.mkdtemp(prefix="faas-test-"))
    write_function(root / "functions", "holds", HOLDS, 'secrets = ["hf_token"]\n[scale]\nmin_warm = 1\n')
    write_function(root / "functions", "looks", LOOKS, "")
    (root / "secrets").mkdir(mode=0o700)
    (root / "secrets" / "hf_token").touch(mode=0o600)
    (root / "secrets" / "hf_token").write_text(TOKEN)
    (root / "state").mkdir(mode=0o700)
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    yield root
    shutil.rmtree(root)


@asynccontextmanager
async def of_nobody(root: Path, environ: Mapping[str, str]) -> AsyncIterator[Client]:
    """`faas up` as an ordinary user; where its interpreter lies in root's home, with nothing else of that to be seen."""
    home = Path("/root")
    inside = [Path(os.path.realpath(sys.executable)).parents[1], PROJECT, Path(sys.prefix)]
    script = "set -e\n"
    if any(path.is_relative_to(home) for path in inside):
        stays = {home / path.relative_to(home).parts[0] for path in inside if path.is_relative_to(home)}
        script += "aside=$(mktemp -d)\nmount -t tmpfs none $aside\n"
        script += "".join(f"mkdir $aside/{path.name}\nmount --bind {path} $aside/{path.name}\n" for path in stays)
        script += "mount --rbind $aside /root\nchmod 755 /root\n"
    script += 'exec setpriv --reuid $ID --regid $ID --clear-groups "$@"\n'
    options = ["--functions", "functions", "--state", "state", "--environments", "current", "--bus", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    surroundings = {**os.environ, "ID": str(NOBODY), "HOME": str(root), **environ}
    with (root / "state" / "node.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "-m", "sh", "-c", script, "sh", *FAAS, "up", *options), cwd=root, env=surroundings, stdout=log, stderr=log
        )
    try:
        info = await ready(process, root / "state")
        client = await nats.connect(info["nats"])
        try:
            yield client
        finally:
            await client.close()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def found_by_looking(client: Client, root: Path) -> list[str]:
    """Where the hostile function finds the secret that another worker holds at this moment."""
    held = await client.request("faas.invoke.default.holds", b"1", timeout=8)
    token, folder = json.loads(held.data)
    assert token == TOKEN
    question = {"token": TOKEN.encode().hex(), "folder": folder, "file": str(root / "secrets" / "hf_token")}
    reply = await client.request(
        "faas.invoke.default.looks", json.dumps(question).encode(), timeout=9, headers={"Content-Type": "application/json"}
    )
    assert head(reply)["Faas-Outcome"] == "succeeded", reply.data
    answer = json.loads(reply.data)
    assert answer["tried"] > 20
    return list(answer["found"])


async def test_a_hostile_function_of_the_same_user_finds_no_secret_of_another(root: Path) -> None:
    """Not in the node's memory or environment, not in the other worker's, not in its files: with secrets of the environment, as an ordinary user."""
    (root / "secrets" / "hf_token").unlink()
    environ = {"FAAS_SECRETS__PROVIDER": "environment", "FAAS_SECRET_HF_TOKEN": TOKEN}
    async with of_nobody(root, environ) as client:
        assert await found_by_looking(client, root) == ["ctx refuses"]


async def test_the_folder_itself_can_be_read_by_every_function_of_the_node(root: Path) -> None:
    """What the process pool cannot prevent, and what the README says: functions run as the node's own user, whose files these are."""
    async with of_nobody(root, {"FAAS_SECRETS__FOLDER": str(root / "secrets")}) as client:
        assert await found_by_looking(client, root) == [str(root / "secrets" / "hf_token"), "ctx refuses"]
