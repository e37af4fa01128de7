"""Secrets on a real node: they reach the functions that name them and nobody and nothing else, and are turned over while it runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node import Node, command, end, head, ready, running, start, stop, write_function

pytestmark = pytest.mark.timeout(60)  # each of its commands is a process

TOKEN, OTHER = "hf_Tell-Nobody/0123456789", "xoxb-Of-Acme-9876543210"
ONE = "import os\ndef handle(event, ctx):\n    print('it is', ctx.secrets['hf_token'])\n    return [ctx.secrets['hf_token'], os.stat('/proc/self').st_ino]\n"
FAILS = "def handle(event, ctx):\n    raise ValueError('denied: ' + ctx.secrets['hf_token'])\n"
WAITS = """
import os, time
def handle(event: str, ctx):
    if event != "/":
        open(event + ".began", "w").close()
    while not os.path.exists(event):
        time.sleep(0.01)
    return ctx.secrets['hf_token']
"""
MISSES = "def handle(event, ctx):\n    return ctx.secrets['nowhere']\n"
NAMED = 'secrets = ["hf_token"]\n'


def put(folder: Path, name: str, value: str) -> None:
    """As a careful operator changes a secret: nobody ever reads half of it."""
    path = folder / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(f"{value}\n")
    unfinished.rename(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a secret of the default tenant, another of acme, and functions of both."""
    root = tmp_path_factory.mktemp("project")
    secrets, functions = root / "secrets", root / "functions"
    secrets.mkdir(mode=0o700)
    put(secrets, "hf_token", TOKEN)
    put(secrets / "acme", "hf_token", OTHER)
    put(secrets / "acme", "only", OTHER)
    write_function(functions, "one", ONE, NAMED)
    write_function(functions, "ours", ONE, f'tenant = "acme"\n{NAMED}')
    write_function(functions, "fails", FAILS, f'{NAMED}[[trigger]]\nsubject = "secrets.fails"\n')
    write_function(functions, "waits", WAITS, NAMED)
    write_function(functions, "queues", WAITS, f"{NAMED}[scale]\nmax_workers = 1\n")
    write_function(functions, "misses", MISSES, 'secrets = ["nowhere"]\n[[trigger]]\nsubject = "secrets.misses"\n')
    write_function(functions, "reaches", MISSES.replace("nowhere", "only"), 'secrets = ["only"]\n')
    write_function(functions, "warm", ONE, f"{NAMED}[scale]\nmin_warm = 1\n")
    (root / "faas.toml").write_text('[secrets]\nfolder = "secrets"\n')
    return root


@pytest.fixture(scope="module")
async def node(root: Path) -> AsyncIterator[Node]:
    options = ("--config", str(root / "faas.toml"), "--environments", "current", "--verbose")
    async with running(root / "functions", root / "state", *options) as node:
        await node.watch()
        yield node


async def result(node: Node, function: str, data: bytes = b"1", tenant: str = "default") -> object:
    reply = await node.client.request(f"faas.invoke.{tenant}.{function}", data, timeout=8)
    assert end(reply)[0] == "succeeded", reply.data
    return json.loads(reply.data)


def below(folder: Path) -> bytes:
    """All that the files of a folder hold."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def test_a_function_gets_the_secret_of_its_own_tenant(node: Node) -> None:
    """One name, two tenants, two values."""
    mine, theirs = await result(node, "one"), await result(node, "ours", tenant="acme")

    assert isinstance(mine, list)
    assert isinstance(theirs, list)
    assert (mine[0], theirs[0]) == (TOKEN, OTHER)


async def test_a_secret_of_another_tenant_is_not_there(node: Node) -> None:
    """Naming it is all that a function can do, and that leads into its own tenant's folder."""
    reply = await node.request("reaches", b"1")

    assert end(reply) == ("failed", "environment_failed")
    assert json.loads(reply.data)["detail"].startswith("secret only: there is no ")
    assert OTHER not in reply.data.decode() + str(head(reply))


