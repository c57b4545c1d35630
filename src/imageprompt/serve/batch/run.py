"""batch: begin or resume, share the shards among processes, say how far it is, verify the files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from imageprompt.core.atomic_files import check_folder, locked, write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import open_regular
from imageprompt.serve.batch.rows import normalise, normalised
from imageprompt.serve.batch.shards import INDEX, MANIFEST, ROWS, Batch, claimed, make_shard

SHARD_ROWS, BATCH_SIZE = 64, 8
MAX_FILES = 1_000_000
"""Of a shard that are looked at."""
MAX_PICTURE = 2**28
"""Bytes of a picture."""
_POLL = 0.2  # s
_RESTARTS = 10
"""Times that a worker is started again without having finished a shard in between."""
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a batch is."""

    rows: int
    done: int
    failed: int
    """Rows that are recorded as errors; they are part of `done`."""
    shards: int
    done_shards: int

    @property
    def finished(self) -> bool:
        return self.done_shards == self.shards

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "finished": self.finished}


@dataclass(frozen=True)
class Verification:
    """What is wrong with the files of a batch: one line each."""

    status: Status
    pictures: int
    problems: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        problems = [*self.problems]
        return {**self.status.as_dict(), "pictures": self.pictures, "problems": problems}


def batch(
    jobs: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    ray: str | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_progress: Progress = lambda phase, done, total: None,
) -> Status:
    """Make the pictures of all rows, or go on where an earlier call was killed.

    Each row has arguments of `generate`; `defaults` are for those that lack them, and rows without
    a seed get one by their number and `seed`. Rows that cannot be made are recorded. Several calls,
    also on machines that share the folder with working locks, take different shards; `shard=(i, n)`
    makes every n-th alone. `jobs` may be None to go on. `workers` are processes, 1 by default;
    with `ray`, the address of a cluster, they run there, by default as many as it has GPUs or
    cores. Raises OptionError, NotFoundError.
    """
    folder = check_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "shard_rows": _at_least_1(shard_rows, "rows per shard"),
        "batch_size": _at_least_1(batch_size, "batch size"),
        "seed": seed,
        "defaults": dict(defaults or {}),
    }
    begun = begin(None if jobs is None else Path(jobs).expanduser(), folder, settings)
    shards = shards_of(begun, shard)
    if workers is not None:
        _at_least_1(workers, "workers")
    if ray is not None:
        from imageprompt.serve.batch.ray_shards import share_on_ray

        share_on_ray(begun, shards, ray, workers, lambda: _tell(begun, shards, on_progress))
    elif workers in (None, 1):
        work(begun, shards, on_progress)
    else:
        _share(begun, shards, workers, on_progress)
    return status(folder)


def begin(jobs: Path | None, folder: Path, settings: Mapping[str, Any]) -> Batch:
    """The batch in a folder, begun if there is none. Raises OptionError if it is another one."""
    with locked(folder / ".begin.lock"):
        if not (folder / MANIFEST).exists():
            if jobs is None:
                raise OptionError("no job file", reason=f"no batch has begun in {folder}")
            with write_atomically(folder / ROWS) as temporary:
                digest = normalise(jobs, temporary)
            with write_atomically(folder / MANIFEST) as temporary:
                content = {"rows": digest, "settings": settings}
                temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            return Batch.open(folder)
        found = Batch.open(folder)
        if jobs is not None:
            _check_same(found, jobs, settings)
        return found


