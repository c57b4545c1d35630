"""Scorer: the values of metrics for each picture, and their mean with an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import compress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import ImagePromptError, OptionError, PictureError
from imageprompt.encoding.images.open_image import picture_size
from imageprompt.evaluation.extractors import EXTRACTORS, Backbone, Extractor, TextExtractor
from imageprompt.evaluation.metrics import (
    METRICS,
    FeatureMetric,
    Metric,
    PixelMetric,
    SetMetric,
    TextMetric,
    TwoSetMetric,
)
from imageprompt.evaluation.metrics.contract import Pixels, Range, Rows, Values
from imageprompt.evaluation.scoring.features import FeatureStore
from imageprompt.evaluation.scoring.pictures import Picture
from imageprompt.evaluation.statistics.intervals import (
    UNKNOWN,
    Interval,
    jackknife,
    mean_interval,
)
from imageprompt.loading import quiet_loading
from imageprompt.loading.pipeline import usable_device

_REFERENCE = "its reference: "
_GIVE = {
    "references": "Name a picture or a folder to compare with, or choose another metric.",
    "texts": "Give a file of them, one a line: --prompts FILE.",
}


@dataclass(frozen=True)
class Score:
    """A metric over all pictures."""

    metric: Metric
    value: float | None
    """Mean over the pictures that have a finite value; None if none has."""
    n: int
    """How many pictures that is."""
    interval: Interval
    """95 %, over prompts where they are known, else over pictures."""
    infinite: int = 0
    """Pictures whose value is infinite, such as the PSNR of equal ones: not part of the mean."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Picture -> why it has no value."""
    extractor: str | None = None
    """Which extractor made the features."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Of a metric of two sets: the sizes of their pictures in pixels, if they differ."""

    @property
    def warning(self) -> str:
        """Why the figure says little; "" if nothing is known against it."""
        advised = self.metric.steady_count
        found = []
        if 0 < self.n < advised:
            found.append(f"of {self.n} pictures; it is steady from about {advised} on")
        if self.sizes:
            ends = " to ".join("{}x{}".format(*one) for one in (self.sizes[0], self.sizes[-1]))
            found.append(f"of {len(self.sizes)} sizes, {ends}: resizing them changes the figure")
        return "; ".join(found)

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        more = {
            "extractor": self.extractor,
            "infinite": self.infinite,
            "failed": {**self.failed},
            "warning": self.warning,
        }
        return {
            "value": self.value,
            "n": self.n,
            "interval": self.interval.as_list(),
            "higher_is_better": self.metric.higher_is_better,
            **{name: value for name, value in more.items() if value},
        }


@dataclass(frozen=True)
class PictureValues:
    """The values of one metric: one for each picture, NaN where there is none."""

    values: Values
    failed: Mapping[str, str]