async def test_a_function_that_is_registered_under_one_tenant_and_is_anothers_is_not_served(node: Node) -> None:
    """Who may write the entries of one tenant alone would else have the secrets of another by what its bundle says."""
    bucket = await node.client.jetstream().key_value("FAAS_REGISTRY")
    entry = json.loads((await bucket.get("acme.ours")).value or b"")
    await bucket.put("default.ours", json.dumps({**entry, "tenant": "default"}).encode())
    subject, reports = f"faas.node.{node.info['node']}.functions", {}
    async with asyncio.timeout(8):
        while ("default", "ours") not in reports:
            answer = await node.client.request(subject, b"", timeout=5)
            reports = {(report["tenant"], report["name"]): report for report in json.loads(answer.data)}

    assert reports["default", "ours"]["state"] == "invalid"
    assert "its bundle is of ours of tenant acme, and not of ours of default" in reports["default", "ours"]["error"]
    assert reports["acme", "ours"]["state"] == "ready"
    await bucket.delete("default.ours")


async def test_a_missing_secret_ends_an_invocation_with_its_name_and_what_to_type(node: Node, root: Path) -> None:
    """Durable and synchronous alike; the function is served all the same, and runs once the secret is there."""
    reply, outcome = await node.request("misses", b"1"), await node.event("secrets.misses", b"1", id="missing-1")
    path = root / "secrets" / "nowhere"

    assert end(reply) == end(outcome) == ("failed", "environment_failed")
    assert json.loads(reply.data)["detail"] == f"secret nowhere: there is no {path}; write it with install -m 600 /dev/stdin {path}"

    put(root / "secrets", "nowhere", "found-at-last")
    assert await result(node, "misses") == "found-at-last"

    path.unlink()
    assert end(await node.request("misses", b"1")) == ("failed", "environment_failed")


async def test_a_secret_is_in_nothing_that_the_node_keeps_says_or_shows(node: Node, root: Path) -> None:
    """Outcomes, dead letters, logs, usage, the registry, its bundles, the state folder, command lines and environments."""
    failed = await node.event("secrets.fails", b"1", id="fails-1")
    assert b"denied: [secret hf_token]" in failed.data
    await result(node, "one")
    code, listed, _ = await command("functions", "one", "--json", "--state", str(node.state))
    assert code == 0
    _, logged, _ = await command("logs", "one", "--state", str(node.state))
    assert "it is [secret hf_token]" in logged
    letter = await node.letter("fails", head(failed)["Faas-Invocation"])

    shown = failed.data + str(head(failed)).encode() + letter.data + str(head(letter)).encode() + listed.encode() + logged.encode()
    for pid in await descendants(node.process.pid):
        shown += (Path(f"/proc/{pid}/cmdline")).read_bytes() + (Path(f"/proc/{pid}/environ")).read_bytes()

    assert TOKEN.encode() not in shown + below(node.state)


async def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


async def test_a_function_shows_the_version_of_its_secrets_and_never_their_value(node: Node) -> None:
    """So that an operator sees whether a node has taken up a rotation."""
    _, out, _ = await command("functions", "one", "--json", "--state", str(node.state))
    _, text, _ = await command("functions", "misses", "--state", str(node.state))
    (report,) = json.loads(out)

    assert report["secrets"]["hf_token"].startswith("version ")
    assert report["declaration"]["secrets"] == ["hf_token"]
    assert "secret nowhere" in text
    assert "missing: secret nowhere: there is no " in text


async def there(path: Path) -> None:
    """Wait until a file is there."""
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(path.exists):
            pass


async def test_the_next_event_after_a_rotation_gets_the_new_value_and_what_runs_ends_on_the_old_one(node: Node, root: Path) -> None:
    """Without a restart, and nothing that is under way is lost."""
    until, at_once = root / "until-rotated", b"/"
    _, before, _ = await command("functions", "waits", "--json", "--state", str(node.state))
    running = asyncio.create_task(result(node, "waits", str(until).encode()))
    await there(Path(f"{until}.began"))
    assert await result(node, "waits", at_once) == TOKEN
    new = "hf_Another-Token-4711"
    put(root / "secrets", "hf_token", new)
    try:
        assert await result(node, "waits", at_once) == new
        assert not running.done()
        until.touch()
        assert await running == TOKEN
        assert await result(node, "waits", at_once) == new
        _, after, _ = await command("functions", "waits", "--json", "--state", str(node.state))
        assert json.loads(before)[0]["secrets"] != json.loads(after)[0]["secrets"]
    finally:
        put(root / "secrets", "hf_token", TOKEN)


