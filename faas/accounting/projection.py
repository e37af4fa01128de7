"""What happened, in a database of this node alone: a view of the streams of events, outcomes, usage records and dead letters, for questions about runs.

Nothing depends on it. It is written in batches, each with the place in its stream in one transaction, so that a restart goes
on where it was; a broken file or a full disk makes it `absent`, and whatever else the node does goes on. It can be
deleted at any time: it is filled again from what the streams still hold.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import msgspec
import structlog
from msgspec import Struct

from faas.accounting.rows import Rows
from faas.runs import RUNS_LIMIT, Filter, Letter, Run, Try

log = structlog.get_logger()

VERSION = 1
"""Of the tables; a file of another version is deleted and filled again."""
AGE_MS = 30 * 86_400_000
RUNS_KEPT = 500_000
"""Some 250 bytes each, and as much for each usage record."""
BUSY_MS = 2000
PRAGMAS = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", f"PRAGMA busy_timeout={BUSY_MS}", "PRAGMA journal_size_limit=8388608")
ANSWER_BYTES = 700_000
"""Of an answer with many runs: it goes into one message."""

TABLES = """
CREATE TABLE runs (
    invocation TEXT PRIMARY KEY, tenant TEXT NOT NULL, function TEXT NOT NULL, version TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    start TEXT NOT NULL DEFAULT '', queue_us INTEGER NOT NULL DEFAULT 0, load_us INTEGER NOT NULL DEFAULT 0,
    run_us INTEGER NOT NULL DEFAULT 0, node TEXT NOT NULL DEFAULT '', event_id TEXT NOT NULL DEFAULT '', subject TEXT NOT NULL DEFAULT '',
    stream TEXT NOT NULL DEFAULT '', sequence INTEGER NOT NULL DEFAULT 0, traceparent TEXT NOT NULL DEFAULT '',
    redrive_of TEXT NOT NULL DEFAULT '',
    accepted_ms INTEGER NOT NULL DEFAULT 0, ended_ms INTEGER NOT NULL DEFAULT 0,
    at_ms INTEGER NOT NULL, known INTEGER NOT NULL  -- known: 0 by its event, 1 by a usage record, 2 tried again, 3 by its outcome
) WITHOUT ROWID;
CREATE INDEX runs_at ON runs (at_ms);
CREATE INDEX runs_of ON runs (tenant, function, at_ms);
CREATE INDEX runs_open ON runs (tenant, function, accepted_ms) WHERE outcome = '';
CREATE TABLE records (
    record_id TEXT PRIMARY KEY, invocation TEXT NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL, billable INTEGER NOT NULL,
    node TEXT NOT NULL, environment TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, start TEXT NOT NULL,
    started_at TEXT NOT NULL, ended_at TEXT NOT NULL, queue_us INTEGER NOT NULL, load_us INTEGER NOT NULL, run_us INTEGER NOT NULL,
    cpu_us INTEGER NOT NULL, memory_peak_bytes INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    cost_nanousd INTEGER NOT NULL, meters TEXT NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX records_of ON records (invocation);
CREATE INDEX records_at ON records (at_ms);
CREATE TABLE details (record_id TEXT PRIMARY KEY, detail TEXT NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE letters (
    invocation TEXT PRIMARY KEY, stream TEXT NOT NULL, sequence INTEGER NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE positions (stream TEXT PRIMARY KEY, created TEXT NOT NULL, sequence INTEGER NOT NULL, blind_ms INTEGER NOT NULL) WITHOUT ROWID;
"""

ACCEPTED = """
INSERT INTO runs (invocation, tenant, function, stream, sequence, subject, event_id, accepted_ms, at_ms, known)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?8, 0)
ON CONFLICT (invocation) DO UPDATE SET stream = excluded.stream, sequence = excluded.sequence,
    subject = CASE accepted_ms WHEN 0 THEN excluded.subject ELSE subject END,
    event_id = CASE accepted_ms WHEN 0 THEN excluded.event_id ELSE event_id END,
    accepted_ms = CASE accepted_ms WHEN 0 THEN excluded.accepted_ms ELSE accepted_ms END,
    outcome = CASE known WHEN 1 THEN '' ELSE outcome END
WHERE accepted_ms = 0 OR excluded.sequence > sequence  -- a retry comes back behind others
"""
ENDED = """
INSERT INTO runs (invocation, tenant, function, version, event_id, outcome, reason, detail, attempts, start, queue_us, load_us, run_us,
    traceparent, redrive_of, ended_ms, at_ms, known)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?16, CASE ?6 WHEN '' THEN 2 ELSE 3 END)
ON CONFLICT (invocation) DO UPDATE SET version = excluded.version, event_id = excluded.event_id, outcome = excluded.outcome,
    reason = excluded.reason, detail = excluded.detail, attempts = excluded.attempts, start = excluded.start, queue_us = excluded.queue_us,
    load_us = excluded.load_us, run_us = excluded.run_us, traceparent = excluded.traceparent, redrive_of = excluded.redrive_of,
    ended_ms = CASE excluded.outcome WHEN '' THEN 0 ELSE excluded.ended_ms END, at_ms = max(at_ms, excluded.at_ms), known = excluded.known
WHERE excluded.known > known OR (excluded.known = known AND excluded.attempts >= attempts)
"""
USED = """
INSERT INTO runs (invocation, tenant, function, version, outcome, reason, attempts, start, queue_us, load_us, run_us, node, ended_ms, at_ms, known)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?13, 1)
ON CONFLICT (invocation) DO UPDATE SET node = excluded.node,
    version = CASE WHEN known > 1 THEN version ELSE excluded.version END,
    outcome = CASE WHEN known > 1 OR accepted_ms > 0 THEN outcome ELSE excluded.outcome END,
    reason = CASE WHEN known > 1 THEN reason ELSE excluded.reason END,
    start = CASE WHEN known > 1 THEN start ELSE excluded.start END,
    queue_us = CASE WHEN known > 1 THEN queue_us ELSE excluded.queue_us END,
    load_us = CASE WHEN known > 1 THEN load_us ELSE excluded.load_us END,
    run_us = CASE WHEN known > 1 THEN run_us ELSE excluded.run_us END,
    ended_ms = CASE WHEN known > 1 OR accepted_ms > 0 THEN ended_ms ELSE excluded.ended_ms END,
    attempts = max(attempts, excluded.attempts), at_ms = max(at_ms, excluded.at_ms), known = max(known, 1)
