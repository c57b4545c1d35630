"""Shards: the folder of a batch, and the pictures of a range of rows, written whole or not at all.

    DIR/batch.json        what is made: hash of the rows, settings
    DIR/rows.jsonl        the rows
    DIR/shards/000012/    row-000002400.png ..., index.jsonl: a record for each row
    DIR/claims/           locks of the shards that are being made; attempts that were broken off

A shard is made in a temporary folder and renamed. The system frees a lock when its process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.atomic_files import (
    BusyError,
    append_line,
    locked,
    sync_folder,
    write_atomically,
    write_folder_atomically,
)
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.core.schema import options, validate
from imageprompt.core.untrusted import Budget, parse_json, read_regular
from imageprompt.serve.batch.rows import MAX_VALUES, Rows

if TYPE_CHECKING:
    from imageprompt.generation.request import Request
    from imageprompt.generation.result import GenerationResult

MANIFEST, ROWS, INDEX = "batch.json", "rows.jsonl", "index.jsonl"
SHARDS, CLAIMS = "shards", "claims"
MAX_MANIFEST = 2**20
MAX_INDEX = 2**26
"""Bytes of the records of a shard."""
MAX_NUMBER = 2**62
MAX_ATTEMPTS = 10
"""A shard in which the process died so often is recorded as failed."""
_SHARD = re.compile(r"[0-9]{6,9}")
_NAMED = re.compile(r"request (\d+): ")
Record = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """A batch that has begun, as its folder says."""

    folder: Path
    rows: Rows
    settings: Mapping[str, Any]
    """`shard_rows`, `batch_size`, `seed`, and `defaults`: arguments for rows that lack them."""
    hash: str

    @classmethod
    def open(cls, folder: Path) -> Batch:
        """Raises OptionError if no batch has begun there, or what stands there is none."""
        try:
            found = parse_json(read_regular(folder / MANIFEST, MAX_MANIFEST, inside=folder))
            settings, rows = _checked(found)
            for name in (SHARDS, CLAIMS):
                if (folder / name).is_symlink():
                    raise ValueError(f"{name} is a link")
            return cls(folder, Rows.open(folder / ROWS), settings, rows)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"output {str(folder)!r}",
                reason=f"holds no batch ({getattr(error, 'strerror', None) or error})",
                hint="Begin one: imageprompt batch JOBS.jsonl --output DIR.",
            ) from error

    @property
    def shard_count(self) -> int:
        return -(-len(self.rows) // self.shard_rows)

    @property
    def shard_rows(self) -> int:
        return int(self.settings["shard_rows"])

    def range_of(self, shard: int) -> range:
        """The rows of a shard."""
        start = shard * self.shard_rows
        return range(start, min(start + self.shard_rows, len(self.rows)))

    def path_of(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:06d}"

    def is_done(self, shard: int) -> bool:
        path = self.path_of(shard)
        return path.is_dir() and not path.is_symlink()

    def finished(self) -> list[int]:
        """The shards that are done."""
        if not (self.folder / SHARDS).is_dir():
            return []
        with os.scandir(self.folder / SHARDS) as entries:
            names = {one.name for one in entries if one.is_dir(follow_symlinks=False)}
        numbers = sorted(int(name) for name in names if _SHARD.fullmatch(name))
        return [one for one in numbers if one < self.shard_count and f"{one:06d}" in names]

    def broken_off(self, shard: int) -> int:
        """How often a process died in a shard."""
        path = self._attempts(shard)
        return path.stat().st_size if path.exists() else 0

    def _attempts(self, shard: int) -> Path:
        return self.folder / CLAIMS / f"{shard:06d}.attempts"

    @contextlib.contextmanager
    def attempt(self, shard: int) -> Iterator[None]:
        """Counts as broken off if the block does not end: one byte more in its file."""
        path = self._attempts(shard)
        append_line(path, "")
        yield
        path.unlink()

    def seed_of(self, row: int) -> int:
        """For rows without one: the same in every run."""
        digest = hashlib.sha256(f"{self.settings['seed']}:{row}".encode()).digest()
        return int.from_bytes(digest[:4]) >> 1

    def records(self, shard: int) -> list[Record]:
        """The records of a finished shard. Raises OptionError."""
        path = self.path_of(shard) / INDEX
        try:
            lines = read_regular(path, MAX_INDEX, inside=self.folder).split(b"\n")[:-1]
            if len(lines) > len(self.range_of(shard)):
                raise ValueError(f"it has {len(lines)} records")
            return [_record(line) for line in lines]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OptionError(str(path), reason=f"cannot be read: {reason}") from error


def _checked(found: Any) -> tuple[Mapping[str, Any], str]:
    """The settings and the hash in batch.json. Raises ValueError."""
    settings = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(settings, dict) or not isinstance(found.get("rows"), str):
        raise ValueError(f"{MANIFEST} has no settings or no rows")
    for name in ("shard_rows", "batch_size", "seed"):
        value, least = settings.get(name), -MAX_NUMBER if name == "seed" else 1
        if type(value) is not int or not least <= value <= MAX_NUMBER:
            raise ValueError(f"{name} in {MANIFEST} is not a whole number of at least {least}")
    if not isinstance(settings.get("defaults"), dict):
        raise ValueError(f"defaults in {MANIFEST} are not an object")
    return settings, found["rows"]


def _record(line: bytes) -> Record:
    """One record of a shard. Raises ValueError."""
    found = parse_json(line, Budget(nbytes=MAX_INDEX, items=MAX_VALUES))
    pictures = found.get("pictures", []) if isinstance(found, dict) else None
    if not isinstance(pictures, list):
        raise ValueError("a record is not an object with a list of pictures")
    for one in pictures:
        texts = [one.get(name) for name in ("file", "sha256")] if isinstance(one, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a picture without file and sha256")
    return dict(found)


# ── claims ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def claimed(batch: Batch, shard: int) -> Iterator[int | None]:
    """Hold a shard that no other process makes; None if one does, or if it is finished.

    Yields how many attempts were broken off before.
    """
    claims = batch.folder / CLAIMS
    claims.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(claims / f"{shard:06d}.lock", timeout=0))
        except BusyError:
            yield None
            return
        if batch.is_done(shard):
            yield None
            return
        before = batch.broken_off(shard)
        with batch.attempt(shard):
            yield before


# ── making ──────────────────────────────────────────────────────────────────────────────────────


def make_shard(batch: Batch, shard: int, *, broken_off: int = 0) -> list[Record]:
    """Make and publish the pictures of a shard; returns its records."""
    numbers = batch.range_of(shard)
    rows = dict(zip(numbers, batch.rows.read(numbers.start, numbers.stop), strict=True))
    path = batch.path_of(shard)
    path.parent.mkdir(exist_ok=True)
    with write_folder_atomically(path) as folder:
        if broken_off >= MAX_ATTEMPTS:
            reason = f"the process died {broken_off} times in this shard"
            records = {number: _error(number, reason) for number in numbers}
        else:
            records = _Making(batch, folder).run(rows)
        ordered = [records[number] for number in numbers]
        lines = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in ordered)
        with write_atomically(folder / INDEX) as temporary:
            temporary.write_text(lines, "utf-8")
        sync_folder(folder)
    return ordered


class _Making:
    """The rows of one shard, in the order of their references: each is encoded once."""

    def __init__(self, batch: Batch, folder: Path) -> None:
        self._batch, self._folder = batch, folder
        self._records: dict[int, Record] = {}

    def run(self, rows: Mapping[int, Record]) -> dict[int, Record]:
        groups: dict[str, dict[int, Request]] = {}
        for number, row in rows.items():
            try:
                request = self._request(number, row)
            except ImagePromptError as error:
                self._fail(number, error)
            else:
                base = repr((request.base, request.dtype, request.device))
                groups.setdefault(base, {})[number] = request
        for requests in groups.values():
            self._generate(requests)
        return self._records

    def _request(self, number: int, row: Record) -> Request:
        """Raises an ImagePromptError for a row that cannot be made."""
        from imageprompt.generation.option_values import parse_size
        from imageprompt.generation.reference import Reference
        from imageprompt.generation.request import Request, check_names

        if "error" in row:
            raise OptionError(f"row {number}", reason=str(row["error"]))
        arguments = {"seed": self._batch.seed_of(number), **self._batch.settings["defaults"], **row}
        check_names(arguments)
        also = arguments.pop("also", None) or []
        if not isinstance(also, list) or not all(isinstance(one, dict) for one in also):
            raise OptionError("also", reason="not a list of objects, one for each other reference")
        if isinstance(arguments.get("size"), str | int):
            arguments["size"] = parse_size(str(arguments["size"]))
        plain = _typed(Request, arguments) | _typed(Reference, arguments)
        request = Request.from_arguments(
            plain | {"also": [Reference(**_typed(Reference, one, every=True)) for one in also]}
        )
        request.check()
        return request

    def _generate(self, requests: dict[int, Request]) -> None:
        """Rows that turn out to be wrong are recorded and left out, and the others made."""
        from imageprompt.generation.engine import run_requests

        while requests:
            order = sorted(requests, key=lambda number: (_reference_key(requests[number]), number))
            made: dict[int, list[Record]] = {}
            save = partial(self._save, order, made)
            try:
                run_requests(
                    [requests[number] for number in order],
                    batch_size=int(self._batch.settings["batch_size"]),
                    on_image=save,
                )
            except ImagePromptError as error:
                named = _NAMED.match(error.what)
                if named is None:
                    raise
                number = order[int(named[1])]
                self._fail(number, error)
                del requests[number]
                continue
            for number, pictures in made.items():
                self._records[number] = {"row": number, "pictures": pictures}
            return

    def _save(
        self, order: Sequence[int], made: dict[int, list[Record]], result: GenerationResult
    ) -> None:
        from imageprompt.loading.recipe import picture_bytes

        image, recipe = result.images[0], result.recipes[0]
        tokens = [prompt.to().as_bytes() for prompt in result.image_prompts]
        content, number = picture_bytes(image, recipe, tokens), order[result.request]
        name = f"row-{number:09d}-{recipe.index}.png"
        with (self._folder / name).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        digest = hashlib.sha256(content).hexdigest()
        made.setdefault(number, []).append(
            {"file": name, "sha256": digest, "seed": recipe.seed + recipe.index}
        )

    def _fail(self, number: int, error: ImagePromptError) -> None:
        self._records[number] = _error(number, _NAMED.sub("", str(error), count=1))


def _typed(kind: type, given: Mapping[str, Any], *, every: bool = False) -> dict[str, Any]:
    """Those of the given values that are fields of `kind`, of its types; `every`: all must be.

    Raises OptionError.
    """
    names = {field.name for field in options(kind)}
    if every and (unknown := sorted(given.keys() - names)):
        raise OptionError(f"also: {unknown[0]!r}", reason="no such option of a reference")
    ours = {name: value for name, value in given.items() if name in names}
    checked: Any = validate(kind, ours, what="")
    return {name: getattr(checked, name) for name in ours}


def _error(number: int, reason: str) -> Record:
    return {"row": number, "error": reason}


def _reference_key(request: Any) -> str:
    return repr([reference.reference for reference in request.references])
