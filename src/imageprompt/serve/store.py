"""The jobs in SQLite: what was asked for, how far it is, what came of it. Every change is durable.

One thread owns the connection. Changes that wait together are committed together, because a
commit waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from imageprompt.core.errors import OptionError
from imageprompt.serve.errors import Problem

T = TypeVar("T")
State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")

FORMAT = 2
_CANCELLED = "cancelled"
"""In place of the lease of a job that is to end."""
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    state TEXT NOT NULL, request TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL,
    attempt INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0, lease TEXT,
    error TEXT, once TEXT, fingerprint TEXT, trace TEXT);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, number);
CREATE INDEX IF NOT EXISTS jobs_in_state ON jobs (state);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_once ON jobs (owner, once) WHERE once IS NOT NULL;
CREATE TABLE IF NOT EXISTS images (
    job TEXT NOT NULL, number INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    seed INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (job, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads_of_jobs (
    owner TEXT NOT NULL, hash TEXT NOT NULL, job TEXT NOT NULL,
    PRIMARY KEY (owner, hash, job)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uploads_by_job ON uploads_of_jobs (job);
"""


@dataclass(frozen=True)
class Image:
    """What is known of a picture beside its file."""

    index: int
    width: int
    height: int
    seed: int
    bytes: int


@dataclass(kw_only=True)
class JobRecord:
    """A job as it is stored."""

    id: str
    owner: str
    request: dict[str, Any]
    state: State = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    attempt: int = 0
    """How often it was started."""
    crashes: int = 0
    """How often a worker died with it."""
    trace: str | None = None
    """The `traceparent` of the request that it came with."""
    error: Problem | None = None
    images: list[Image] = field(default_factory=list)


class Store:
    """The tables, for the thread that made the object. Raises OptionError for a foreign file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        run = self._connection.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA foreign_keys=ON")
        (version,) = run("PRAGMA user_version").fetchone()
        if not 0 <= version <= FORMAT:
            raise OptionError(
                f"data folder {str(path.parent)!r}",
                reason=f"its jobs have format {version}; this version reads 1 to {FORMAT}",
                hint="Use another folder, or a newer imageprompt.",
            )
        self._connection.executescript(_TABLES)
        if version == 1:
            run("ALTER TABLE jobs ADD COLUMN trace TEXT")
        run(f"PRAGMA user_version={FORMAT}")
        if run("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """One change of several in a transaction: it happens whole or not at all."""
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO part")
            self._connection.execute("RELEASE part")
            raise
        self._connection.execute("RELEASE part")

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        job: JobRecord,
        uploads: Sequence[str] = (),
        once: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Raises sqlite3.IntegrityError if the owner has used `once` already."""
        self._connection.execute(
            "INSERT INTO jobs (id, owner, state, request, created, started, ended, attempt, once,"
            " fingerprint, trace) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, job.owner, job.state, json.dumps(job.request), job.created),
                *(job.started, job.ended, job.attempt, once, fingerprint, job.trace),
            ),
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO uploads_of_jobs VALUES (?, ?, ?)",
            [(job.owner, digest, job.id) for digest in uploads],
        )
        self.add_images(job.id, job.images)

    def start(self, ids: Sequence[str], lease: str) -> None:
        """Jobs begin to run in the server that holds `lease`."""
        self._connection.executemany(
            "UPDATE jobs SET state='running', started=?, attempt=attempt+1, lease=? WHERE id=?",
            [(time.time(), lease, one) for one in ids],
        )

    def requeue(self, ids: Sequence[str], *, crashed: bool) -> None:
        """Jobs that were running wait again."""
        self._connection.executemany(
            "UPDATE jobs SET state='queued', lease=NULL, crashes=crashes+? WHERE id=?",
            [(int(crashed), one) for one in ids],
        )

    def cancel(self, job: str) -> None:
        """A job that runs is to end; should the server end first, it is not started again."""
        self._connection.execute(
            "UPDATE jobs SET lease=? WHERE id=? AND state='running'", (_CANCELLED, job)
        )

    def end_cancelled(self) -> None:
        """End the jobs that were to end when the last server did."""
        self._connection.execute(
            "UPDATE jobs SET state='cancelled', ended=?, lease=NULL"
            " WHERE state='running' AND lease=?",
            (time.time(), _CANCELLED),
        )

    def add_images(self, job: str, images: Sequence[Image]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)",
            [(job, one.index, one.width, one.height, one.seed, one.bytes) for one in images],
        )

    def end(
        self,
        job: str,
        state: State,
        error: Problem | None = None,
        images: Sequence[Image] = (),
    ) -> None:
        self.add_images(job, images)
        self._connection.execute(
            "UPDATE jobs SET state=?, ended=?, error=?, lease=NULL WHERE id=?",
            (state, time.time(), None if error is None else json.dumps(error.as_dict()), job),
        )

    def remove(self, jobs: Sequence[str]) -> None:
        for table, column in (("images", "job"), ("uploads_of_jobs", "job"), ("jobs", "id")):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE {column}=?", [(job,) for job in jobs]
            )

    def forget_once(self, seconds: float) -> None:
        """Idempotency keys older than this may be used again."""
        self._connection.execute(
            "UPDATE jobs SET once=NULL WHERE once IS NOT NULL AND created<?",
            (time.time() - seconds,),
        )

    # ── look-ups ────────────────────────────────────────────────────────────────────────────────

    def job(self, owner: str, job: str) -> JobRecord | None:
        found = self._jobs("WHERE owner=? AND id=?", (owner, job))
        return found[0] if found else None

    def jobs(
        self, owner: str, *, limit: int, before: str | None = None, state: str | None = None
    ) -> list[JobRecord]:
        """The jobs of an owner, newest first."""
        where, values = "WHERE owner=?", [owner]
        if before is not None:
            where += " AND number < (SELECT number FROM jobs WHERE id=? AND owner=?)"
            values += [before, owner]
        if state is not None:
            where += " AND state=?"
            values.append(state)
        return self._jobs(f"{where} ORDER BY number DESC LIMIT {limit:d}", values)

    def unfinished(self) -> list[JobRecord]:
        """The jobs that wait or ran when the last server ended, oldest first."""
        return self._jobs("WHERE state IN ('queued', 'running') ORDER BY number", ())

    def once(self, owner: str, once: str) -> tuple[str, str] | None:
        """Id and fingerprint of the job that an idempotency key was used for."""
        found: tuple[str, str] | None = self._connection.execute(
            "SELECT id, fingerprint FROM jobs WHERE owner=? AND once=?", (owner, once)
        ).fetchone()
        return found

    def old(self, before: float, after: int, limit: int) -> list[tuple[int, str, str]]:
        """Number, owner and id of the first jobs after a number that ended before a time."""
        return self._connection.execute(
            "SELECT number, owner, id FROM jobs WHERE number>? AND ended<?"
            " AND state IN ('done', 'failed', 'cancelled') ORDER BY number LIMIT ?",
            (after, before, limit),
        ).fetchall()

    def needed(self, owner: str, upload: str) -> bool:
        """Does a job need this upload?"""
        found = self._connection.execute(
            "SELECT 1 FROM uploads_of_jobs WHERE owner=? AND hash=? LIMIT 1", (owner, upload)
        ).fetchone()
        return found is not None

    def known(self) -> set[str]:
        """The ids of all jobs."""
        return {row[0] for row in self._connection.execute("SELECT id FROM jobs")}

    def _jobs(self, where: str, values: Sequence[Any]) -> list[JobRecord]:
        rows = self._connection.execute(
            "SELECT id, owner, request, state, created, started, ended, attempt, crashes, error,"
            f" trace FROM jobs {where}",
            values,
        ).fetchall()
        return [self._record(row) for row in rows]

    def _record(self, row: Sequence[Any]) -> JobRecord:
        id_, owner, request, state, created, started, ended, attempt, crashes, error, trace = row
        images = self._connection.execute(
            "SELECT number, width, height, seed, bytes FROM images WHERE job=? ORDER BY number",
            (id_,),
        ).fetchall()
        return JobRecord(
            id=id_,
            owner=owner,
            request=json.loads(request),
            state=state,
            created=created,
            started=started,
            ended=ended,
            attempt=attempt,
            crashes=crashes,
            trace=trace,
            error=None if error is None else Problem.from_dict(json.loads(error)),
            images=[Image(*image) for image in images],
        )


