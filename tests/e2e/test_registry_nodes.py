"""The registry as its users meet it: deployed, replaced while it runs, rolled back, withdrawn, purged, and followed by a node without a folder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import pytest
from deploying import answer, deploy, faas, listed, served
from node import SHORT_LEASE, Node, command, running, start, stop, write_function

pytestmark = pytest.mark.timeout(60)  # each of its commands is a process

QUICK = ("--environments", "current")  # nothing has to be built
CODE = "def handle(event):\n    return {answer}\n"
SLOW = "import time\ndef handle(event: str):\n    open(event, 'w').close()\n    time.sleep(1.5)\n    return {answer}\n"


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with one function of its own; the tests deploy theirs."""
    root = tmp_path_factory.mktemp("registry")
    write_function(root / "functions", "own", CODE.format(answer=1))
    async with running(root / "functions", root / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        await node.watch()
        yield node


async def test_a_function_of_another_folder_is_served_while_the_node_runs(node: Node, tmp_path: Path) -> None:
    """Deploying is an act of its own: nothing has to be restarted, and nothing copied to the node."""
    write_function(tmp_path, "late", CODE.format(answer=7), '[[trigger]]\nsubject = "registry.late"\n')
    await deploy(node, tmp_path)

    assert (await answer(node, "late"))[0] == b"7"
    assert (await node.event("registry.late", b"0", id="late-1")).data == b"7"
    assert (await answer(node, "own"))[0] == b"1"


async def test_another_version_takes_over_and_what_runs_ends_on_the_old_one(node: Node, tmp_path: Path) -> None:
    """A deploy must cost nobody a call."""
    mark = tmp_path / "running"
    write_function(tmp_path / "f", "swap", SLOW.format(answer=1))
    await deploy(node, tmp_path / "f")
    _, before = await answer(node, "swap", str(mark).encode())
    mark.unlink()
    running_on_old = asyncio.create_task(answer(node, "swap", str(mark).encode()))
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(mark.exists):
            pass
    write_function(tmp_path / "f", "swap", CODE.format(answer=2))
    await deploy(node, tmp_path / "f")
    result, after = await answer(node, "swap")

    assert result == b"2"
    assert after != before
    assert await running_on_old == (b"1", before)


async def test_a_trigger_that_moves_with_a_version_is_taken_from_its_new_place(node: Node, tmp_path: Path) -> None:
    """The subjects are the version's too."""
    write_function(tmp_path, "moves", CODE.format(answer=1), '[[trigger]]\nsubject = "registry.here"\n')
    await deploy(node, tmp_path)
    assert (await node.event("registry.here", b"0", id="here-1")).data == b"1"
    write_function(tmp_path, "moves", CODE.format(answer=2), '[[trigger]]\nsubject = "registry.there"\n')
    await deploy(node, tmp_path)

    assert (await node.event("registry.there", b"0", id="there-1")).data == b"2"


async def test_a_roll_back_serves_the_version_before(node: Node, tmp_path: Path) -> None:
    """The quickest way out of a bad deploy, without the folder that it came from."""
    for n in (1, 2):
        write_function(tmp_path, "back", CODE.format(answer=n))
        await deploy(node, tmp_path)
    rolled = await faas(node, "rollback", "back")
    await served(node, "back", rolled["version"])

    assert (await answer(node, "back")) == (b"1", rolled["version"])
    assert rolled["previous"] != rolled["version"]
    assert "there are: " in await faas(node, "rollback", "back", "zz", fails=True)
    assert "no function nosuch" in await faas(node, "rollback", "nosuch", fails=True)


async def test_a_version_that_cannot_be_served_leaves_the_one_before(node: Node, tmp_path: Path) -> None:
    """And both are said, so that its author finds out and nobody else notices."""
    write_function(tmp_path, "breaks", CODE.format(answer=1), '[[trigger]]\nsubject = "registry.breaks.in"\n')
    write_function(tmp_path, "other", CODE.format(answer=1), '[[trigger]]\nsubject = "registry.*.out"\n')
    await deploy(node, tmp_path)
    before = await listed(node, "breaks")
    write_function(tmp_path, "breaks", CODE.format(answer=2), '[[trigger]]\nsubject = "registry.breaks.*"\n')
    await faas(node, "deploy", str(tmp_path))
    async with asyncio.timeout(8):
        while not (report := await listed(node, "breaks")) or "error" not in report:
            pass

    assert before is not None
    assert (report["state"], report["version"]) == ("ready", before["version"])
    assert "overlaps in part" in report["error"]
    assert f"the version {before['version']} is served instead" in report["error"]
    assert (await answer(node, "breaks"))[0] == b"1"


async def test_a_withdrawn_function_takes_nothing_new_and_its_backlog_waits_for_it(node: Node, tmp_path: Path) -> None:
    """What was acknowledged is kept; what can no longer be kept is not acknowledged."""
    mark = tmp_path / "running"
    write_function(tmp_path / "f", "away", SLOW.format(answer=5), '[[trigger]]\nsubject = "registry.away"\n[scale]\nmax_workers = 1\n')
    await deploy(node, tmp_path / "f")
    body = str(mark).encode()
    for n in range(5):
        await node.client.jetstream().publish("registry.away", body, headers={"Nats-Msg-Id": f"away-{n}"})
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(mark.exists):
            pass
    removed = await faas(node, "functions", "remove", "away")
    await served(node, "away", None)

    assert removed["waiting"] >= 1
    assert (await node.outcome("away-0")).data == b"5"
    with pytest.raises(nats.errors.NoRespondersError):
        await node.client.request("registry.away", body, timeout=2)
    with pytest.raises(nats.errors.NoRespondersError):
        await node.request("away", body)
    assert "away-4" not in node.outcomes

    brought = await faas(node, "rollback", "away")
    await served(node, "away", brought["version"])
    for n in range(5):
        assert (await node.outcome(f"away-{n}", 20)).data == b"5"


async def test_a_purged_function_leaves_nothing_that_waits(node: Node, tmp_path: Path) -> None:
    """Deployed again it begins anew."""
    write_function(tmp_path, "purged", CODE.format(answer=5), '[[trigger]]\nsubject = "registry.purged"\n')
    await deploy(node, tmp_path)
    await faas(node, "functions", "remove", "purged")
    await served(node, "purged", None)
    await faas(node, "functions", "remove", "purged", "--purge")
    consumers = await node.client.jetstream().consumers_info("FAAS_EVENTS")

    assert [info.name for info in consumers if info.name.startswith("default-purged")] == []
    assert "no function purged" in await faas(node, "rollback", "purged", fails=True)
    await deploy(node, tmp_path)
    assert (await node.event("registry.purged", b"0", id="purged-1")).data == b"5"


async def test_a_registration_that_a_node_cannot_read_costs_nothing_that_waits(node: Node, tmp_path: Path) -> None:
    """A newer node may write what an older one cannot read, and a hand may slip: what it serves it goes on serving, and drops no backlog."""
    write_function(tmp_path, "unread", CODE.format(answer=5), '[[trigger]]\nsubject = "registry.unread"\n')
    await deploy(node, tmp_path)
    bucket = await node.client.jetstream().key_value("FAAS_REGISTRY")
    await bucket.put("default.unread", b'{"written": "by a later version"}')
    write_function(tmp_path, "behind", CODE.format(answer=6))
    await deploy(node, tmp_path, "behind")  # by then the node has read the other

    assert (await node.event("registry.unread", b"0", id="unread-1")).data == b"5"
    assert "registration.unreadable" in (node.state / "node.log").read_text()


async def test_functions_lists_the_withdrawn_ones_when_asked(node: Node, tmp_path: Path) -> None:
    """By default they are not there: nobody can call them."""
    write_function(tmp_path, "hidden", CODE.format(answer=5))
    await deploy(node, tmp_path)
    await faas(node, "functions", "remove", "hidden")
    await served(node, "hidden", None)
    usual = {report["name"] for report in await faas(node, "functions")}
    every = {report["name"]: report["state"] for report in await faas(node, "functions", "--withdrawn")}

    assert "own" in usual
    assert "hidden" not in usual
    assert every["hidden"] == "withdrawn"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch/folder",), "no folder nosuch/folder"),
        (("{}", "nosuch"), "no function nosuch in"),
        (("{}/empty",), "no functions in"),
    ],
)
async def test_a_deploy_of_nothing_is_a_sentence(node: Node, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """It says what to type."""
    (tmp_path / "empty").mkdir()
    write_function(tmp_path, "here", CODE.format(answer=5))
    code, out, err = await command("deploy", *(text.format(tmp_path) for text in arguments), "--nats", node.info["nats"])

    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


async def test_a_broken_function_is_not_deployed_and_the_others_are(node: Node, tmp_path: Path) -> None:
    """The last good version of it stays."""
    write_function(tmp_path, "fine", CODE.format(answer=5))
    write_function(tmp_path, "typo", CODE.format(answer=5), "timeoutt = 1\n")
    code, out, err = await command("deploy", str(tmp_path), "--json", "--nats", node.info["nats"])

    assert code == 1
    assert [deployed["name"] for deployed in json.loads(out)] == ["fine"]
    assert "typo/function.toml: line 1: timeoutt: unknown key" in json.loads(err)["detail"]


async def test_buckets_that_somebody_deletes_are_made_again_and_what_is_served_stays(node: Node, tmp_path: Path) -> None:
    """A slip of an administrator takes no function from its callers; what is deployed next is served as ever."""
    for bucket in ("KV_FAAS_REGISTRY", "OBJ_FAAS_BUNDLES", "KV_FAAS_NODES"):
        await node.client.jetstream().delete_stream(bucket)
    assert (await answer(node, "own"))[0] == b"1"
    write_function(tmp_path, "afterwards", CODE.format(answer=8))
    await deploy(node, tmp_path)
    async with asyncio.timeout(20):
        while node.info["node"] not in {found["name"] for found in await faas(node, "nodes")}:
            pass

    assert (await answer(node, "afterwards"))[0] == b"8"
    assert (await answer(node, "own"))[0] == b"1"


async def test_a_deploy_that_is_heard_before_it_is_stored_is_looked_for_again(node: Node) -> None:
    """Hearing is faster than the disk now and then; whoever deploys and publishes was told for five seconds that nothing takes it."""
    looks = await node.client.subscribe("$JS.API.STREAM.INFO.KV_FAAS_REGISTRY")
    refused = {"Nats-Expected-Last-Sequence": "4000000000"}
    answered = await node.client.request("$KV.FAAS_REGISTRY.default.own", b"", headers=refused)  # heard, and never stored

    assert "error" in json.loads(answered.data)
    async with asyncio.timeout(4):  # two of these come within 5 s anyway
        for _ in range(3):
            await looks.next_msg(timeout=4)
    await looks.unsubscribe()


# ---------------------------------------------------------------- the folder of a node, at its start


async def versions(functions: Path, state: Path) -> dict[str, str]:
    """Start a node, and what it serves."""
    async with running(functions, state, *QUICK) as node:
        return {report["name"]: report["version"] for report in await faas(node, "functions")}


async def test_a_function_that_left_the_folder_is_withdrawn_and_comes_back_with_it(tmp_path: Path) -> None:
    """What it has accepted waits meanwhile; the version is the same."""
    functions, state = tmp_path / "functions", tmp_path / "state"
    for name in ("stays", "leaves"):
        write_function(functions, name, CODE.format(answer=1))
    before = await versions(functions, state)
    (functions / "leaves").rename(tmp_path / "leaves")
    without = await versions(functions, state)
    (tmp_path / "leaves").rename(functions / "leaves")

    assert set(before) == {"stays", "leaves"}
    assert set(without) == {"stays"}
    assert await versions(functions, state) == before


async def test_a_restart_undoes_no_roll_back_and_no_removal(tmp_path: Path) -> None:
    """The start of a node deploys what has changed in its folder, and no more: else a crash would bring the bad version back."""
    functions, state = tmp_path / "functions", tmp_path / "state"
    for name in ("rolled", "removed"):
        write_function(functions, name, CODE.format(answer=1))
    before = await versions(functions, state)
    write_function(functions, "rolled", CODE.format(answer=2))
    async with running(functions, state, *QUICK) as node:
        await faas(node, "rollback", "rolled")
        await faas(node, "functions", "remove", "removed")
    after = await versions(functions, state)
    write_function(functions, "rolled", CODE.format(answer=3))
    write_function(functions, "removed", CODE.format(answer=3))
    changed = await versions(functions, state)

    assert after == {"rolled": before["rolled"]}
    assert set(changed) == {"rolled", "removed"}
    assert changed["rolled"] != before["rolled"]


async def test_a_spec_that_breaks_leaves_the_last_good_version_serving_over_a_restart(tmp_path: Path) -> None:
    """A typo in a file is no reason to take a function away from its callers."""
    functions, state = tmp_path / "functions", tmp_path / "state"
    write_function(functions, "typed", CODE.format(answer=1))
    before = await versions(functions, state)
    write_function(functions, "typed", CODE.format(answer=2), "timeoutt = 1\n")
    async with running(functions, state, *QUICK) as node:
        (report,) = await faas(node, "functions")

        assert (report["state"], report["version"]) == ("ready", before["typed"])
        assert report["error"].startswith("typed/function.toml: line 1: timeoutt: unknown key")
        assert (await answer(node, "typed")) == (b"1", before["typed"])


async def test_a_node_without_a_folder_serves_what_others_deployed(node: Node, tmp_path: Path) -> None:
    """Its code comes over the bus; after the other one is gone it serves alone."""
    write_function(tmp_path / "functions", "carried", CODE.format(answer=9))
    await deploy(node, tmp_path / "functions")
    async with running(tmp_path / "nothing", tmp_path / "state", "--nats", node.info["nats"], *QUICK) as bare:
        own = await listed(bare, "carried")

        assert own is not None
        assert own["state"] == "ready"
        assert "carried" in bare.info["functions"]
        assert {found["name"] for found in await faas(node, "nodes")} == {node.info["node"], bare.info["node"]}
    assert [found["name"] for found in await faas(node, "nodes")] == [node.info["node"]]


async def test_nodes_with_different_folders_never_fight(node: Node, tmp_path: Path) -> None:
    """The second one's start is a deploy; after it both serve the same, and neither changes it again."""
    for n in (1, 2):
        write_function(tmp_path / f"folder{n}", "shared", CODE.format(answer=n))
    write_function(tmp_path / "folder1", "only", CODE.format(answer=1))
    options = ("--nats", node.info["nats"], *QUICK)
    async with running(tmp_path / "folder1", tmp_path / "state1", *options) as one:
        first = await listed(one, "shared")
        async with running(tmp_path / "folder2", tmp_path / "state2", *options) as two:
            second = await listed(two, "shared")
            assert first is not None
            assert second is not None
            assert first["version"] != second["version"]
            await served(one, "shared", second["version"])
            assert await listed(two, "only") == await listed(one, "only")
    process = await start(tmp_path / "folder1", tmp_path / "state1", *options)
    await stop(process)

    registered = {report["name"]: report["version"] for report in await faas(node, "functions")}
    assert registered["shared"] == second["version"]
    assert "only" in registered


@pytest.mark.timeout(90)
async def test_a_node_that_was_given_narrower_lists_serves_nothing_beyond_them(tmp_path: Path) -> None:
    """Whoever deployed it may have had another faas.toml; what a node publishes for a tenant stays within its own."""
    write_function(
        tmp_path / "functions", "wide", "def handle(event):\n    return event\n", 'tenant = "acme"\n[output]\npublish = "wide.out"\n'
    )
    narrow = tmp_path / "narrow.toml"
    narrow.write_text('[[tenant]]\nname = "acme"\npublish = ["acme.>"]\n')
    async with running(tmp_path / "functions", tmp_path / "one", "--environments", "current") as one:
        options = ("--nats", one.info["nats"], "--config", str(narrow), "--environments", "current")
        async with running(tmp_path / "none", tmp_path / "two", *options) as two:
            answers = [
                json.loads((await one.client.request(f"faas.node.{node.info['node']}.functions", b"", timeout=8)).data)
                for node in (one, two)
            ]
    (here,), (there,) = answers

    assert (here["state"], there["state"]) == ("ready", "invalid")
    assert there["error"].startswith("wide/function.toml: output.publish: wide.out: the tenant acme may publish to acme.> alone")
