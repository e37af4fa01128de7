"""A node's life as its users see it: start, refusal to start, health, drain, kill, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path

import nats
import pytest
from node import ECHO, FAAS, OWN_BUS, PROJECT, SHORT_LEASE, command, echoing, end, free, head, ready, running, start, stop, write_function

SLEEPER = "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n"
DAEMON = """
import os, subprocess, sys
def handle(event):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "4711"])
        os._exit(0)
    return 1
"""


def http(url: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def alive(text: str) -> list[int]:
    """Living processes with this in their command line; zombies do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdigit()
                and text.encode() in (folder / "cmdline").read_bytes()
                and "\nState:\tZ" not in (folder / "status").read_text()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def gone(text: str, wait_s: float = 5.0) -> bool:
    async with asyncio.timeout(wait_s):
        while await asyncio.to_thread(alive, text):
            pass
    return True


# ---------------------------------------------------------------- start


async def test_node_json_is_its_owners_alone_and_goes_with_a_clean_stop(tmp_path: Path) -> None:
    """It holds the token of the bus; and who finds it may rely on a running node."""
    write_function(tmp_path / "functions", "echo", ECHO)
    async with running(tmp_path / "functions", tmp_path / "state") as node:
        file = tmp_path / "state" / "node.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert set(node.info) == {"node", "pid", "nats", "token", "http", "pool", "functions"}
        assert node.info["functions"] == ["echo"]
        assert node.info["token"] in node.info["nats"]
        code = await stop(node.process)

    assert code == 0
    assert not file.exists()


async def test_a_state_folder_may_have_any_letters(tmp_path: Path) -> None:
    """As home folders do."""
    async with echoing(tmp_path / "caf\u00e9") as node:
        assert (await node.request("echo", b"1")).data == b"1"


async def test_health_and_readiness_are_told_over_http(tmp_path: Path) -> None:
    """For whoever restarts nodes, and whoever sends them work."""
    async with echoing(tmp_path) as node:
        assert await asyncio.to_thread(http, node.info["http"] + "/healthz") == (200, {"status": "ok"})
        assert await asyncio.to_thread(http, node.info["http"] + "/readyz") == (200, {"status": "ready"})
        status, problem = await asyncio.to_thread(http, node.info["http"] + "/nothing")

    assert (status, problem["code"]) == (404, "not_found")


async def test_a_second_node_on_the_state_folder_is_refused(tmp_path: Path) -> None:
    """Two would share one store, one token and one set of sandboxes."""
    async with echoing(tmp_path) as node:
        code, _, err = await command(*free(tmp_path / "functions", tmp_path / "state"))
        assert (await node.request("echo", b"1")).data == b"1"

    assert code == 2
    assert "another node runs" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--bus", "--http"])
async def test_a_port_in_use_is_an_error_that_names_it(tmp_path: Path, option: str) -> None:
    """And says what to do."""
    write_function(tmp_path / "functions", "echo", ECHO)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        arguments = free(tmp_path / "functions", tmp_path / "state")
        arguments[arguments.index(option) + 1] = f"127.0.0.1:{port}"
        code, _, err = await command(*arguments)

    assert code == 2
    assert str(port) in err
    assert "Traceback" not in err


async def test_a_state_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A file is in its way here: the one thing that stops root too."""
    (tmp_path / "file").write_text("")
    write_function(tmp_path / "functions", "echo", ECHO)
    code, _, err = await command(*free(tmp_path / "functions", tmp_path / "file" / "state"))

    assert code == 2
    assert "file/state" in err
    assert "Traceback" not in err


async def test_a_functions_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The commonest mistake at the first start."""
    code, _, err = await command(*free(tmp_path / "nowhere", tmp_path / "state"))

    assert code == 2
    assert "nowhere" in err
    assert "--functions" in err