def open_store(path: Path) -> tuple[Store, bool]:
    """The store, and whether it is new. One that is damaged is put aside under another name."""
    new = not path.exists()
    try:
        return Store(path), new
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, no space: not damaged
            raise
    aside = f"{path.name}.damaged-{int(time.time())}"
    path.rename(path.with_name(aside))
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            other = path.with_name(f"{path.name}{suffix}")
            other.rename(path.with_name(f"{aside}{suffix}"))
    return Store(path), True


# ── the thread ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Work:
    call: Callable[[Store], Any]
    changes: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    def answer(self, result: Any, error: BaseException | None) -> None:
        def tell() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(tell)


class StoreThread:
    """Runs look-ups and changes of a store in its own thread, for coroutines."""

    MOST_AT_ONCE = 200

    def __init__(self, path: Path) -> None:
        self._path = path
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[bool | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> bool:
        """Open the store; was it new? Raises what opening raises."""
        self._thread.start()
        result = self._opened.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> None:
        self._work.put(None)
        self._thread.join(timeout=30)

    async def look_up(self, call: Callable[[Store], T]) -> T:
        return await self._ask(call, changes=False)

    async def change(self, call: Callable[[Store], T]) -> T:
        """Returns when the change is on the disk. Raises sqlite3.Error."""
        return await self._ask(call, changes=True)

    async def _ask(self, call: Callable[[Store], T], *, changes: bool) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put(_Work(call, changes, loop, future))
        return await future

    def _run(self) -> None:
        try:
            store, new = open_store(self._path)
        except BaseException as error:
            self._opened.put(error)
            return
        self._opened.put(new)
        with contextlib.closing(store):
            while (first := self._work.get()) is not None:
                works = [first]
                while len(works) < self.MOST_AT_ONCE and not self._work.empty():
                    more = self._work.get()
                    if more is None:
                        self._work.put(None)
                        break
                    works.append(more)
                _run_together(store, works)


def _run_together(store: Store, works: Sequence[_Work]) -> None:
    """All of these in one transaction; each that fails changes nothing and harms no other."""
    answers: list[tuple[Any, BaseException | None]] = []
    changes = any(work.changes for work in works)
    try:
        with store.transaction() if changes else contextlib.nullcontext():
            for work in works:
                answers.append(_run_one(store, work))
    except sqlite3.Error as error:  # the commit failed: nothing of it happened
        answers = [(None, error) for _ in works]
    for work, (result, failure) in zip(works, answers, strict=True):
        work.answer(result, failure)


def _run_one(store: Store, work: _Work) -> tuple[Any, BaseException | None]:
    try:
        with store.part() if work.changes else contextlib.nullcontext():
            return work.call(store), None
    except Exception as error:
        return None, error


def fingerprint(request: Mapping[str, Any]) -> str:
    """Equal for equal requests."""
    import hashlib

    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
