"""The lines of a study, read into columns: what reports and comparisons work on.

`results.jsonl` has a line for each picture and reference. `row` says what the picture is:

- "adapter": generated with the reference by an adapter at a scale;
- "control": generated without an adapter, one picture for each prompt and seed. It has a line for
  each reference, so that there is a zero for each pair of prompt and reference;
- "ceiling": what to expect at best: another picture of the subject, or the reference after the
  base's autoencoder. It has no prompt and no seed.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import ImagePromptError, NotFoundError, OptionError
from imageprompt.core.untrusted import Budget, is_inside, open_regular, parse_json, read_regular

RESULTS = "results.jsonl"
PLAN = "plan.json"
"""Written before the first picture: what is to be done, and where the references are."""
STUDY = "study.json"
"""Written after the last line: the plan, the environment, and the means."""
ADAPTER, CONTROL, CEILING = "adapter", "control", "ceiling"
ROWS = (ADAPTER, CONTROL, CEILING)

MAX_LINES = 10_000_000
MAX_LINE = 2**18  # bytes
MAX_STUDY = 2**26  # bytes
MAX_NAMES = 256
"""Of metrics, of hashes and of extractors, each."""
MIN_CLUSTERS = 5
"""Fewer prompts than this are no clusters: intervals then are over the references."""

_LABELS = ("row", "prompt", "reference", "adapter", "base", "picture")
_GROUPS = ("hashes", "extractors")
_KNOWN = frozenset((*_LABELS, *_GROUPS, "seed", "scale", "metrics", "failed"))
_REQUIRED = ("prompt", "reference", "seed", "scale", "adapter", "base", "picture", "metrics")


@dataclass(frozen=True)
class Labels:
    """A column of texts or None: each distinct one once."""

    codes: NDArray[np.int32]
    values: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        return self.values[int(self.codes[row])]

    def __iter__(self) -> Iterator[str | None]:
        return (self.values[code] for code in self.codes)

    def equal(self, value: str | None) -> NDArray[np.bool_]:
        """Which rows have this value, [n]."""
        code = self.values.index(value) if value in self.values else -1
        return np.asarray(self.codes == code)

    def distinct(self) -> list[str]:
        """The texts that occur, in the order in which they first appear."""
        codes, first = np.unique(self.codes, return_index=True)
        found = (self.values[code] for code in codes[np.argsort(first)])
        return [one for one in found if one is not None]

    def take(self, rows: NDArray[np.integer[Any]]) -> Labels:
        return Labels(self.codes[rows], self.values)


@dataclass(frozen=True)
class Results:
    """Columns with a value for each line. Text columns are `Labels`."""

    folder: Path
    row: Labels
    prompt: Labels
    reference: Labels
    """As it was given: relative to `root`, or absolute; see `reference_path`."""
    adapter: Labels
    base: Labels
    picture: Labels
    """Relative to `folder`; see `picture_path`."""
    seed: NDArray[np.int64]
    """-1 where there is none."""
    scale: NDArray[np.float64]
    """NaN where there is none."""
    metrics: Mapping[str, NDArray[np.float64]]
    """Name -> values; NaN where there is none."""
    hashes: Mapping[str, Labels]
    """"adapter", "base", "reference", "picture" -> their hashes."""
    extractors: Mapping[str, Labels]
    """Role -> fingerprints."""
    failed: Mapping[int, Mapping[str, str]]
    """Line, from 0 -> metric -> why it has no value; only lines where something failed."""
    extra: Mapping[int, Mapping[str, Any]]
    """Line, from 0 -> keys that are not known here."""
    study: Mapping[str, Any] = field(default_factory=dict)
    """What study.json says, or plan.json while the study runs; {} if there is neither."""
    complete: bool = False
    """Is the study finished?"""

    def __len__(self) -> int:
        return len(self.seed)

    @property
    def root(self) -> Path:
        """The folder that references are relative to."""
        root = self.study.get("root")
        return self.folder / root if isinstance(root, str) else self.folder

    def reference_path(self, row: int) -> Path | None:
        name = self.reference[row]
        return None if name is None else self.root / name

    def picture_path(self, row: int) -> Path:
        return self.folder / str(self.picture[row])

    def may_show(self, row: int, path: Path) -> bool:
        """May a page, which is given away, show this file with a line?

        It lies in the folder of the study, or it has the content of the reference that the line
        was measured with: a study of a stranger brings no files of its reader into a page.
        """
        if is_inside(path, self.folder):
            return True
        stated = self.hashes["reference"][row] if "reference" in self.hashes else None
        from imageprompt.evaluation.scoring.pictures import Picture

        try:
            return stated is not None and Picture(path, path.name).hash == stated
        except ImagePromptError:
            return False

    def where(self, **values: str | float | None) -> Results:
        """The lines whose columns have these values, such as `where(row="adapter", scale=0.6)`."""
        kept = np.ones(len(self), bool)
        for name, value in values.items():
            column = getattr(self, name)
            if isinstance(column, Labels):
                kept &= column.equal(value if value is None else str(value))
            else:
                missing = np.isnan(column) if name == "scale" else column < 0
                kept &= missing if value is None else column == value
        return self.take(np.flatnonzero(kept))

    def take(self, rows: ArrayLike) -> Results:
        """These lines, in this order: indices or a mask."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        columns: dict[str, Any] = {name: getattr(self, name).take(chosen) for name in _LABELS}
        groups: dict[str, Any] = {
            name: {key: one.take(chosen) for key, one in getattr(self, name).items()}
            for name in _GROUPS
        }
        return replace(
            self,
            **columns,
            **groups,
            seed=self.seed[chosen],
            scale=self.scale[chosen],
            metrics={name: values[chosen] for name, values in self.metrics.items()},
            failed=_moved(self.failed, chosen),
            extra=_moved(self.extra, chosen),
        )

    def clusters(self) -> tuple[str, NDArray[np.int32]]:
        """What the intervals are over, "prompt" or "reference", and the cluster of each line.

        Pictures of one prompt are alike, so it is the unit, unless there are only a few prompts.
        """
        by_prompt = len(self.prompt.distinct()) >= MIN_CLUSTERS
        return ("prompt", self.prompt.codes) if by_prompt else ("reference", self.reference.codes)


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The lines of a study in its folder; a last line that is still being written is left out.

    Raises NotFoundError; OptionError for a broken line, with its number.
    """
    path = Path(folder).expanduser()
    columns = _Columns()
    for number, line in enumerate(read_lines(path)):
        try:
            columns.add(line)
        except ValueError as error:
            raise _broken(path, number, str(error)) from error
    return columns.results(path)


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a study as they are, one at a time. Raises as `read_results` does."""
    for number, content in enumerate(complete_lines(folder)):
        try:
            line = parse_json(content, Budget(nbytes=MAX_LINE, items=4096, depth=8), unique=True)
        except ValueError as error:
            raise _broken(folder, number, f"not JSON ({error})") from error
        if not isinstance(line, dict):
            raise _broken(folder, number, "not a JSON object")
        if missing := [name for name in _REQUIRED if name not in line]:
            raise _broken(folder, number, f"without {', '.join(missing)}")
        yield line


