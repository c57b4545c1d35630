"""What the raters say together: means, preferences, agreement, and how carefully they rated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.rating.answers import EQUAL, Answer, Item, Key, Rater
from imageprompt.evaluation.rating.questions import AXES, PLANTED_AXIS
from imageprompt.evaluation.rating.subjects import clusters_of
from imageprompt.evaluation.statistics.agreement import Agreement, krippendorff
from imageprompt.evaluation.statistics.intervals import (
    Interval,
    mean_interval,
    share_interval,
)
from imageprompt.evaluation.statistics.paired import compare_differences, holm, sign_flip_p
from imageprompt.evaluation.statistics.preferences import (
    Strengths,
    bradley_terry_over_prompts,
    to_elo,
)

Array = NDArray[np.float64]
HIGH, LOW = (4, 5), (1, 2)


@dataclass(frozen=True)
class RaterReport:
    """One rater. `consistent` of `repeated` answers were given again; `failed` are planted ones."""

    name: str
    answers: int
    asked: int
    repeated: int
    consistent: int
    planted: int
    failed: tuple[str, ...]
    seconds: float
    """Median of an answer."""
    left: float | None
    """Share of the pictures on the left among those preferred; None on scales."""
    dropped: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "rater": self.name,
            "answers": self.answers,
            "asked": self.asked,
            "repeated": self.repeated,
            "consistent": self.consistent,
            "planted": self.planted,
            "failed": list(self.failed),
            "seconds": self.seconds,
            "left": self.left,
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class Mean:
    """A scale's mean for a condition, over answers."""

    condition: str
    axis: str
    value: float
    interval: Interval
    n: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "condition": self.condition,
            "axis": self.axis,
            "value": self.value,
            "interval": self.interval.as_list(),
            "n": self.n,
        }


@dataclass(frozen=True)
class Comparison:
    """Two conditions. On scales, `difference` is B's mean less A's; in pairs it is None.

    `win_rate` is how often B is preferred, ties counted half; p is that of the sign-flip test, and
    `p_holm` is adjusted for the number of comparisons.
    """

    a: str
    b: str
    axis: str
    difference: float | None
    interval: Interval | None
    win_rate: float
    win_interval: Interval
    ties: float
    n: int
    p: float
    p_holm: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "axis": self.axis,
            "difference": self.difference,
            "interval": None if self.interval is None else self.interval.as_list(),
            "win_rate": self.win_rate,
            "win_interval": self.win_interval.as_list(),
            "ties": self.ties,
            "n": self.n,
            "p": self.p,
            "p_holm": self.p_holm,
        }


@dataclass(frozen=True)
class Summary:
    """All that `ratings` says."""

    study: str
    mode: str
    conditions: tuple[str, ...]
    clustered_by: str
    clusters: int
    raters: list[RaterReport]
    means: list[Mean]
    comparisons: list[Comparison]
    agreement: Mapping[str, Agreement]
    """By axis; in pairs under "choice"."""
    strengths: Strengths | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "mode": self.mode,
            "clusters": {"of": self.clustered_by, "count": self.clusters},
            "raters": [one.as_dict() for one in self.raters],
            "means": [one.as_dict() for one in self.means],
            "comparisons": [one.as_dict() for one in self.comparisons],
            "agreement": {
                name: {
                    "alpha": None if np.isnan(one.alpha) else one.alpha,
                    "interval": one.interval.as_list(),
                    "items": one.items,
                }
                for name, one in self.agreement.items()
            },
            "strengths": list(self._strengths()),
        }

    def _strengths(self) -> Iterator[dict[str, Any]]:
        found = self.strengths
        if found is None:
            return
        elo = to_elo(found.values)
        for number, condition in enumerate(self.conditions):
            interval = found.intervals[number]
            ends = interval.as_list()
            yield {
                "condition": condition,
                "strength": float(found.values[number]),
                "interval": ends,
                "elo": float(elo[number]),
                "elo_interval": None if ends is None else to_elo(np.array(ends)).tolist(),
                "prior": found.prior,
                "resamples_with_prior": found.resamples_with_prior,
            }


