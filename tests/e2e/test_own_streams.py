"""Streams of the user's own: consumed from where a trigger says so, and never made, changed or purged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from deploying import deploy, faas, listed, served
from nats.js.api import RetentionPolicy
from node import SHORT_LEASE, Node, end, head, running, write_function

from faas.identity import invocation_id

pytestmark = pytest.mark.timeout(60)

CODE = "def handle(event, ctx):\n    return ctx.attempt\n"


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with nothing of its own."""
    root = tmp_path_factory.mktemp("streams")
    (root / "functions").mkdir()
    async with running(root / "functions", root / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        await node.watch()
        yield node


def trigger(subject: str, stream: str) -> str:
    return f'[[trigger]]\nsubject = "{subject}"\nstream = "{stream}"\n'


@pytest.mark.parametrize("retention", [RetentionPolicy.LIMITS, RetentionPolicy.WORK_QUEUE, RetentionPolicy.INTEREST])
async def test_events_of_a_stream_of_ones_own_are_run(node: Node, tmp_path: Path, retention: RetentionPolicy) -> None:
    """Whatever its retention: whoever has a stream need not copy it into ours."""
    name = retention.value
    await node.client.jetstream().add_stream(name=f"OWN_{name}", subjects=[f"own.{name}.>"], retention=retention)
    before = await node.client.jetstream().stream_info(f"OWN_{name}")
    write_function(tmp_path, f"own-{name}", CODE, trigger(f"own.{name}.*.new", f"OWN_{name}"))
    await deploy(node, tmp_path)
    outcome = await node.event(f"own.{name}.a.new", b"0", id=f"{name}-1")
    after = await node.client.jetstream().stream_info(f"OWN_{name}")
    events = await node.client.jetstream().stream_info("FAAS_EVENTS")

    assert (end(outcome), outcome.data) == (("succeeded", ""), b"1")
    assert after.config == before.config
    assert f"own.{name}.*.new" not in (events.config.subjects or [])
    assert head(outcome)["Faas-Invocation"]


@pytest.mark.parametrize("direct", [False, True])
async def test_what_waits_in_such_a_stream_is_cancelled(node: Node, tmp_path: Path, direct: bool) -> None:
    """Nobody has it, so it is looked for in the stream; one of somebody else may take no direct get."""
    name, mark = f"waits-{direct}".lower(), tmp_path / "runs"
    await node.client.jetstream().add_stream(name=f"OWN_{direct}", subjects=[f"own.{name}"], allow_direct=direct)
    code = (
        "import time\ndef handle(event: str, ctx):\n    open(event, 'w').close()\n    while not ctx.cancelled:\n        time.sleep(0.01)\n"
    )
    write_function(tmp_path / "f", name, code, trigger(f"own.{name}", f"OWN_{direct}") + "[scale]\nmax_workers = 1\n")
    await deploy(node, tmp_path / "f")
    for n in range(40):
        await node.client.jetstream().publish(f"own.{name}", str(mark).encode(), headers={"Nats-Msg-Id": f"{name}-{n}"})
    async with asyncio.timeout(8):
        while not await asyncio.to_thread(mark.exists):
            pass
    last = invocation_id("default", name, source=f"OWN_{direct}", event_id=f"{name}-39")
    answer = await faas(node, "cancel", last, "--function", name)
    await faas(node, "functions", "remove", name, "--purge")

    assert answer["cancelled"]
    assert end(await node.outcome(f"{name}-39")) == ("cancelled", "cancelled")


async def test_its_function_can_be_submitted_to_as_any_other(node: Node, tmp_path: Path) -> None:
    """It has two consumers, on two streams."""
    await node.client.jetstream().add_stream(name="OWN_SUBMIT", subjects=["own.submit"])
    write_function(tmp_path, "both-ways", CODE, trigger("own.submit", "OWN_SUBMIT"))
    await deploy(node, tmp_path)

    assert end(await node.event("own.submit", b"0", id="both-1")) == ("succeeded", "")
    assert end(await node.event("faas.submit.default.both-ways", b"0", id="both-2")) == ("succeeded", "")


async def test_a_stream_that_is_not_there_yet_is_waited_for(node: Node, tmp_path: Path) -> None:
    """The function is invalid meanwhile, and says what is missing; nobody has to deploy it again."""
    write_function(tmp_path, "early", CODE, trigger("own.early", "OWN_EARLY"))
    (deployed,) = await faas(node, "deploy", str(tmp_path))
    async with asyncio.timeout(8):
        while not (report := await listed(node, "early")):
            pass
    await node.client.jetstream().add_stream(name="OWN_EARLY", subjects=["own.early"])
    async with asyncio.timeout(12):
        while (now := await listed(node, "early")) is None or now["state"] != "ready":
            pass

    assert report["state"] == "invalid"
    assert "there is no stream OWN_EARLY on this bus; create it" in report["error"]
    assert now["version"] == deployed["version"]
    assert end(await node.event("own.early", b"0", id="early-1")) == ("succeeded", "")


async def test_a_subject_that_the_stream_does_not_take_is_said(node: Node, tmp_path: Path) -> None:
    """No event would ever come, and nothing would say so."""
    await node.client.jetstream().add_stream(name="OWN_NARROW", subjects=["own.narrow.a"])
    write_function(tmp_path, "wide", CODE, trigger("own.narrow.*", "OWN_NARROW"))
    await faas(node, "deploy", str(tmp_path))
    async with asyncio.timeout(8):
        while not (report := await listed(node, "wide")):
            pass

    assert "the stream OWN_NARROW does not take all of own.narrow.*; it takes own.narrow.a" in report["error"]


async def test_a_subject_of_such_a_stream_without_its_name_is_an_error_with_the_way_out(node: Node, tmp_path: Path) -> None:
    """Two streams cannot hold one subject."""
    await node.client.jetstream().add_stream(name="OWN_TAKEN", subjects=["own.taken"])
    write_function(tmp_path, "taken", CODE, '[[trigger]]\nsubject = "own.taken"\n')
    await faas(node, "deploy", str(tmp_path))
    async with asyncio.timeout(8):
        while not (report := await listed(node, "taken")):
            pass

    assert report["state"] == "invalid"
    assert 'take it from there with stream = "OWN_TAKEN"' in report["error"]


async def test_a_purge_of_the_function_leaves_the_stream_alone(node: Node, tmp_path: Path) -> None:
    """Its consumer was ours, what is in it is not."""
    await node.client.jetstream().add_stream(name="OWN_KEPT", subjects=["own.kept"])
    write_function(tmp_path, "kept", CODE, trigger("own.kept", "OWN_KEPT"))
    await deploy(node, tmp_path)
    await node.event("own.kept", b"0", id="kept-1")
    await faas(node, "functions", "remove", "kept", "--purge")
    await served(node, "kept", None)
    async with asyncio.timeout(8):
        while await node.client.jetstream().consumers_info("OWN_KEPT"):
            pass

    assert (await node.client.jetstream().stream_info("OWN_KEPT")).state.messages == 1