def complete_lines(folder: Path) -> Iterator[bytes]:
    """The lines of `results.jsonl` that end in a line break, without it."""
    path = folder / RESULTS
    try:
        with open_regular(path, inside=folder) as stream:
            for number in range(MAX_LINES + 1):
                content = stream.readline(MAX_LINE)
                if not content.endswith(b"\n"):
                    if len(content) == MAX_LINE:
                        raise _broken(folder, number, f"longer than {MAX_LINE} bytes")
                    return
                if number == MAX_LINES:
                    raise _broken(folder, number, f"more than {MAX_LINES:,} lines")
                yield content[:-1]
    except FileNotFoundError:
        raise NotFoundError(
            f"study {str(folder)!r}",
            reason=f"has no {RESULTS}",
            hint=f"Make one with `imageprompt evaluate --output {folder}`.",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"results {str(path)!r}", reason=f"cannot be read: {reason}") from error


def read_study(folder: Path) -> tuple[dict[str, Any], bool]:
    """What study.json or plan.json says, and whether the study is finished. Raises OptionError."""
    found = read_json(folder / STUDY)
    return (read_json(folder / PLAN) or {}, False) if found is None else (found, True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file that a study wrote; None if there is none. Raises OptionError."""
    try:
        content = read_regular(path, MAX_STUDY, inside=path.parent)
        plain = parse_json(content, Budget(nbytes=MAX_STUDY))
        if not isinstance(plain, dict):
            raise ValueError("not a JSON object")
        return plain
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(
            f"study file {str(path)!r}",
            reason=f"damaged ({reason})",
            hint="Choose another output, or delete this folder.",
        ) from error


def _broken(folder: Path, number: int, reason: str) -> OptionError:
    return OptionError(
        f"results {str(folder / RESULTS)!r}, line {number + 1}",
        reason=reason,
        hint="Delete this line and all after it, and run `imageprompt evaluate` again.",
    )


def _moved(by_row: Mapping[int, Any], chosen: NDArray[np.int64]) -> dict[int, Any]:
    if not by_row:
        return {}
    return {new: by_row[old] for new, old in enumerate(chosen.tolist()) if old in by_row}


# ── columns that grow ───────────────────────────────────────────────────────────────────────────


class _Texts:
    """Labels that are still being read."""

    def __init__(self, rows: int = 0) -> None:
        self._codes = array("i")
        self._known: dict[str | None, int] = {}
        for _ in range(rows):
            self.add(None)

    def add(self, value: Any) -> None:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{_shown(value)} is not text")
        self._codes.append(self._known.setdefault(value, len(self._known)))

    def labels(self) -> Labels:
        return Labels(np.array(self._codes, np.int32), (*self._known,))


class _Columns:
    """The columns of the lines that were read."""

    def __init__(self) -> None:
        self._count = 0
        self._texts = {name: _Texts() for name in _LABELS}
        self._groups: dict[str, dict[str, _Texts]] = {name: {} for name in _GROUPS}
        self._seed, self._scale = array("q"), array("d")
        self._metrics: dict[str, array[float]] = {}
        self._failed: dict[int, dict[str, str]] = {}
        self._extra: dict[int, dict[str, Any]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Raises ValueError for a value of the wrong kind."""
        for name, texts in self._texts.items():
            texts.add(line.get(name, ADAPTER if name == "row" else None))
        if line.get("row", ADAPTER) not in ROWS:
            raise ValueError(f"row {_shown(line['row'])} is not one of {', '.join(ROWS)}")
        _check_inside(line["picture"])
        seed, scale = line["seed"], line["scale"]
        self._seed.append(-1 if seed is None else _whole(seed))
        self._scale.append(_number(scale))
        self._add_numbers(_mapping(line, "metrics"))
        for name, group in self._groups.items():
            self._add_texts(group, _mapping(line, name))
        if failed := _mapping(line, "failed"):
            self._failed[self._count] = {name: str(reason) for name, reason in failed.items()}
        if extra := {name: value for name, value in line.items() if name not in _KNOWN}:
            self._extra[self._count] = extra
        self._count += 1

    def _add_numbers(self, found: Mapping[str, Any]) -> None:
        for name in found:
            _check_count(self._metrics, name)
            if name not in self._metrics:
                self._metrics[name] = array("d", [math.nan]) * self._count
        for name, column in self._metrics.items():
            column.append(_number(found.get(name)))

    def _add_texts(self, columns: dict[str, _Texts], found: Mapping[str, Any]) -> None:
        for name in found:
            _check_count(columns, name)
            if name not in columns:
                columns[name] = _Texts(self._count)
        for name, column in columns.items():
            column.add(found.get(name))

    def results(self, folder: Path) -> Results:
        study, complete = read_study(folder)
        groups = {
            name: {key: texts.labels() for key, texts in sorted(group.items())}
            for name, group in self._groups.items()
        }
        return Results(
            folder,
            **{name: texts.labels() for name, texts in self._texts.items()},
            seed=np.array(self._seed, np.int64),
            scale=np.array(self._scale, np.float64),
            metrics={name: np.array(values) for name, values in self._metrics.items()},
            hashes=groups["hashes"],
            extractors=groups["extractors"],
            failed=self._failed,
            extra=self._extra,
            study=study,
            complete=complete,
        )


def _check_count(columns: Mapping[str, Any], name: str) -> None:
    """Each name is a column over all lines."""
    if len(columns) >= MAX_NAMES and name not in columns:
        raise ValueError(f"more than {MAX_NAMES} metrics, hashes or extractors")


def _check_inside(picture: Any) -> None:
    """A study of a stranger names only pictures of its own."""
    if not isinstance(picture, str):
        raise ValueError(f"picture {_shown(picture)} is not text")
    parts = PurePosixPath(picture.replace("\\", "/")).parts
    if ".." in parts or picture.startswith(("/", "\\")) or picture[1:2] == ":":
        raise ValueError(f"picture {_shown(picture)} leads out of the study")


def _mapping(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = line.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is not an object")
    return found


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_shown(value)} is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"seed {_shown(value)} is not a whole number")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
