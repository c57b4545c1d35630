"""Rows of a job file: the arguments of `generate`, one row for each call.

JSONL, CSV and Parquet become one plain JSONL file when a batch begins, so that every worker reads
the same rows, whatever happens to the original.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.schema import options, without_none
from imageprompt.core.untrusted import Budget, open_regular, parse_json
from imageprompt.generation.option_values import FILE, FILES
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request

MAX_LINE = 2**20
"""Bytes of a row."""
MAX_VALUES = 10_000
"""Values of a row, those in lists and objects included."""
MAX_ROWS = 5_000_000
MAX_NORMALISED = 2**26
"""Bytes of a row whose paths are in full."""
_PIECE = 2**20
"""Bytes that are looked at together."""
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
        """Raises OSError, ValueError."""
        with open_regular(path, inside=path.parent) as stream:
            return cls(path, _ends(stream))

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The rows from `start` to before `stop`."""
        begin = 0 if start == 0 else int(self.ends[start - 1])
        with open_regular(self.path, inside=self.path.parent) as stream:
            stream.seek(begin)
            lines = [stream.readline(MAX_NORMALISED) for _ in range(start, stop)]
        return [_parsed(line, MAX_NORMALISED) for line in lines]


def _ends(stream: BinaryIO) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each line ends. Raises ValueError unless each is a JSON object, by its first byte."""
    found = [np.zeros(0, np.int64)]
    rows = start = size = 0  # whole rows, where the one after them starts, bytes until here
    while content := stream.read(_PIECE):
        piece = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(piece == ord("\n")) + 1 + size
        starts = np.concatenate(([start], ends))
        here = (starts >= size) & (starts < size + len(piece))
        wrong = np.diff(starts, append=size + len(piece)) > MAX_NORMALISED
        wrong[here] |= piece[starts[here] - size] != ord("{")
        size += len(piece)
        if rows + len(ends) > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS:,} rows")
        if wrong.any():
            raise ValueError(f"row {rows + int(wrong.argmax())} is not a JSON object in a line")
        found.append(ends)
        rows, start = rows + len(ends), int(starts[-1])
    if start != size:
        raise ValueError(f"row {rows} is not a JSON object in a line")
    return np.concatenate(found)


def normalise(source: Path, target: Path) -> str:
    """Write the rows of a job file as JSONL with absolute paths; returns the hash of that file.

    Raises as `normalised` does.
    """
    digest = hashlib.sha256()
    with target.open("wb") as stream:
        for line in normalised(source):
            stream.write(line)
            digest.update(line)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def normalised(source: Path) -> Iterator[bytes]:
    """The rows of a job file as lines of JSON with absolute paths.

    A row that cannot be read is kept as {"error": reason}: it is a record of the result, not the
    end of the batch. Raises NotFoundError, and OptionError for a file of another kind, without
    rows or of too many.
    """
    kind = source.suffix.lower()
    if kind not in _READERS:
        raise OptionError(
            f"job file {source.name!r}",
            reason=f"ends in none of {', '.join(_READERS)}",
            hint="Write one JSON object a line: the arguments of generate.",
        )
    count = 0
    try:
        for row in _READERS[kind](source):
            if count == MAX_ROWS:
                raise OptionError(
                    f"job file {str(source)!r}", reason=f"more than {MAX_ROWS:,} rows"
                )
            line = json.dumps(_absolute(row, source.parent.resolve()), ensure_ascii=False)
            yield f"{line}\n".encode(errors="backslashreplace")
            count += 1
    except FileNotFoundError:
        raise NotFoundError(f"job file {str(source)!r}", reason="there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(
            f"job file {str(source)!r}", reason=f"cannot be read: {reason}"
        ) from error
    if not count:
        raise OptionError(f"job file {str(source)!r}", reason="has no rows")


def _json_lines(source: Path) -> Iterator[dict[str, Any]]:
    with open_regular(source) as stream:
        while line := stream.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                start = stream.tell()
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
                    if stream.tell() - start > MAX_NORMALISED:
                        raise ValueError(f"a row of more than {MAX_NORMALISED} bytes")
                yield {"error": f"longer than {MAX_LINE} bytes"}
            elif line.strip():
                yield _parsed(line)


def _parsed(line: bytes, limit: int = MAX_LINE) -> dict[str, Any]:
    try:
        row = parse_json(line, Budget(nbytes=limit, items=MAX_VALUES))
    except ValueError as error:
        return {"error": f"not valid JSON: {error}"}
    return row if isinstance(row, dict) else {"error": "not a JSON object"}


def _csv(source: Path) -> Iterator[dict[str, Any]]:
    """Empty cells are left out; lists and objects are written as JSON."""
    csv.field_size_limit(MAX_LINE)
    with io.TextIOWrapper(
        open_regular(source), encoding="utf-8-sig", newline="", errors="surrogateescape"
    ) as stream:
        lines = _CsvLines(stream)
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                lines.size = 0
                cells = {name: text for name, text in row.items() if text not in (None, "")}
                yield _typed(cells)
        except csv.Error as error:
            raise OptionError(
                f"{source.name}, line {reader.line_num}", reason=f"not valid CSV: {error}"
            ) from error


class _CsvLines:
    """Lines of a CSV file. Raises csv.Error where a row has more than MAX_LINE characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.size = 0
        """Characters since the last row."""

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE + 1)
        self.size += len(line)
        if self.size > MAX_LINE:
            raise csv.Error(f"a row of more than {MAX_LINE} characters")
        if not line:
            raise StopIteration
        return line


def _typed(cells: Mapping[Any, Any]) -> dict[str, Any]:
    if None in cells:
        return {"error": "more cells than columns"}
    if len(cells) > MAX_VALUES:
        return {"error": f"more than {MAX_VALUES} cells"}
    return {name: _value(name, text) for name, text in cells.items()}


def _value(name: str, text: str) -> Any:
    if name not in _NUMBERS and not text.startswith(("[", "{")):
        return text
    try:
        return parse_json(text, Budget(nbytes=4 * MAX_LINE, items=MAX_VALUES))
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
        with open_regular(source) as stream:
            for group in parquet.ParquetFile(stream).iter_batches(batch_size=64):
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