class Scorer:
    """Computes metrics; extractors are opened when a metric first needs them, and kept.

    `extractors` maps a role to a folder, file or Hub id, or to a Backbone. `store` keeps
    features; by default those of this object only.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        extractors: Mapping[str, str | Backbone] | None = None,
        *,
        store: FeatureStore | None = None,
        device: str | None = None,
        on_progress: Callable[[str, int, int], object] = lambda phase, done, total: None,
    ) -> None:
        """Raises OptionError for an unknown metric or role, or a device that is not here."""
        self.metrics = {name: METRICS[name] for name in dict.fromkeys(metrics)}
        self._given = dict(extractors or {})
        for role in self._given:
            EXTRACTORS[role]
        self._store = store or FeatureStore()
        self._device = None if device is None else usable_device(device)
        self._on_progress = on_progress
        self._opened: dict[str, Backbone] = {}

    def extractor(self, role: str) -> Backbone:
        """The extractor of a role. Raises EncoderError, NotFoundError."""
        if role not in self._opened:
            given = self._given.get(role)
            if given is None or isinstance(given, str):
                with quiet_loading(True):
                    given = EXTRACTORS[role].open(given, device=self._device)
            self._opened[role] = given
        return self._opened[role]

    def open_extractors(self) -> dict[str, Backbone]:
        """The extractors of all metrics, by role: errors come before the work."""
        roles = {one.extractor for one in self.metrics.values() if one.extractor is not None}
        return {role: self.extractor(role) for role in sorted(roles)}

    def features(self, role: str, pictures: Sequence[Picture]) -> Rows:
        """The features of pictures, [n, width]; NaN for one that cannot be read."""
        return self._store.rows(pictures, cast(Extractor, self.extractor(role)), {})

    @cached_property
    def of_pictures(self) -> list[str]:
        """The metrics that have a value for each picture."""
        kinds = (PixelMetric, FeatureMetric, TextMetric)
        return [name for name, metric in self.metrics.items() if isinstance(metric, kinds)]

    @property
    def compares_pairs(self) -> bool:
        """Does a metric compare each picture with a reference of its own?"""
        pairs = (PixelMetric, FeatureMetric)
        return any(isinstance(metric, pairs) for metric in self.metrics.values())

    def values(
        self,
        name: str,
        pictures: Sequence[Picture],
        references: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
    ) -> PictureValues:
        """One value for each picture; references and texts are one for each picture.

        Raises OptionError if the metric needs references or texts and there are none.
        """
        metric, failed = self.metrics[name], dict[str, str]()
        unread = dict[str, str]()  # references
        if isinstance(metric, TextMetric):
            extractor, lines = self._text_extractor(metric), _needed(metric, texts, "texts")
            ours = self._rows(metric, pictures, failed)
            found = metric.compare(ours, _encode_texts(extractor, lines))
        elif isinstance(metric, FeatureMetric):
            others = _needed(metric, references, "references")
            found = metric.compare(
                self._rows(metric, pictures, failed), self._rows(metric, others, unread)
            )
        elif isinstance(metric, PixelMetric):
            others = _needed(metric, references, "references")
            found = np.empty(len(pictures), np.float64)
            for index, pair in enumerate(zip(pictures, others, strict=True)):
                found[index] = self._compare(metric, *pair, failed)
                self._on_progress(name, index + 1, len(pictures))
        else:
            raise OptionError(
                f"metric {name}",
                reason="compares whole sets: a single picture has no value",
            )
        for index in np.flatnonzero(np.isnan(found)).tolist():
            reference = None if references is None else unread.get(references[index].name)
            reason = metric.missing if reference is None else f"{_REFERENCE}{reference}"
            failed.setdefault(pictures[index].name, reason)
        return PictureValues(found, failed)

    def score(
        self,
        pictures: Sequence[Picture],
        references: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        *,
        reference_set: Sequence[Picture] | None = None,
    ) -> dict[str, Score]:
        """Each metric over all pictures, by the metric's name or the names of its parts.

        References and texts are one for each picture. Metrics of whole sets take `reference_set`,
        by default the references. Raises OptionError.
        """
        scores: dict[str, Score] = {}
        for name, metric in self.metrics.items():
            if isinstance(metric, SetMetric | TwoSetMetric):
                scores.update(self._set_scores(metric, pictures, reference_set or references))
            else:
                found = self.values(name, pictures, references, texts)
                scores[name] = self.summary(name, found)
        return scores

    def set_scores(
        self, pictures: Sequence[Picture], references: Sequence[Picture] | None
    ) -> dict[str, Score]:
        """The metrics of whole sets alone. Raises OptionError."""
        return {
            name: score
            for metric in self.metrics.values()
            if isinstance(metric, SetMetric | TwoSetMetric)
            for name, score in self._set_scores(metric, pictures, references)
        }

    def summary(
        self, name: str, found: PictureValues, clusters: Sequence[object] | None = None
    ) -> Score:
        """The mean of values of `values`, with an interval over clusters or over pictures."""
        finite = np.isfinite(found.values)
        values = found.values[finite]
        kept = None if clusters is None else [*compress(clusters, finite)]
        interval = mean_interval(values, kept) if len(values) else UNKNOWN
        return Score(
            self.metrics[name],
            float(values.mean()) if len(values) else None,
            len(values),
            _within(interval, self.metrics[name].range_of(name)),
            int(np.isinf(found.values).sum()),
            found.failed,
            self._extractor_name(self.metrics[name]),
        )

    def _set_scores(
        self,
        metric: SetMetric | TwoSetMetric,
        pictures: Sequence[Picture],
        references: Sequence[Picture] | None,
    ) -> Iterator[tuple[str, Score]]:
        failed = dict[str, str]()
        pictures = [*{id(one): one for one in pictures}.values()]  # one beside many references
        ours = _complete(self._rows(metric, pictures, failed))
        _check_count(metric, len(ours), "pictures")
        sizes: tuple[tuple[int, int], ...] = ()
        if isinstance(metric, TwoSetMetric):
            others = _needed(metric, references, "references")
            unread = dict[str, str]()
            theirs = _complete(self._rows(metric, others, unread))
            failed |= {f"reference {name}": reason for name, reason in unread.items()}
            _check_count(metric, len(theirs), "references")
            measure = partial(_measure_beside, metric, ours, theirs)
            sizes = _different_sizes([*pictures, *others])
        else:
            measure = partial(_measure, metric, ours)
        for name, found in jackknife(measure, range(len(ours))).items():
            yield (
                name,
                Score(
                    metric,
                    found.value,
                    len(ours),
                    _within(found.interval, metric.range_of(name)),
                    failed=failed,
                    extractor=self._extractor_name(metric),
                    sizes=sizes,
                ),
            )

    def _rows(self, metric: Metric, pictures: Sequence[Picture], failed: dict[str, str]) -> Rows:
        extractor = cast(Extractor, self.extractor(str(metric.extractor)))
        tell = partial(self._on_progress, f"features: {metric.extractor}")
        return self._store.rows(pictures, extractor, failed, on_pictures=tell)

    def _compare(
        self, metric: PixelMetric, picture: Picture, reference: Picture, failed: dict[str, str]
    ) -> float:
        model = () if metric.extractor is None else (self.extractor(metric.extractor),)
        try:
            pixels = _pixels(picture, metric), _pixels(reference, metric, _REFERENCE)
            if metric.same_size and pixels[0].shape != pixels[1].shape:
                sizes = " and ".join("{1}x{0}".format(*one.shape) for one in pixels)
                raise PictureError(picture.name, reason=f"not as large as its reference: {sizes}")
            return metric.compare(*pixels, *model)
        except ImagePromptError as error:
            failed[picture.name] = error.reason
            return np.nan

    def _text_extractor(self, metric: TextMetric) -> TextExtractor:
        extractor = self.extractor(metric.extractor)
        if isinstance(extractor, TextExtractor):
            return extractor
        raise OptionError(
            f"metric {metric.name}",
            reason=f"{extractor.name} has no text encoder",
            hint=f"Name one that has, such as --extractor {metric.extractor}="
            "openai/clip-vit-large-patch14.",
        )

    def _extractor_name(self, metric: Metric) -> str | None:
        return None if metric.extractor is None else self.extractor(metric.extractor).name


def _pixels(picture: Picture, metric: PixelMetric, which: str = "") -> Pixels:
    """Raises PictureError, whose reason begins with `which` picture it is."""
    try:
        image = picture.open()
    except PictureError as error:
        raise PictureError(error.what, reason=f"{which}{error.reason}", hint=error.hint) from error
    if min(image.size) < metric.min_side:
        raise PictureError(
            picture.name,
            reason=f"{which}{image.width}x{image.height}, and {metric.title} needs "
            f"{metric.min_side} pixels on the shorter side",
        )
    return np.asarray(image)


def _encode_texts(extractor: TextExtractor, texts: Sequence[str]) -> Rows:
    """Each text once."""
    distinct = [*dict.fromkeys(texts)]
    rows = dict(zip(distinct, extractor.encode_text(distinct), strict=True))
    return np.stack([rows[text] for text in texts])


def _needed(metric: Metric, given: Sequence[Any] | None, what: str) -> Sequence[Any]:
    if given is None:
        raise OptionError(
            f"metric {metric.name}",
            reason=f"compares pictures with {what}: none",
            hint=_GIVE[what],
        )
    return given


def _complete(rows: Rows) -> Rows:
    """The rows that have no NaN."""
    return rows[np.isfinite(rows).all(1)]


def _different_sizes(pictures: Sequence[Picture]) -> tuple[tuple[int, int], ...]:
    """The sizes of those that can be read, smallest first; () if there is one only."""
    found = set()
    for one in pictures:
        with suppress(PictureError):
            found.add(picture_size(one.source))
    return tuple(sorted(found)) if len(found) > 1 else ()


def _check_count(metric: Metric, count: int, what: str) -> None:
    if count < metric.min_count:
        raise OptionError(
            f"metric {metric.name}",
            reason=f"{count} {what.removesuffix('s') if count == 1 else what}, and it needs at "
            f"least {metric.min_count}",
            hint=f"Give more {what}, or leave the metric out.",
        )


def _measure(metric: SetMetric, ours: Rows, rows: NDArray[np.int64]) -> Mapping[str, float]:
    return {metric.name: metric.measure(ours[rows])}


def _measure_beside(
    metric: TwoSetMetric, ours: Rows, theirs: Rows, rows: NDArray[np.int64]
) -> Mapping[str, float]:
    found = metric.measure(ours[rows], theirs)
    return found if isinstance(found, Mapping) else {metric.name: found}


def _within(interval: Interval, limits: Range) -> Interval:
    """Ends of an interval no further than the values that there can be."""
    low, high = limits
    return Interval(
        interval.low if low is None else max(interval.low, low),
        interval.high if high is None else min(interval.high, high),
    )