async def test_a_secret_that_goes_away_while_an_invocation_waits_for_its_worker_ends_that(node: Node, root: Path) -> None:
    """It was there when the invocation got its place, and is not when the worker is made."""
    until = root / "until-queued"
    first = asyncio.create_task(node.request("queues", str(until).encode()))
    await there(Path(f"{until}.began"))
    second = asyncio.create_task(node.request("queues", b"/"))
    await asyncio.sleep(0)
    await result(node, "one")  # asked for after them, so both are there
    (root / "secrets" / "hf_token").rename(root / "secrets" / "aside")
    until.touch()
    try:
        assert end(await first) == ("succeeded", "")
        reply = await second
        assert end(reply) == ("failed", "environment_failed")
        assert json.loads(reply.data)["detail"].startswith("secret hf_token: there is no ")
    finally:
        (root / "secrets" / "aside").rename(root / "secrets" / "hf_token")
    assert await result(node, "queues", b"/") == TOKEN


async def test_idle_workers_are_replaced_though_no_event_comes(node: Node, root: Path) -> None:
    """A worker that is kept warm would hold a secret that was taken back for as long as nobody asks it for anything."""
    await result(node, "warm")
    held = {pid: Path(f"/proc/{pid}").stat().st_ino for pid in await descendants(node.process.pid)}
    put(root / "secrets", "hf_token", "hf_Yet-Another-0815")
    try:
        log = node.state / "node.log"
        async with asyncio.timeout(5):
            while not any(
                entry["event"] == "worker.replaced" and entry["function"] == "warm" for entry in map(json.loads, lines(log.read_text()))
            ):
                await asyncio.to_thread(os.stat, log)
        value, where = await result(node, "warm")  # type: ignore[misc]
        assert value == "hf_Yet-Another-0815"
        assert where not in held.values()
    finally:
        put(root / "secrets", "hf_token", TOKEN)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


# ---------------------------------------------------------------- before it starts


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[secrets]\nfolder = "functions/x"', "lies in"),
        ('[secrets]\nfolder = "."', "lies in it; give secrets a folder of their own"),
        ('[node]\nmounts = ["ROOT"]\n[secrets]\nfolder = "secrets"', "lets functions mount; move it out of there"),
        ('[secrets]\nfolder = "missing"', "is no folder; make it with mkdir -m 700"),
    ],
)
async def test_a_folder_of_secrets_that_functions_reach_is_refused_at_the_start(tmp_path: Path, toml: str, said: str) -> None:
    """It would be packed and deployed with a function, or mounted by one."""
    write_function(tmp_path / "functions", "x", ONE)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "faas.toml").write_text(toml.replace("ROOT", str(tmp_path)))
    options = ("--config", str(tmp_path / "faas.toml"), "--functions", str(tmp_path / "functions"), "--state", str(tmp_path / "state"))

    code, _, err = await command("up", *options, "--bus", "127.0.0.1:0", "--http", "127.0.0.1:0")

    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


async def test_the_doctor_says_which_secret_is_missing_before_an_event_does(root: Path, tmp_path: Path) -> None:
    """With what to type."""
    options = ("--config", str(root / "faas.toml"), "--functions", str(root / "functions"), "--state", str(tmp_path / "state"), "--json")
    code, out, err = await command("doctor", *options)
    assert out, err
    found = [finding for finding in json.loads(out) if finding["state"] == "problem" and finding["name"] == "secrets"]
    path = root / "secrets" / "nowhere"

    assert code == 1
    assert {finding["detail"].partition(":")[0] for finding in found} == {"function misses", "function reaches"}
    assert f"install -m 600 /dev/stdin {path}" in {finding["fix"] for finding in found}
    assert TOKEN not in out


async def test_secrets_of_the_environment_reach_functions_and_no_process_of_the_node(tmp_path: Path) -> None:
    """The node takes them out before it starts anything; the server of the bus and the packages that it builds inherit nothing."""
    write_function(tmp_path / "functions", "one", ONE, NAMED)
    state = tmp_path / "state"
    state.mkdir()
    environ = {"FAAS_SECRETS__PROVIDER": "environment", "FAAS_SECRET_HF_TOKEN": TOKEN, "FAAS_SECRET_ACME__X": OTHER}
    process = await start(tmp_path / "functions", state, "--environments", "current", environ=environ)
    try:
        await ready(process, state)
        code, out, err = await command("invoke", "one", "1", "--state", str(state))
        assert (code, json.loads(out)[0]) == (0, TOKEN), err
        children = (await descendants(process.pid))[1:]
        assert len(children) >= 3
        for pid in children:
            assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    finally:
        await stop(process)
