"""The database of what happened: rows that come in any order, questions, limits, and what becomes of a broken file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from faas.accounting import projection as module
from faas.accounting.projection import AGE_MS, Position, Projection, ProjectionAbsent
from faas.accounting.rows import Accepted, Buried, Ended, Rows, Used
from faas.runs import Filter, Run

PLACE = Position(created="c", sequence=1)


def event(invocation: str, *, at_ms: int = 100) -> Accepted:
    return Accepted(
        invocation=invocation, tenant="acme", function="resize", stream="FAAS_EVENTS", sequence=7, subject="images.a", event_id="e",
        accepted_ms=at_ms,
    )  # fmt: skip


def end(invocation: str, outcome: str = "succeeded", *, attempts: int = 1, at_ms: int = 200, function: str = "resize") -> Ended:
    return Ended(
        invocation=invocation, tenant="acme", function=function, version="v", event_id="e", outcome=outcome, reason="", detail="", attempts=attempts,
        start="warm", queue_us=1, load_us=0, run_us=2, traceparent="", redrive_of="", ended_ms=at_ms,
    )  # fmt: skip


def record(invocation: str, attempt: int = 1, *, outcome: str = "succeeded", kind: str = "attempt", at_ms: int = 190) -> Used:
    return Used(
        record_id=f"{invocation}.{attempt}{'' if kind == 'attempt' else '.load'}", invocation=invocation, attempt=attempt, kind=kind, billable=True,
        tenant="acme", function="resize", version="v", node="one", environment="e", outcome=outcome, reason="", start="warm", started_at="T1",
        ended_at="T2", queue_us=1, load_us=0, run_us=2, cpu_us=3, memory_peak_bytes=4, bytes_in=5, bytes_out=6, cost_nanousd=7,
        meters='{"tokens":3}', ended_ms=at_ms,
    )  # fmt: skip


async def the_run(projection: Projection, invocation: str) -> Run:
    (found,), _ = await projection.runs(Filter(invocation=invocation))
    return found


async def written(projection: Projection, *batches: Rows) -> None:
    for rows in batches:
        await projection.write("S", PLACE, rows)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
async def test_event_outcome_and_record_make_one_run_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    """They are three streams, read one after the other."""
    parts = [Rows(accepted=[event("a")]), Rows(ended=[end("a")]), Rows(used=[record("a")])]
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, *(parts[index] for index in order))
        run = await the_run(projection, "a")

    assert (run.outcome, run.node, run.subject, run.sequence, run.attempts) == ("succeeded", "one", "images.a", 7, 1)
    assert (run.accepted_ms, run.ended_ms) == (100, 200)


@pytest.mark.parametrize("record_first", [True, False])
async def test_a_stored_event_has_not_ended_before_its_outcome(tmp_path: Path, record_first: bool) -> None:
    """The record of an attempt that crashed may be followed by another attempt."""
    parts = [Rows(used=[record("a", outcome="crashed")]), Rows(accepted=[event("a")])]
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, *(parts if record_first else reversed(parts)))

        assert (await the_run(projection, "a")).outcome == ""
        assert await projection.open_by_function(0, {("acme", "resize", "FAAS_EVENTS"): 7}) == {("acme", "resize"): 1}
        assert await projection.open_by_function(0, {("acme", "resize", "FAAS_EVENTS"): 8}) == {("acme", "resize"): 0}
        assert await projection.open_by_function(0, {}) == {}


async def test_a_synchronous_run_is_known_by_its_records_alone(tmp_path: Path) -> None:
    """Nothing else of it is stored; the last attempt is its end."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(used=[record("a", 2)]), Rows(used=[record("a", 1, outcome="crashed")]))
        run = await the_run(projection, "a")

    assert (run.outcome, run.attempts, run.accepted_ms) == ("succeeded", 2, 0)


async def test_an_attempt_that_is_tried_again_leaves_the_run_open(tmp_path: Path) -> None:
    """And what comes late about it changes nothing of its end."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(accepted=[event("a")]), Rows(ended=[end("a", "")]))
        assert (await the_run(projection, "a")).outcome == ""
        await written(projection, Rows(ended=[end("a", attempts=2)]), Rows(ended=[end("a", "")]))

        assert (await the_run(projection, "a")).outcome == "succeeded"


async def test_a_record_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """A redelivery puts records into the usage stream once more."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(used=[record("a"), record("a")], details=[("a.1", "killed")]), Rows(used=[record("a", kind="load")]))
        tries = await projection.tries("a")

    assert [(one.kind, one.detail, one.meters) for one in tries] == [("load", "", {"tokens": 3}), ("attempt", "killed", {"tokens": 3})]


