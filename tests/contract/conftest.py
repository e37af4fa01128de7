"""What every test of a backend needs: the backend on a state folder of its own, a cheap environment, and a way to make a worker of source text."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from faas.model import Environment, RuntimeProfile
from faas.pool.backend import Backend, Sandbox
from faas.pool.output import Line
from faas.pool.process import ProcessBackend
from faas.pool.worker import Worker
from faas.worker import wire

BACKENDS = ["process", "process-plain"]
PROFILE = RuntimeProfile(name="plain")
ENVIRONMENT = Environment(profile="plain", digest="0" * 64, python=sys.executable)
RESULT_LIMIT_BYTES = 64 * 2**20


@dataclass
class Printed:
    """The lines that workers printed, with a way to wait for one."""

    lines: list[tuple[Worker, str, str]] = field(default_factory=list)
    whole: list[tuple[Worker, Line]] = field(default_factory=list)

    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, worker: Worker, line: Line) -> None:
        self.whole.append((worker, line))
        self.lines.append((worker, line.stream, line.text))
        self.arrived.set()

    async def until(self, worker: Worker, count: int) -> None:
        """Wait until so many lines of its stdout have arrived."""
        while len(self.of(worker)) < count:
            self.arrived.clear()
            await self.arrived.wait()

    def of(self, worker: Worker, stream: str = "stdout") -> list[str]:
        return [line for whose, where, line in self.lines if whose is worker and where == stream]


def load_message(code: str, *, handler: str = "handler:handle", version: str = "v1", limit_bytes: int = RESULT_LIMIT_BYTES) -> wire.Load:
    files = (wire.File("handler.py", code.encode()),)
    return wire.Load(
        function="f", tenant="default", version=version, handler=handler, files=files, tags={"a": "b"}, result_limit_bytes=limit_bytes
    )


def invoke_message(data: bytes = b"1", *, content_type: str = "application/json", attempt: int = 1) -> wire.Invoke:
    return wire.Invoke(
        invocation_id="i" * 26, attempt=attempt, remaining_s=30.0, id="e-1", source="/s", datacontenttype=content_type, data=data
    )


async def result_of(worker: Worker, message: wire.Invoke) -> object:
    answer = await worker.invoke(message)
    assert isinstance(answer, wire.Result), answer
    return json.loads(answer.body)


async def failure_of(worker: Worker, message: wire.Invoke) -> wire.Failed:
    answer = await worker.invoke(message)
    assert isinstance(answer, wire.Failed), answer
    return answer


async def death_of(worker: Worker) -> None:
    """Wait until it is known to be gone."""
    if worker.state == "dead" and worker._settled:
        return
    gone = asyncio.Event()
    worker.on_lost = lambda lost: gone.set()
    await gone.wait()


@pytest.fixture(scope="session")
def printed() -> Printed:
    return Printed()


@pytest.fixture(scope="session", params=BACKENDS)
async def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, printed: Printed) -> AsyncIterator[Backend]:
    """One for all tests, which have sandboxes of their own; `process-plain` does without PID namespaces."""
    state = tmp_path_factory.mktemp("state")
    async with ProcessBackend(state, "test", on_output=printed.take, isolate=request.param == "process") as started:
        yield started


@pytest.fixture
async def sandbox(backend: Backend) -> AsyncIterator[Sandbox]:
    started = await backend.start(PROFILE, ENVIRONMENT)
    yield started
    started.kill()


@pytest.fixture
async def spare(sandbox: Sandbox) -> Worker:
    return await sandbox.fork()


Make = Callable[..., Awaitable[Worker]]


@pytest.fixture
def make(sandbox: Sandbox) -> Make:
    """A leased worker of this source text."""

    async def worker_of(code: str, **how: str | int) -> Worker:
        worker = await sandbox.fork()
        worker.lease()
        loaded = await worker.load(load_message(code, **how))  # type: ignore[arg-type]
        assert isinstance(loaded, wire.Loaded), loaded
        return worker

    return worker_of
