"""Rows of a job file: the arguments of `generate`, one row for each call.

JSONL, CSV and Parquet become one plain JSONL file when a batch begins, so that every worker reads
the same rows, whatever happens to the original.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.schema import options, without_none
from imageprompt.core.untrusted import parse_json
from imageprompt.generation.option_values import FILE, FILES
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request

MAX_LINE = 2**20
"""Bytes of a row."""
_FIELDS = {field.name: field for kind in (Request, Reference) for field in options(kind)}
_PATHS = frozenset(name for name, field in _FIELDS.items() if field.option.json in (FILE, FILES))
"""The arguments that may be paths: those of a row are relative to the folder of its file."""
_NUMBERS = frozenset(
    name for name, field in _FIELDS.items() if without_none(field.type) in (int, float, bool)
)


@dataclass(frozen=True)
class Rows:
    """The rows of a normalised file, opened by their numbers."""

    path: Path
    ends: np.ndarray[Any, np.dtype[np.int64]]
    """Where each line ends in the file."""

    @classmethod
    def open(cls, path: Path) -> Rows:
        with path.open("rb") as stream:
            ends = np.fromiter(_ends(stream), np.int64)
        return cls(path, ends)

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The rows from `start` to before `stop`."""
        begin = 0 if start == 0 else int(self.ends[start - 1])
        with self.path.open("rb") as stream:
            stream.seek(begin)
            content = stream.read(int(self.ends[stop - 1]) - begin)
        return [json.loads(line) for line in content.splitlines()]


def _ends(stream: Any) -> Iterator[int]:
    position = 0
    for line in stream:
        position += len(line)
        yield position


def normalise(source: Path, target: Path) -> str:
    """Write the rows of a job file as JSONL with absolute paths; returns the hash of that file.

    A row that cannot be read is kept as {"error": reason}: it is a record of the result, not the
    end of the batch. Raises NotFoundError, and OptionError for a file of another kind or without
    rows.
    """
    kind = source.suffix.lower()
    if kind not in _READERS:
        raise OptionError(
            f"job file {source.name!r}",
            reason=f"ends in none of {', '.join(_READERS)}",
            hint="Write one JSON object a line: the arguments of generate.",
        )
    if not source.is_file():
        raise NotFoundError(f"job file {str(source)!r}", reason="there is no such file")
    digest, count = hashlib.sha256(), 0
    with target.open("wb") as stream:
        for row in _READERS[kind](source):
            line = json.dumps(_absolute(row, source.parent.resolve()), ensure_ascii=False)
            content = f"{line}\n".encode(errors="backslashreplace")
            stream.write(content)
            digest.update(content)
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    if not count:
        raise OptionError(f"job file {str(source)!r}", reason="has no rows")
    return digest.hexdigest()


def _json_lines(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as stream:
        while line := stream.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
                yield {"error": f"longer than {MAX_LINE} bytes"}
            elif line.strip():
                yield _parsed(line)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        return {"error": f"not valid JSON: {error}"}
    return row if isinstance(row, dict) else {"error": "not a JSON object"}


def _csv(source: Path) -> Iterator[dict[str, Any]]:
    """Empty cells are left out; lists and objects are written as JSON."""
    csv.field_size_limit(MAX_LINE)
    with source.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as stream:
        reader = csv.DictReader(stream)
        try:
            for row in reader:
                cells = {name: text for name, text in row.items() if text not in (None, "")}
                yield _typed(cells)
        except csv.Error as error:
            raise OptionError(
                f"{source.name}, line {reader.line_num}", reason=f"not valid CSV: {error}"
            ) from error


def _typed(cells: Mapping[Any, Any]) -> dict[str, Any]:
    if None in cells:
        return {"error": "more cells than columns"}
    return {name: _value(name, text) for name, text in cells.items()}


def _value(name: str, text: str) -> Any:
    if name not in _NUMBERS and not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parquet(source: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise OptionError(
            f"job file {source.name!r}",
            reason="Parquet needs pyarrow",
            hint="Install it: pip install pyarrow.",
        ) from error
    try:
        for group in parquet.ParquetFile(source).iter_batches(batch_size=1024):
            for row in group.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}
    except (OSError, ValueError) as error:
        raise OptionError(f"job file {source.name!r}", reason=str(error)) from error


_READERS: Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _absolute(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of a row that exist beside its file, in full; Hub ids and names stay as they are."""
    found = {
        name: _resolved(value, folder) if name in _PATHS else value for name, value in row.items()
    }
    if isinstance(row.get("also"), list):
        found["also"] = [
            _absolute(one, folder) if isinstance(one, dict) else one for one in row["also"]
        ]
    return found


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_resolved(one, folder) for one in value]
    if isinstance(value, str) and "\0" not in value and os.path.lexists(folder / value):
        return str(folder / value)
    return value