WHERE excluded.attempts >= attempts
"""
RECORD = f"INSERT OR IGNORE INTO records VALUES ({', '.join('?' * 22)})"
RUN_COLUMNS = (
    "invocation, tenant, function, version, outcome, reason, detail, attempts, start, queue_us, load_us, run_us, node, event_id, subject, "
    "stream, sequence, traceparent, redrive_of, accepted_ms, ended_ms"
)
TRY_COLUMNS = (
    "r.record_id, invocation, attempt, kind, billable, node, environment, outcome, reason, coalesce(detail, '') AS detail, start, started_at, "
    "ended_at, queue_us, load_us, run_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out, cost_nanousd, meters"
)


class Position(Struct, frozen=True, kw_only=True):
    """How far a stream is known. `blind_ms`: what it held before that moment may have gone unread."""

    created: str = ""
    sequence: int = 0
    blind_ms: int = 0


class ProjectionAbsent(Exception):
    """The database cannot be used now; the message says why, and what to do."""


class Projection:
    """`open` it; every method raises ProjectionAbsent where the database fails, and `absent` then says why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: aiosqlite.Connection | None = None
        self.absent = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Projection]:
        """It is absent, and the block is entered all the same, where the file cannot be used."""
        projection = cls(path)
        try:
            await projection._connect()
        except ProjectionAbsent:
            pass  # said by then
        try:
            yield projection
        finally:
            await projection._close()

    async def _connect(self) -> None:
        try:
            self._database = await aiosqlite.connect(self._path, isolation_level=None)
            for pragma in PRAGMAS:
                await self._database.execute(pragma)
            version = await self._number("PRAGMA user_version")
            if version != VERSION:
                if version:
                    await self._forget()
                await self._database.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        except (aiosqlite.Error, OSError) as error:
            gone = self._gone(error)
            await self._close()
            raise gone from error
        self.absent = ""

    async def _forget(self) -> None:
        """Tables of another version: the streams hold what they held."""
        assert self._database is not None
        async with self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'") as found:
            names = [row[0] async for row in found]
        for name in names:
            await self._database.execute(f'DROP TABLE "{name}"')
        log.info("projection.rebuilt", file=str(self._path))

    def _gone(self, error: Exception) -> ProjectionAbsent:
        """Say it once for each reason; the file may be in use again at the next try, as after a full disk."""
        said = str(error) or type(error).__name__
        broken = isinstance(error, aiosqlite.DatabaseError) and ("malformed" in said or "not a database" in said)
        what = f"{said}; stop the node and delete {self._path}: it is filled again from the bus" if broken else said
        if what != self.absent:
            log.warning("projection.absent", file=str(self._path), problem=what)
        self.absent = what
        return ProjectionAbsent(what)

    async def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                await database.close()
            except aiosqlite.Error as error:
                log.warning("projection.not_closed", problem=str(error))

    async def _number(self, question: str, values: Sequence[object] = ()) -> int:
        async with self._open.execute(question, tuple(values)) as found:
            row = await found.fetchone()
        return int(row[0]) if row is not None and row[0] is not None else 0

    @property
    def _open(self) -> aiosqlite.Connection:
        if self._database is None:
            raise ProjectionAbsent(self.absent or "it is closed")
        return self._database

    # ------------------------------------------------------------ writing

    async def write(self, stream: str, position: Position, rows: Rows) -> None:
        """One batch and the place behind it, both or neither. A batch with what no database takes, as anybody may write to a stream, is passed over."""
        if self._database is None:
            await self._connect()
        try:
            await self._write(stream, position, rows)
        except (OverflowError, ValueError) as error:  # a number of a hundred digits, half a character
            log.warning("projection.skipped", stream=stream, up_to=position.sequence, problem=str(error))
            await self._write(stream, position, Rows())

    async def _write(self, stream: str, position: Position, rows: Rows) -> None:
        try:
            await self._open.execute("BEGIN IMMEDIATE")
            try:
                await self._insert(rows)
                values = (stream, position.created, position.sequence, position.blind_ms)
                await self._open.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", values)
                await self._open.execute("COMMIT")
            except BaseException:
                if self._open.in_transaction:
                    await self._open.execute("ROLLBACK")
                raise
        except aiosqlite.Error as error:
            raise self._gone(error) from error
        self.absent = ""

    async def _insert(self, rows: Rows) -> None:
        many: Iterable[tuple[str, list[tuple[object, ...]]]] = (
            (ACCEPTED, [msgspec.structs.astuple(row) for row in rows.accepted]),
            (ENDED, [msgspec.structs.astuple(row) for row in rows.ended]),
            ("INSERT OR REPLACE INTO details VALUES (?, ?, ?)", [(*detail, int(time.time() * 1000)) for detail in rows.details]),
            (
                USED,
                [
                    (r.invocation, r.tenant, r.function, r.version, r.outcome, r.reason, r.attempt, r.start, r.queue_us, r.load_us, r.run_us,
                     r.node, r.ended_ms)
                    for r in rows.used if r.kind == "attempt" and r.invocation
                ],
            ),
            (
                RECORD,
                [
                    (r.record_id, r.invocation, r.attempt, r.kind, r.billable, r.node, r.environment, r.outcome, r.reason, r.start,
                     r.started_at, r.ended_at, r.queue_us, r.load_us, r.run_us, r.cpu_us, r.memory_peak_bytes, r.bytes_in, r.bytes_out,
                     r.cost_nanousd, r.meters, r.ended_ms)
                    for r in rows.used
                ],
            ),
            ("INSERT OR REPLACE INTO letters VALUES (?, ?, ?, ?, ?)", [msgspec.structs.astuple(row) for row in rows.buried]),
        )  # fmt: skip
        for statement, values in many:
            if values:
                await self._open.executemany(statement, values)

    async def prune(self, now_ms: int) -> None:
        """Forget what is older than 30 days, and the oldest beyond RUNS_KEPT."""
        try:
            oldest = now_ms - AGE_MS
            row = "SELECT at_ms FROM runs ORDER BY at_ms DESC LIMIT 1 OFFSET ?"
            oldest = max(oldest, await self._number(row, (RUNS_KEPT,)))
            for table in ("runs", "records", "details", "letters"):
                await self._open.execute(f"DELETE FROM {table} WHERE at_ms <= ?", (oldest,))
        except aiosqlite.Error as error:
            raise self._gone(error) from error

    # ------------------------------------------------------------ reading

    async def positions(self) -> dict[str, Position]:
        """By stream."""
        rows = await self._rows("SELECT stream, created, sequence, blind_ms FROM positions", ())
        return {row[0]: Position(created=row[1], sequence=row[2], blind_ms=row[3]) for row in rows}

    async def runs(self, asked: Filter) -> tuple[list[Run], bool]:
        """What fits, newest first, and whether there is more that does."""
        where, values = _where(asked)
        limit = max(1, min(asked.limit, RUNS_LIMIT))
        rows = await self._rows(f"SELECT {RUN_COLUMNS} FROM runs {where} ORDER BY at_ms DESC, invocation LIMIT ?", (*values, limit + 1))
        found: list[Run] = []
        size = 0
        for row in rows[:limit]:
            run = msgspec.convert(dict(row), Run)
            size += 400 + len(run.detail) + len(run.subject) + len(run.event_id)
            if size > ANSWER_BYTES:
                return found, True
            found.append(run)
        return found, len(rows) > limit

    async def tries(self, invocation: str) -> list[Try]:
        """The usage records of an invocation, in their order."""
        question = (
            f"SELECT {TRY_COLUMNS} FROM records r LEFT JOIN details d ON d.record_id = r.record_id "
            "WHERE invocation = ? ORDER BY attempt, kind DESC LIMIT 200"
        )
        rows = await self._rows(question, (invocation,))
        meters = [msgspec.json.decode(row["meters"], type=dict[str, int]) if row["meters"] else {} for row in rows]
        return [
            msgspec.convert({**dict(row), "billable": bool(row["billable"]), "meters": m}, Try) for row, m in zip(rows, meters, strict=True)
        ]

    async def letter(self, invocation: str) -> Letter | None:
        """Its dead letter."""
        rows = await self._rows("SELECT stream, sequence, reason, at_ms FROM letters WHERE invocation = ?", (invocation,))
        return msgspec.convert(dict(rows[0]), Letter) if rows else None

    async def open_by_function(self, since_ms: int, begins: Mapping[tuple[str, str, str], int]) -> dict[tuple[str, str], int]:
        """How many stored events, accepted since a moment, have no outcome, by (tenant, function).

        `begins` is where in a stream the consumers of a function begin, by (tenant, function, stream): what lies before was dropped on purpose.
        """
        question = "SELECT DISTINCT tenant, function, stream FROM runs WHERE outcome = '' AND accepted_ms > ?"
        found: dict[tuple[str, str], int] = {}
        for tenant, function, stream in await self._rows(question, (since_ms,)):
            begin = begins.get((tenant, function, stream))
            if begin is not None:
                where = "outcome = '' AND tenant = ? AND function = ? AND accepted_ms > ? AND stream = ? AND sequence >= ?"
                rows = await self._rows(f"SELECT count(*) FROM runs WHERE {where}", (tenant, function, since_ms, stream, begin))
                found[tenant, function] = found.get((tenant, function), 0) + rows[0][0]
        return found

    async def _rows(self, question: str, values: Sequence[object]) -> list[aiosqlite.Row]:
        try:
            self._open.row_factory = aiosqlite.Row
            async with self._open.execute(question, tuple(values)) as found:
                return list(await found.fetchall())
        except aiosqlite.Error as error:
            raise self._gone(error) from error


def _where(asked: Filter) -> tuple[str, list[object]]:
    """The condition of a question, and its values."""
    outcome = "" if asked.outcome == "open" else asked.outcome
    parts: list[tuple[str, object, bool]] = [
        ("invocation = ?", asked.invocation, bool(asked.invocation)),
        ("tenant = ?", asked.tenant, bool(asked.tenant)),
        ("function = ?", asked.function, bool(asked.function)),
        ("outcome = ?", outcome, bool(asked.outcome)),
        ("at_ms >= ?", asked.since_ms, asked.since_ms > 0),
        ("at_ms <= ?", asked.until_ms, asked.until_ms > 0),
    ]
    used = [(text, value) for text, value, given in parts if given]
    return (f"WHERE {' AND '.join(text for text, _ in used)}" if used else ""), [value for _, value in used]