def summarise(key: Key, raters: Sequence[Rater], *, drop_failed: bool = False) -> Summary:
    """Merge the answers of several raters; with `drop_failed`, without those of careless ones.

    A rater is careless who fails a planted question. Intervals are over prompts (else references,
    else pictures). Raises OptionError if no rater is left.
    """
    reports = [_report(key, rater, drop_failed) for rater in raters]
    kept = [rater for rater, one in zip(raters, reports, strict=True) if not one.dropped]
    if not kept:
        raise OptionError(
            f"{len(raters)} raters",
            reason="each failed a planted question",
            hint="Leave --drop-failed out to see their answers.",
        )
    items = key.asked
    clustered_by, labels = clusters_of([(one.prompt, one.reference) for one in items])
    index = dict(zip((one.id for one in items), labels, strict=True))
    votes = _Votes(key, kept, index)
    if key.mode == "pairs":
        comparisons = _adjusted(list(_choices(key, votes)))
        means: list[Mean] = []
        agreement = {"choice": krippendorff(_codes(key, kept), "nominal", labels)}
    else:
        rows = list(_scores(key, kept, index))
        means = list(_means(key, rows))
        comparisons = _adjusted(list(_differences(key, rows, votes)))
        agreement = {
            axis.name: krippendorff(table, "interval", labels)
            for axis in AXES
            for table in (_table(kept, items, axis.name),)
            if not np.isnan(table).all()
        }
    strengths = bradley_terry_over_prompts(votes.wins) if len(key.conditions) > 1 else None
    return Summary(
        key.study,
        key.mode,
        key.conditions,
        clustered_by,
        len(set(labels)),
        reports,
        means,
        comparisons,
        agreement,
        strengths,
    )


# ── one rater ───────────────────────────────────────────────────────────────────────────────────


def _report(key: Key, rater: Rater, drop_failed: bool) -> RaterReport:
    known, planted = list[Answer](), list[Answer]()
    for answer in rater.answers.values():
        (known if key.items[answer.item].expected is None else planted).append(answer)
    failed = tuple(one.item for one in planted if not _right(key.items[one.item], one))
    again = [one for one in rater.repeated.values() if one.item in rater.answers]
    consistent = sum(_same(rater.answers[one.item], one) for one in again)
    chosen = [one for one in known if one.choice not in ("", EQUAL)]
    left = sum(one.choice == one.left for one in chosen) / len(chosen) if chosen else None
    return RaterReport(
        rater.name,
        len(known),
        len(key.asked),
        len(again),
        consistent,
        len(planted),
        failed,
        round(median(one.seconds for one in rater.answers.values()), 1),
        left,
        drop_failed and bool(failed),
    )


def _right(item: Item, answer: Answer) -> bool:
    if item.expected in ("high", "low"):
        wanted = HIGH if item.expected == "high" else LOW
        return answer.scores.get(PLANTED_AXIS) in (None, *wanted)
    return answer.choice == item.expected


def _same(first: Answer, second: Answer) -> bool:
    """The same choice; on scales, no axis more than one point apart."""
    if first.choice or second.choice:
        return first.choice == second.choice
    shared = first.scores.keys() & second.scores.keys()
    return all(abs(first.scores[axis] - second.scores[axis]) <= 1 for axis in shared)


# ── preferences ─────────────────────────────────────────────────────────────────────────────────


class _Votes:
    """Who was preferred: `rows` are (A, B, score of B, cluster), A before B in the key.

    On scales a rater prefers the picture with more points "overall" of two for the same subject.
    """

    def __init__(self, key: Key, raters: Sequence[Rater], clusters: Mapping[str, str]) -> None:
        self._number = {name: number for number, name in enumerate(key.conditions)}
        find = self._of_pairs if key.mode == "pairs" else self._of_scales
        self.rows = [row for rater in raters for row in find(key, rater, clusters)]
        names = dict.fromkeys(clusters.values())
        place = {name: number for number, name in enumerate(names)}
        count = len(key.conditions)
        self.wins = np.zeros((len(names), count, count))
        for a, b, score, cluster in self.rows:
            self.wins[place[cluster], b, a] += score
            self.wins[place[cluster], a, b] += 1 - score

    def _of_pairs(
        self, key: Key, rater: Rater, clusters: Mapping[str, str]
    ) -> Iterator[tuple[int, int, float, str]]:
        for answer in rater.answers.values():
            item = key.items[answer.item]
            if item.expected is None:
                a, b = sorted(item.pictures, key=lambda one: self._number[item.pictures[one]])
                score = 0.5 if answer.choice == EQUAL else float(answer.choice == b)
                places = (self._number[item.pictures[one]] for one in (a, b))
                yield (*places, score, clusters[item.id])  # type: ignore[misc]

    def _of_scales(
        self, key: Key, rater: Rater, clusters: Mapping[str, str]
    ) -> Iterator[tuple[int, int, float, str]]:
        points: dict[str, dict[int, tuple[int, str]]] = {}
        for answer in rater.answers.values():
            item = key.items[answer.item]
            if item.expected is None and "overall" in answer.scores:
                (condition,) = item.pictures.values()
                found = points.setdefault(item.subject, {})
                found[self._number[condition]] = (answer.scores["overall"], clusters[item.id])
        for found in points.values():
            for a, b in combinations(sorted(found), 2):
                score = (np.sign(found[b][0] - found[a][0]) + 1) / 2
                yield a, b, float(score), found[a][1]

    def between(self, a: int, b: int) -> tuple[Array, list[str]]:
        """Scores of B against A, and their clusters."""
        found = [(score, cluster) for x, y, score, cluster in self.rows if (x, y) == (a, b)]
        return np.array([score for score, _ in found]), [cluster for _, cluster in found]