async def test_a_server_that_does_not_answer_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Without its password."""
    write_function(tmp_path / "functions", "echo", ECHO)
    folders = ["--functions", str(tmp_path / "functions"), "--state", str(tmp_path / "state")]
    code, _, err = await command("up", *folders, "--http", "127.0.0.1:0", "--nats", "nats://secret@127.0.0.1:9")

    assert code == 1
    assert "127.0.0.1:9" in err
    assert "secret" not in err


async def test_without_a_nats_server_it_says_how_to_get_one(tmp_path: Path) -> None:
    """The extra was forgotten."""
    write_function(tmp_path / "functions", "echo", ECHO)
    program = "import sysconfig; sysconfig.get_path = lambda *a: '/nowhere'; from faas.cli.main import main; main()"
    process = await asyncio.create_subprocess_exec(
        FAAS[0], "-c", program, *free(tmp_path / "functions", tmp_path / "state"),
        cwd=PROJECT, env={**os.environ, "PATH": "/nowhere"}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()

    assert process.returncode == 2
    assert b'pip install "faas[local]"' in err


async def test_one_broken_function_leaves_the_others_serving(tmp_path: Path) -> None:
    """And is listed with its file and key."""
    write_function(tmp_path / "functions", "typo", ECHO, '[limits]\ntimeoutt = "3s"\n')
    async with echoing(tmp_path) as node:
        code, out, _ = await command("functions", "--json", "--state", str(tmp_path / "state"))
        listed = {row["name"]: row for row in json.loads(out)}
        assert (await node.request("echo", b"1")).data == b"1"

    assert code == 0
    assert listed["echo"]["state"] == "ready"
    assert listed["typo"]["state"] == "invalid"
    assert "typo/function.toml" in listed["typo"]["error"]
    assert "timeoutt" in listed["typo"]["error"]


# ---------------------------------------------------------------- stop


async def test_a_drain_lets_what_runs_finish_and_gives_back_what_waits(tmp_path: Path) -> None:
    """SIGTERM: the one that runs has its outcome before the node ends; the others have theirs after the next start, each once."""
    write_function(tmp_path / "functions", "slow", SLEEPER, '[[trigger]]\nsubject = "life.slow"\n[scale]\nmax_workers = 1\n')
    async with echoing(tmp_path) as node:
        stream = node.client.jetstream()
        await node.event("life.slow", b"0", id="warm")
        for n in range(4):
            await stream.publish("life.slow", b"1.0" if n == 0 else b"0", headers={"Nats-Msg-Id": f"drain-{n}"})
        await node.event("life.echo", b"1", id="others go on")
        assert await stop(node.process) == 0
        ended = set(node.outcomes)
    assert "drain-0" in ended
    assert "drain-3" not in ended

    async with echoing(tmp_path) as node:
        async with asyncio.timeout(8):
            while await node.count("FAAS_OUTCOMES", "faas.outcome.default.slow.*") < 5:
                pass
        outcomes = await node.stored("FAAS_OUTCOMES", "faas.outcome.default.slow.*")
    assert sorted(head(m)["Faas-Event-Id"] for m in outcomes) == ["drain-0", "drain-1", "drain-2", "drain-3", "warm"]
    assert {end(m) for m in outcomes} == {("succeeded", "")}


async def test_a_stop_with_nothing_running_runs_close_and_is_quick(tmp_path: Path) -> None:
    """Idle workers may put things away."""
    code = (
        "from pathlib import Path\n"
        "class H:\n    def handle(self, event):\n        return 1\n"
        f"    def close(self):\n        Path({str(tmp_path / 'closed')!r}).write_text('yes')\n"
    )
    write_function(tmp_path / "functions", "closing", code, 'handler = "handler:H"\n')
    async with echoing(tmp_path) as node:
        await node.request("closing", b"1")
        assert await stop(node.process) == 0

    assert (tmp_path / "closed").read_text() == "yes"


@pytest.mark.timeout(40)
async def test_a_killed_node_leaves_no_process_and_its_events_end_once_after_the_next_start(tmp_path: Path) -> None:
    """kill -9 in the middle of work: daemons of handlers included, and nothing that was acknowledged is lost or stored twice."""
    mark = f"faas-test-{os.getpid()}-{time.monotonic_ns()}"
    nap = f"{10**6 + os.getpid()}.{time.monotonic_ns() % 10**9}"  # in the daemon's command line, and in no other
    write_function(tmp_path / "functions", "daemon", DAEMON.replace("4711", nap))
    write_function(tmp_path / "functions", "slow", SLEEPER, '[[trigger]]\nsubject = "life.slow"\n')
    root, state = tmp_path, tmp_path / mark
    write_function(root / "functions", "echo", ECHO, '[[trigger]]\nsubject = "life.echo"\n')
    state.mkdir()
    process = await start(root / "functions", state, environ=SHORT_LEASE)
    info = await ready(process, state)
    client = await nats.connect(info["nats"], allow_reconnect=False)
    try:
        await client.request("faas.invoke.default.daemon", b"1", timeout=8)
        async with asyncio.timeout(5):
            while not await asyncio.to_thread(alive, nap):
                pass
        stream = client.jetstream()
        for n in range(30):
            await stream.publish("life.slow", b"0.2", headers={"Nats-Msg-Id": f"kill-{n}"})
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await client.close()

    assert await gone(mark)
    assert await gone(nap)
    async with running(root / "functions", state, *OWN_BUS, environ=SHORT_LEASE) as node:
        async with asyncio.timeout(20):
            while await node.count("FAAS_OUTCOMES", "faas.outcome.default.slow.*") < 30:
                pass
        outcomes = await node.stored("FAAS_OUTCOMES", "faas.outcome.default.slow.*")
        assert {head(m)["Faas-Event-Id"] for m in outcomes} == {f"kill-{n}" for n in range(30)}
        assert len(outcomes) == 30
        assert await stop(node.process) == 0


@pytest.mark.timeout(30)
async def test_a_restarted_nats_server_costs_nothing(tmp_path: Path) -> None:
    """It ends by itself, the node starts it again on its store and port, and events go on."""
    async with echoing(tmp_path, *OWN_BUS) as node:
        stream = node.client.jetstream()
        await node.event("life.echo", b"1", id="before")
        (server,) = alive(str(tmp_path / "state" / "nats" / "server.conf"))
        os.kill(server, signal.SIGKILL)
        async with asyncio.timeout(15):
            while True:
                try:
                    await stream.publish("life.echo", b"2", headers={"Nats-Msg-Id": "after"}, timeout=1)
                    break
                except (TimeoutError, nats.errors.Error):
                    continue
            while await node.count("FAAS_OUTCOMES", "faas.outcome.default.echo.*") < 2:
                pass


# ---------------------------------------------------------------- side by side


async def test_a_flood_of_one_function_does_not_hold_another_up(tmp_path: Path) -> None:
    """Slots are handed out in turn: with one slot, an event of the second waits for one attempt of the first, not for two hundred."""
    write_function(tmp_path / "functions", "flood", SLEEPER, '[[trigger]]\nsubject = "life.flood"\n')
    write_function(tmp_path / "functions", "other", ECHO, '[[trigger]]\nsubject = "life.other"\n')
    async with running(tmp_path / "functions", tmp_path / "state", environ={"FAAS_POOL__SLOTS": "1"}) as node:
        await node.watch()
        stream = node.client.jetstream()
        await node.event("life.other", b"1", id="warm")
        for n in range(200):
            await stream.publish("life.flood", b"0.05", headers={"Nats-Msg-Id": f"flood-{n}"})
        await node.event("life.other", b"1", id="other")
        before = sum(event_id.startswith("flood-") for event_id in node.outcomes)
        os.killpg(node.process.pid, signal.SIGKILL)

    assert before < 100


async def test_min_warm_workers_are_loaded_before_any_event(tmp_path: Path) -> None:
    """The first event finds a warm one."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'loaded')!r}).write_text('yes')\ndef handle(event):\n    return 1\n"
    write_function(tmp_path / "functions", "warm", code, "[scale]\nmin_warm = 1\n")
    async with echoing(tmp_path) as node:
        async with asyncio.timeout(8):
            while not (tmp_path / "loaded").exists():
                await node.request("echo", b"1")
        await asyncio.to_thread(time.sleep, 0.3)  # from its import to its place among the idle ones: nothing is said then
        answer = await node.request("warm", b"1")

    assert head(answer)["Faas-Start"] == "warm"


async def test_an_idle_worker_is_retired_after_its_keep_alive(tmp_path: Path) -> None:
    """Idle functions cost nothing."""
    write_function(tmp_path / "functions", "brief", "import os\ndef handle(event):\n    return 1\n", '[scale]\nkeep_alive = "200ms"\n')
    async with echoing(tmp_path) as node:
        await node.request("brief", b"1")
        starts = set()
        async with asyncio.timeout(8):
            while "fork" not in starts:
                await asyncio.to_thread(time.sleep, 0.4)  # longer than keep_alive: nothing is said when a worker goes
                starts.add(head(await node.request("brief", b"1"))["Faas-Start"])
