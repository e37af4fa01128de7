"""Secrets in the pool: which worker still holds what, on a real backend and a real folder."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import invoke_message, result_of
from processes import wait_for_end

from faas.config import PoolConfig, SecretsConfig
from faas.errors import SecretMissing
from faas.model import Environment, FunctionSpec, FunctionVersion, RuntimeProfile, Scale, SourceFile
from faas.pool.grants import Grants
from faas.pool.lease import Lease
from faas.pool.pool import WorkerPool
from faas.pool.process import ProcessBackend
from faas.security.secrets import Secrets
from faas.worker import wire

ENVIRONMENT = Environment(profile="plain", digest="0" * 64, python=sys.executable)
SOURCE = (SourceFile("handler.py", b"def handle(event, ctx):\n    return dict(ctx.secrets)\n"),)


def function(*secrets: str, name: str = "one", **scale: object) -> FunctionVersion:
    spec = FunctionSpec(name=name, secrets=secrets, scale=Scale(**scale))  # type: ignore[arg-type]
    return FunctionVersion(spec=spec, version=f"v-{name}", files=SOURCE)


@asynccontextmanager
async def pool(tmp_path: Path, *functions: FunctionVersion) -> AsyncIterator[WorkerPool]:
    """A pool that serves these functions, with the secrets of tmp_path/secrets."""

    async def ready(asked: RuntimeProfile) -> Environment:
        return ENVIRONMENT

    async with (
        ProcessBackend(tmp_path / "state", "test", on_output=lambda worker, line: None) as backend,
        WorkerPool.open(
            PoolConfig(slots=8), backend, ready, grants=Grants(Secrets(SecretsConfig(folder=str(tmp_path / "secrets"))))
        ) as made,
    ):
        for one in functions:
            made.serve(one, RuntimeProfile(name="plain"), eager=False)
        yield made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The file of the secret `key`."""
    (tmp_path / "secrets").mkdir(mode=0o700)
    file = tmp_path / "secrets" / "key"
    file.touch(mode=0o600)
    file.write_text("the-first-value")
    return file


async def leased(pool: WorkerPool, one: FunctionVersion) -> Lease:
    """A lease whose worker has the function; it ends cleanly."""
    lease = await pool.acquire(one.key)
    if lease.worker.version is None:
        assert isinstance(await pool.load(lease.served, lease.worker, timeout_s=9), wire.Loaded)
    lease.clean = True
    return lease


async def test_a_worker_is_warm_as_long_as_its_secrets_are_the_same(tmp_path: Path, secret: Path) -> None:
    """Touching the file, or a previous value beside it, must not cost a cold start."""
    one = function("key")
    async with pool(tmp_path, one) as workers:
        with await leased(workers, one) as first:
            pass
        secret.write_text("the-first-value\n")
        secret.with_name("key.previous").write_text("the-one-before")

        with await leased(workers, one) as second:
            assert second.worker is first.worker


async def test_an_idle_worker_that_holds_an_old_value_is_never_leased_again(tmp_path: Path, secret: Path) -> None:
    """The next event gets the new value; the old worker may run its `close`, and ends."""
    one = function("key")
    async with pool(tmp_path, one) as workers:
        with await leased(workers, one) as first:
            pass
        secret.write_text("another-value")

        assert workers.try_acquire(one.key) is None
        with await leased(workers, one) as second:
            assert second.worker is not first.worker
            assert await result_of(second.worker, invoke_message()) == {"key": "another-value"}
        assert wait_for_end(first.worker.pid)


async def test_a_worker_that_runs_while_a_secret_changes_ends_its_attempt_and_is_not_used_again(tmp_path: Path, secret: Path) -> None:
    """What is under way is never killed for it."""
    one = function("key")
    async with pool(tmp_path, one) as workers:
        with await leased(workers, one) as first:
            secret.write_text("another-value")
            assert await result_of(first.worker, invoke_message()) == {"key": "the-first-value"}
        with await leased(workers, one) as second:
            assert second.worker is not first.worker


async def test_a_change_replaces_workers_of_the_functions_that_use_it_alone(tmp_path: Path, secret: Path) -> None:
    """A rotation on a busy node must not empty it."""
    one, other = function("key"), function(name="other")
    async with pool(tmp_path, one, other) as workers:
        with await leased(workers, one), await leased(workers, other) as kept:
            pass
        secret.write_text("another-value")

        with await leased(workers, other) as again:
            assert again.worker is kept.worker


async def test_a_secret_that_is_taken_away_is_taken_from_idle_workers(tmp_path: Path, secret: Path) -> None:
    """Removing the file is how it is revoked."""
    one = function("key")
    async with pool(tmp_path, one) as workers:
        with await leased(workers, one):
            pass
        secret.unlink()

        assert workers.try_acquire(one.key) is None
        with pytest.raises(SecretMissing, match="secret key: there is no"):
            await workers.acquire(one.key)


async def test_a_secret_that_goes_away_between_turn_and_load_fails_the_load(tmp_path: Path, secret: Path) -> None:
    """A worker without what its function names must not run it."""
    one = function("key")
    async with pool(tmp_path, one) as workers:
        with await workers.acquire(one.key) as lease:
            secret.unlink()
            with pytest.raises(SecretMissing, match="secret key: there is no"):
                await workers.load(lease.served, lease.worker, timeout_s=9)


@pytest.mark.parametrize(("value", "problem"), [(b"\xff\xfe-no-text", "is no UTF-8 text"), (b"x" * 32_000, "more than 48 KiB together")])
async def test_what_cannot_be_given_to_a_function_is_said(tmp_path: Path, secret: Path, value: bytes, problem: str) -> None:
    """A webhook may verify with any bytes; a handler gets text, in one frame."""
    secret.write_bytes(value)
    secret.with_name("key2").write_bytes(value)
    one = function("key", "key2")
    async with pool(tmp_path, one) as workers:
        with await workers.acquire(one.key) as lease, pytest.raises(SecretMissing, match=problem):
            await workers.load(lease.served, lease.worker, timeout_s=9)
