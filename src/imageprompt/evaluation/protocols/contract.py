"""What a protocol is: a data set in its published layout, a study of it, and derived figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.untrusted import Budget, parse_json, read_regular
from imageprompt.evaluation.scoring.pictures import SUFFIXES
from imageprompt.evaluation.settings import Setting, mean_of
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference

if TYPE_CHECKING:
    from imageprompt.evaluation.metrics.contract import Rows
    from imageprompt.evaluation.scoring import Scorer
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.judging import Verdicts

Array = NDArray[np.float64]

MAX_TEXT = 2**20  # bytes of the text of a picture, or of all prompts
MAX_JSON, MAX_VALUES = 2**24, 1_000_000  # COCO's captions of 2017 are 4 MB, with 200,000 values


@dataclass(frozen=True)
class Choice:
    """One choice of a protocol: what its paper or code states, and what is done here."""

    topic: str
    stated: str
    """"not stated" where it is not."""
    here: str


@dataclass(frozen=True)
class ProtocolData:
    """A data set as it was read."""

    references: Sequence[StudyReference]
    cases: Sequence[Case]
    used: int
    total: int
    unit: str
    """What `used` and `total` count, such as "subjects"."""
    expected: int
    """How many the published data set has."""

    @property
    def told(self) -> str:
        """How much of the data set this is, in one line."""
        if self.used < self.total:
            return f"the first {self.used:,} of {self.total:,} {self.unit}: a subset"
        if self.total != self.expected:
            return f"{self.total:,} {self.unit}; the published set has {self.expected:,}"
        return f"all {self.total:,} {self.unit}"


@dataclass(frozen=True)
class Figure:
    """A figure of a protocol for an adapter at a scale, for the control or for the ceiling."""

    name: str
    setting: str
    value: float | None
    interval: Sequence[float] | None
    n: int
    note: str = ""

    @classmethod
    def of(cls, name: str, setting: str, values: ArrayLike, labels: Any, note: str = "") -> Figure:
        """The mean of values [n] over clusters [n]; those not finite are left out."""
        found = mean_of(np.asarray(values, np.float64), np.asarray(labels))
        return cls(name, setting, found.value, found.interval.as_list(), found.n, note)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value != ""}


@dataclass(frozen=True)
class Measured:
    """What a protocol's figures are made of."""

    settings: Sequence[Setting]
    data: ProtocolData
    scorer: Scorer
    verdicts: Verdicts | None
    """Of a judge model, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A published protocol."""

    name: str
    title: str
    summary: str
    source: str
    layout: str
    """The files that it reads, one a line."""
    choices: tuple[Choice, ...]
    defaults: Mapping[str, Any]
    """Keys of the study; each can be replaced."""
    read: Callable[[Path, Path, int | None], ProtocolData]
    """(folder, root, limit) -> data. Raises NotFoundError, PictureError, OptionError."""
    figures: Callable[[Measured], Iterator[Figure]]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figures of the paper: method -> name -> value."""
    check: Callable[[StudyConfig], None] = lambda config: None
    """Raises OptionError for a study that the protocol does not allow."""

    def report(self, measured: Measured) -> dict[str, Any]:
        """What study.json says of it."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "data": measured.data.told,
            "choices": [vars(one) for one in self.choices],
            "figures": [one.as_dict() for one in self.figures(measured)],
            "published": {name: {**row} for name, row in self.published.items()},
        }


# ── reading data sets ───────────────────────────────────────────────────────────────────────────


def need_folder(path: Path, protocol: str, layout: str) -> Path:
    """The folder, if it is one. Raises OptionError that says what belongs there."""
    if not path.is_dir():
        raise OptionError(
            f"data {str(path)!r}",
            reason=f"not a folder; {protocol} reads {layout}",
            hint="Name the folder that has them: --data DIR.",
        )
    return path


def pictures_of(folder: Path, most: int = 100_000) -> list[Path]:
    """The pictures in one folder, sorted by name. Raises PictureError, OptionError."""
    found = []
    for entry in folder.iterdir():
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            found.append(entry)
            if len(found) > most:
                raise OptionError(f"data {str(folder)!r}", reason=f"more than {most:,} pictures")
    if not found:
        raise PictureError(f"data {str(folder)!r}", reason="no pictures in this folder")
    return sorted(found)


def folders_of(folder: Path, most: int = 100_000) -> list[Path]:
    """The folders in one, sorted by name. Raises OptionError if there are none, or too many."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            found.append(entry)
            if len(found) > most:
                raise OptionError(f"data {str(folder)!r}", reason=f"more than {most:,} folders")
    if not found:
        raise OptionError(f"data {str(folder)!r}", reason="no folders in it")
    return sorted(found)


def read_json_file(path: Path) -> Any:
    """A JSON file of a data set. Raises OptionError."""
    try:
        content = read_regular(path, MAX_JSON)
        return parse_json(content, Budget(nbytes=MAX_JSON, items=MAX_VALUES))
    except FileNotFoundError as error:
        raise OptionError(f"data {str(path)!r}", reason="no such file") from error
    except (OSError, ValueError) as error:
        raise OptionError(f"data {str(path)!r}", reason=f"cannot be read: {error}") from error


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def likeness(pictures: Rows, references: Rows) -> Array:
    """Cosines of features [n, d] and [m, d]: [n, m]; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        unit = [
            rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (pictures, references)
        ]
    found: Array = unit[0] @ unit[1].T
    return found


def mean_where(values: Array, chosen: NDArray[np.bool_]) -> Array:
    """The mean over the chosen columns of each row; NaN where none is."""
    with np.errstate(invalid="ignore"):
        found: Array = np.where(chosen, values, 0).sum(1) / chosen.sum(1)
    return found


def by_reference(setting: Setting) -> ArrayLike:
    """The clusters of a protocol whose unit is the reference, [n]."""
    return setting.lines.reference.codes


def of_metrics(measured: Measured, names: Mapping[str, str], note: str = "") -> Iterator[Figure]:
    """Figure name -> metric: its mean over references, for each setting."""
    for setting in measured.settings:
        for name, metric in names.items():
            values = setting.lines.metrics.get(metric)
            if values is not None and np.isfinite(values).any():
                yield Figure.of(name, setting.name, values, by_reference(setting), note)