def _check_same(found: Batch, jobs: Path, settings: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    for line in normalised(jobs):
        digest.update(line)
    changed = [] if digest.hexdigest() == found.hash else ["the rows"]
    plain = json.loads(json.dumps(settings))
    changed += [name for name in plain if plain[name] != found.settings.get(name)]
    if changed:
        raise OptionError(
            f"output {str(found.folder)!r}",
            reason=f"holds another batch: {', '.join(changed)} differ",
            hint="Name another folder; to go on with this one, leave the job file out.",
        )


def shards_of(begun: Batch, part: tuple[int, int] | None) -> Sequence[int]:
    """The shards of one part, from 1 to n. Raises OptionError."""
    if part is None:
        return range(begun.shard_count)
    index, count = part
    if not 1 <= index <= count:
        raise OptionError(f"shard {index}/{count}", reason="not from 1/n to n/n")
    return range(index - 1, begun.shard_count, count)


# ── work ────────────────────────────────────────────────────────────────────────────────────────


def work(begun: Batch, shards: Sequence[int], on_progress: Progress) -> None:
    """Make all shards that nobody has made or is making, in this process.

    Those in which a process died come last: what is wrong with them does not hold up the others.
    """
    for shard in sorted(shards, key=begun.broken_off):
        _tell(begun, shards, on_progress)
        if begun.is_done(shard):
            continue
        with claimed(begun, shard) as broken_off:
            if broken_off is not None:
                make_shard(begun, shard, broken_off=broken_off)
    _tell(begun, shards, on_progress)


def _tell(begun: Batch, shards: Sequence[int], on_progress: Progress) -> None:
    done = sum(len(begun.range_of(shard)) for shard in shards if begun.is_done(shard))
    on_progress("rows", done, sum(len(begun.range_of(shard)) for shard in shards))


def _share(begun: Batch, shards: Sequence[int], workers: int, on_progress: Progress) -> None:
    """Make the shards in several processes; one that dies is started again."""
    with _lifeline() as lifeline, _running(begun.folder, workers, lifeline) as processes:
        left = dict.fromkeys(processes, _RESTARTS)
        before = -1
        while not all(begun.is_done(shard) for shard in shards):
            done = sum(map(begun.is_done, shards))
            if done > before:
                left, before = dict.fromkeys(processes, _RESTARTS), done
                _tell(begun, shards, on_progress)
            for number, process in processes.items():
                if process.poll() is not None and left[number] > 0:
                    left[number] -= 1
                    processes[number] = _start(begun.folder, lifeline)
            if all(process.poll() is not None for process in processes.values()):
                raise OptionError(
                    f"batch {str(begun.folder)!r}",
                    reason=f"all {workers} workers ended with an error",
                    hint="Run it with --workers 1 to see the error.",
                )
            time.sleep(_POLL)
    _tell(begun, shards, on_progress)


@contextmanager
def _lifeline() -> Iterator[int]:
    """A stdin for workers that ends when this process does, however it ends."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def end_with_stdin() -> None:
    """Let this process be terminated when its stdin ends; called first of all in a worker."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


_WORKER = """
import sys
from imageprompt.cli import main
from imageprompt.serve.batch.run import end_with_stdin

end_with_stdin()
sys.exit(main())
"""


@contextmanager
def _running(
    folder: Path, workers: int, lifeline: int
) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    processes = {number: _start(folder, lifeline) for number in range(workers)}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            process.wait()


def _start(folder: Path, lifeline: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WORKER, "batch", "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=lifeline)


# ── afterwards ──────────────────────────────────────────────────────────────────────────────────


def status(output: str | os.PathLike[str]) -> Status:
    """How far a batch is. Raises OptionError if there is none."""
    begun = Batch.open(Path(output))
    finished, done, failed = begun.finished(), 0, 0
    for shard in finished:
        records = begun.records(shard)
        done += len(records)
        failed += sum("error" in record for record in records)
    return Status(
        rows=len(begun.rows),
        done=done,
        failed=failed,
        shards=begun.shard_count,
        done_shards=len(finished),
    )


def verify(
    output: str | os.PathLike[str],
    *,
    on_progress: Progress = lambda phase, done, total: None,
) -> Verification:
    """Compare every file with its record: each row once, each picture there and unchanged.

    Raises OptionError if there is no batch.
    """
    begun = Batch.open(Path(output))
    problems, pictures = list[str](), 0
    if not _has_hash(begun.folder, ROWS, begun.hash):
        problems.append(f"{ROWS} has changed")
    finished = begun.finished()
    if missing := begun.shard_count - len(finished):
        gap = next(number for number, shard in enumerate([*finished, -1]) if number != shard)
        problems.append(f"{missing} shards are not finished, the first is {gap:06d}")
    for number, shard in enumerate(finished):
        on_progress("shards", number, len(finished))
        faults, count = _verify_shard(begun, shard)
        problems += faults
        pictures += count
    on_progress("shards", len(finished), len(finished))
    return Verification(status(output), pictures, tuple(problems))


def _verify_shard(begun: Batch, shard: int) -> tuple[list[str], int]:
    folder, records = begun.path_of(shard), begun.records(shard)
    problems = []
    if [record.get("row") for record in records] != [*begun.range_of(shard)]:
        problems.append(f"{folder.name}/{INDEX} does not have each row once")
    expected = {
        one["file"]: one["sha256"] for record in records for one in record.get("pictures", ())
    }
    present = {path.name for path in islice(folder.iterdir(), MAX_FILES)} - {INDEX}
    for name in sorted(expected.keys() | present):
        if name not in expected:
            problems.append(f"{folder.name}/{name} has no record")
        elif name not in present:
            problems.append(f"{folder.name}/{name} is missing")
        elif not _has_hash(folder, name, expected[name], MAX_PICTURE):
            problems.append(f"{folder.name}/{name} has changed")
    return problems, len(expected)


def _has_hash(folder: Path, name: str, sha256: str, limit: int | None = None) -> bool:
    """Is it a file of at most `limit` bytes that lies there, with this hash?"""
    try:
        with open_regular(folder / name, inside=folder) as stream:
            if limit is not None and os.fstat(stream.fileno()).st_size > limit:
                return False
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def _at_least_1(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{what} {value!r}", reason="not a whole number of at least 1")
    return value