def _choices(key: Key, votes: _Votes) -> Iterator[Comparison]:
    for a, b in combinations(range(len(key.conditions)), 2):
        scores, labels = votes.between(a, b)
        if len(scores):
            yield Comparison(
                key.conditions[a],
                key.conditions[b],
                "choice",
                None,
                None,
                float(scores.mean()),
                share_interval(scores, labels),
                float((scores == 0.5).mean()),
                len(scores),
                sign_flip_p(scores - 0.5, labels),
            )


def _adjusted(comparisons: list[Comparison]) -> list[Comparison]:
    p = holm({str(number): one.p for number, one in enumerate(comparisons)})
    return [replace(one, p_holm=p[str(number)]) for number, one in enumerate(comparisons)]


def _codes(key: Key, raters: Sequence[Rater]) -> Array:
    """Choices [raters, items]: 0 and 1 for the condition, 2 for equal; NaN where there is none."""
    table = np.full((len(raters), len(key.asked)), np.nan)
    number = {name: place for place, name in enumerate(key.conditions)}
    for row, rater in enumerate(raters):
        for column, item in enumerate(key.asked):
            if answer := rater.answers.get(item.id):
                ordered = sorted(item.pictures, key=lambda one: number[item.pictures[one]])
                table[row, column] = [*ordered, EQUAL].index(answer.choice)
    return table


# ── scales ──────────────────────────────────────────────────────────────────────────────────────

Row = tuple[str, str, str, str, float]  # condition, axis, subject, cluster, score


def _scores(key: Key, raters: Sequence[Rater], clusters: Mapping[str, str]) -> Iterator[Row]:
    for rater in raters:
        for answer in rater.answers.values():
            item = key.items[answer.item]
            if item.expected is None:
                (condition,) = item.pictures.values()
                for axis, score in answer.scores.items():
                    yield condition, axis, item.subject, clusters[item.id], float(score)


def _means(key: Key, rows: Sequence[Row]) -> Iterator[Mean]:
    for axis in AXES:
        for condition in key.conditions:
            found = [row for row in rows if row[:2] == (condition, axis.name)]
            if found:
                values = [row[4] for row in found]
                interval = mean_interval(values, [row[3] for row in found])
                yield Mean(condition, axis.name, float(np.mean(values)), interval, len(found))


def _differences(key: Key, rows: Sequence[Row], votes: _Votes) -> Iterator[Comparison]:
    """By axis: means over the raters for the same subject, B less A."""
    for axis in AXES:
        tables = {name: _by_subject(rows, name, axis.name) for name in key.conditions}
        for a, b in combinations(range(len(key.conditions)), 2):
            first, second = tables[key.conditions[a]], tables[key.conditions[b]]
            shared = [subject for subject in first if subject in second]
            if not shared:
                continue
            values = np.array([second[one][0] - first[one][0] for one in shared])
            found = compare_differences(values, [first[one][1] for one in shared])
            yield Comparison(
                key.conditions[a],
                key.conditions[b],
                axis.name,
                found.difference,
                found.interval,
                found.win_rate,
                found.win_interval,
                float((values == 0).mean()),
                len(values),
                found.p,
            )


def _by_subject(rows: Sequence[Row], condition: str, axis: str) -> dict[str, tuple[float, str]]:
    """Subject -> mean over the raters, and its cluster."""
    found: dict[str, list[float]] = {}
    clusters: dict[str, str] = {}
    for name, of_axis, subject, cluster, score in rows:
        if (name, of_axis) == (condition, axis):
            found.setdefault(subject, []).append(score)
            clusters[subject] = cluster
    return {one: (float(np.mean(scores)), clusters[one]) for one, scores in found.items()}


def _table(raters: Sequence[Rater], items: Sequence[Item], axis: str) -> Array:
    """Scores [raters, items]; NaN where there is none."""
    table = np.full((len(raters), len(items)), np.nan)
    for row, rater in enumerate(raters):
        for column, item in enumerate(items):
            answer = rater.answers.get(item.id)
            if answer is not None and axis in answer.scores:
                table[row, column] = answer.scores[axis]
    return table