async def test_the_dead_letter_of_a_run_is_found(tmp_path: Path) -> None:
    """By its invocation."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(buried=[Buried(invocation="a", stream="FAAS_DEAD", sequence=4, reason="oom", at_ms=1)]))
        letter = await projection.letter("a")

        assert letter is not None
        assert letter.sequence == 4
        assert await projection.letter("b") is None


# ---------------------------------------------------------------- questions


async def test_runs_are_listed_newest_first_and_filtered(tmp_path: Path) -> None:
    """By function, tenant, outcome and time."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        ends = [end("a", at_ms=1), end("b", "failed", at_ms=2), end("c", at_ms=3, function="thumb")]
        await written(projection, Rows(ended=ends, accepted=[event("d", at_ms=4)]))

        async def names(**asked: object) -> list[str]:
            return [run.invocation for run in (await projection.runs(Filter(**asked)))[0]]  # type: ignore[arg-type]

        assert await names() == ["d", "c", "b", "a"]
        assert await names(function="thumb") == ["c"]
        assert await names(outcome="failed") == ["b"]
        assert await names(outcome="open") == ["d"]
        assert await names(since_ms=2, until_ms=3) == ["c", "b"]
        assert await names(tenant="other") == []
        assert await projection.runs(Filter(limit=2)) == ((await projection.runs(Filter()))[0][:2], True)


async def test_what_is_asked_for_is_a_value_and_no_sql(tmp_path: Path) -> None:
    """Anybody on the bus may ask."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(ended=[end("a")]))

        assert await projection.runs(Filter(function="x' OR 1=1 --")) == ([], False)


# ---------------------------------------------------------------- bounds, restarts, broken files


async def test_what_is_old_is_forgotten_and_so_is_what_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that runs for a year has a month."""
    monkeypatch.setattr(module, "RUNS_KEPT", 2)
    async with Projection.open(tmp_path / "runs.db") as projection:
        rows = Rows(
            ended=[end("old", at_ms=1), *(end(name, at_ms=AGE_MS + place) for place, name in enumerate("abc", 10))], used=[record("old")]
        )
        await written(projection, rows)
        await projection.prune(AGE_MS + 1)
        found, _ = await projection.runs(Filter())

        assert [run.invocation for run in found] == ["c", "b"]
        assert await projection.tries("old") == []


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """Rows and place are written together."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await projection.write("S", Position(created="c", sequence=9), Rows(ended=[end("a")]))
    async with Projection.open(tmp_path / "runs.db") as projection:
        assert await projection.positions() == {"S": Position(created="c", sequence=9)}
        assert (await the_run(projection, "a")).outcome == "succeeded"


async def test_tables_of_another_version_are_filled_again(tmp_path: Path) -> None:
    """The streams hold what they held."""
    with sqlite3.connect(tmp_path / "runs.db") as other:
        other.executescript("CREATE TABLE runs (x); PRAGMA user_version = 99")
    other.close()
    async with Projection.open(tmp_path / "runs.db") as projection:
        assert await projection.positions() == {}
        await written(projection, Rows(ended=[end("a")]))
        assert projection.absent == ""


async def test_a_broken_file_makes_it_absent_and_says_what_to_do(tmp_path: Path) -> None:
    """Nothing else of the node may fail with it."""
    (tmp_path / "runs.db").write_bytes(b"no database" * 1000)
    async with Projection.open(tmp_path / "runs.db") as projection:
        assert "delete" in projection.absent
        with pytest.raises(ProjectionAbsent):
            await projection.runs(Filter())
        with pytest.raises(ProjectionAbsent):
            await projection.write("S", PLACE, Rows())


async def test_it_is_there_again_once_the_file_can_be_used(tmp_path: Path) -> None:
    """As when space is back on a full disk."""
    (tmp_path / "runs.db").mkdir()
    async with Projection.open(tmp_path / "runs.db") as projection:
        assert projection.absent
        (tmp_path / "runs.db").rmdir()
        await projection.write("S", PLACE, Rows(ended=[end("a")]))

        assert projection.absent == ""
        assert (await the_run(projection, "a")).outcome == "succeeded"


@pytest.mark.parametrize("hostile", [Rows(used=[record("b", 2**70)]), Rows(ended=[end("b\ud800")])])
async def test_what_no_database_takes_is_passed_over(tmp_path: Path, hostile: Rows) -> None:
    """Anybody may write to a stream; stuck on it, nothing behind it would ever be known."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await projection.write("S", Position(created="c", sequence=2), hostile)
        await written(projection, Rows(ended=[end("a")]))

        assert [run.invocation for run in (await projection.runs(Filter()))[0]] == ["a"]
        assert projection.absent == ""


async def test_a_batch_that_fails_leaves_neither_rows_nor_its_place(tmp_path: Path) -> None:
    """A full disk in the middle of a batch: it is read again."""
    async with Projection.open(tmp_path / "runs.db") as projection:
        await written(projection, Rows(ended=[end("a")]))
        with sqlite3.connect(tmp_path / "runs.db") as other:
            other.execute("CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
        other.close()
        with pytest.raises(ProjectionAbsent, match="disk is full"):
            await projection.write("S", Position(created="c", sequence=2), Rows(ended=[end("b")], used=[record("b")]))

        assert (await projection.positions())["S"].sequence == 1
        assert (await projection.runs(Filter(invocation="b")))[0] == []
