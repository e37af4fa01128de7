"""What every test of a backend needs: the backend on a state folder of its own, a cheap environment, and a way to make a worker of source text."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faas.model import Environment, RuntimeProfile
from faas.pool.backend import Backend, Sandbox
from faas.pool.process import ProcessBackend
from faas.pool.worker import Worker
from faas.worker import wire

BACKENDS = ["process"]
PROFILE = RuntimeProfile(name="plain")
ENVIRONMENT = Environment(profile="plain", digest="0" * 64, python=sys.executable)
RESULT_LIMIT_BYTES = 64 * 2**20


@dataclass
class Printed:
    """The lines that workers printed, with a way to wait for one."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)  # worker, stream, line

    def take(self, worker: Worker, stream: str, line: str) -> None:
        self.lines.append((worker.id, stream, line))

    def of(self, worker: Worker, stream: str = "stdout") -> list[str]:
        return [line for id, where, line in self.lines if (id, where) == (worker.id, stream)]


def load_message(code: str, *, handler: str = "handler:handle", version: str = "v1", limit_bytes: int = RESULT_LIMIT_BYTES) -> wire.Load:
    files = (wire.File("handler.py", code.encode()),)
    return wire.Load(
        function="f", tenant="default", version=version, handler=handler, files=files, tags={"a": "b"}, result_limit_bytes=limit_bytes
    )


def invoke_message(data: bytes = b"1", *, content_type: str = "application/json", attempt: int = 1) -> wire.Invoke:
    return wire.Invoke(
        invocation_id="i" * 26, attempt=attempt, remaining_s=30.0, id="e-1", source="/s", datacontenttype=content_type, data=data
    )


@pytest.fixture
def printed() -> Printed:
    return Printed()


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path, printed: Printed) -> AsyncIterator[Backend]:
    assert request.param == "process"
    async with ProcessBackend(tmp_path / "state", "test", on_output=printed.take) as started:
        yield started


@pytest.fixture
async def sandbox(backend: Backend) -> Sandbox:
    return await backend.start(PROFILE, ENVIRONMENT)


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
