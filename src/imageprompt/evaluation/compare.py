"""`compare`: two adapters on the same prompts, references and seeds, metric by metric."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imageprompt.core.console import aligned, with_head
from imageprompt.core.errors import OptionError, as_text
from imageprompt.evaluation.balance import higher_is_better
from imageprompt.evaluation.comparability import between
from imageprompt.evaluation.phrases import known_ones, listed
from imageprompt.evaluation.settings import part_of_pair
from imageprompt.evaluation.statistics.paired import PairedResult, compare_differences, holm
from imageprompt.evaluation.study.results import ADAPTER, MIN_CLUSTERS, Results

LISTED = 10
"""Missing pictures that a message names."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class MetricComparison:
    """One metric: the means of A and B over the pairs, and how B differs from A."""

    metric: str
    a: float
    b: float
    result: PairedResult
    p_holm: float
    """Adjusted for the number of metrics (Holm)."""
    left_out: int = 0
    """Pairs in which a picture has no finite value."""

    @property
    def higher_is_better(self) -> bool | None:
        return higher_is_better(self.metric)

    @property
    def better(self) -> str | None:
        """ "A" or "B" if the difference is beyond chance and has a direction, else None."""
        if self.higher_is_better is None or not self.p_holm < SIGNIFICANT:
            return None
        return "B" if (self.result.difference > 0) == self.higher_is_better else "A"

    @property
    def wins(self) -> float:
        """The share of pairs in which B is better, ties counted half."""
        rate = self.result.win_rate
        return 1 - rate if self.higher_is_better is False else rate

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        one = self.result
        lost = {"left_out": self.left_out} if self.left_out else {}
        return {
            "a": self.a,
            "b": self.b,
            "difference": one.difference,
            "interval": one.interval.as_list(),
            "p": one.p,
            "p_holm": self.p_holm,
            "win_rate": self.wins,
            "smallest_detectable": _plain(one.smallest_detectable),
            "pairs": one.pairs,
            "clusters": one.clusters,
            "higher_is_better": self.higher_is_better,
            "better": self.better,
            **lost,
        }


@dataclass(frozen=True)
class Comparison:
    """Two settings, pair by pair; `str` is what the command prints."""

    a: str
    b: str
    rows: Sequence[MetricComparison]
    unit: str
    """What the intervals are over: "prompt" or "reference"."""
    pairs: tuple[Results, Results]
    """The lines of A and of B in the order of the pairs."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "pairs": len(self.pairs[0]),
            "unit": self.unit,
            "metrics": {row.metric: row.as_dict() for row in self.rows},
            "notes": [*self.notes],
        }

    @property
    def verdict(self) -> str:
        """What the comparison found, in a sentence."""
        found = {
            name: [row.metric for row in self.rows if row.better == side]
            for side, name in (("A", self.a), ("B", self.b))
        }
        parts = [f"{name} is better at {listed(won)}" for name, won in found.items() if won]
        if parts:
            return f"{'; '.join(parts)}."
        return "No metric tells the two apart: the differences may be chance."

    def __str__(self) -> str:
        head = ("metric", "A", "B", "B - A", "95 %", "p (Holm)", "B wins", "detectable", "better")
        rows = [
            (
                row.metric,
                _short(row.a),
                _short(row.b),
                f"{row.result.difference:+.3g}",
                _range(row),
                f"{row.p_holm:.2g}",
                f"{row.wins:.0%}",
                _short(row.result.smallest_detectable),
                row.better or "-",
            )
            for row in self.rows
        ]
        clusters = max(row.result.clusters for row in self.rows)
        return as_text(
            (
                f"A: {self.a}",
                f"B: {self.b}",
                f"{len(self.pairs[0])} pairs of {clusters} {self.unit}s",
                "",
                *aligned(with_head(head, rows), ""),
                "",
                self.verdict,
                *self.notes,
            )
        )


def compare(a: Results, b: Results, metrics: Collection[str] | None = None) -> Comparison:
    """Compare two sets of lines by (prompt, reference, seed), and by scale where there are several.

    `a` and `b` are `read_results` of a study, or parts of one (`Results.where`); only lines of
    adapters count, of one adapter each. Raises OptionError for unequal sets, with what is missing;
    for other encoders or references; for a metric that either lacks.
    """
    a, b = (one.where(row=ADAPTER) for one in (a, b))
    names = _names(a, b)
    _check_parts(a, b)
    chosen = _metrics(a, b, metrics)
    if problems := between(a, b, chosen):
        raise OptionError(
            f"{names[0]} and {names[1]}",
            reason=f"not comparable because {'; '.join(problems)}",
            hint="Evaluate both with the same encoders.",
        )
    a, b = _paired(a, b)
    _check_references(a, b)
    unit, clusters = a.clusters()
    rows, lost = [], []
    for metric in chosen:
        values = a.metrics[metric], b.metrics[metric]
        finite = np.isfinite(values[0]) & np.isfinite(values[1])
        if not finite.any():
            lost.append(metric)
            continue
        one, other = (column[finite] for column in values)
        result = compare_differences(other - one, clusters[finite])
        means = float(one.mean()), float(other.mean())
        rows.append(MetricComparison(metric, *means, result, result.p, int((~finite).sum())))
    if not rows:
        raise OptionError("metrics", reason=f"no pair has a finite value of {listed(chosen)}")
    adjusted = holm({row.metric: row.result.p for row in rows})
    rows = [replace(row, p_holm=adjusted[row.metric]) for row in rows]
    return Comparison(*names, rows, unit, (a, b), _notes(a, b, rows, lost))


def part_of(results: Results, adapter: str | None = None, scale: float | None = None) -> Results:
    """The lines of an adapter, of a scale, or of both.

    Raises OptionError that lists what there is.
    """
    part = results.where(row=ADAPTER)
    if adapter is not None:
        known = part.adapter.distinct()
        if adapter not in known:
            raise OptionError(
                f"adapter {adapter!r}",
                reason="not in this study",
                hint=known_ones(adapter, known),
            )
        part = part.where(adapter=adapter)
    if scale is not None:
        scales = np.unique(part.scale)
        near = scales[np.abs(scales - scale) < 1e-9]
        if not len(near):
            raise OptionError(
                f"scale {scale:g}",
                reason="not in this study",
                hint=f"It has {listed([f'{one:g}' for one in scales])}.",
            )
        part = part.where(scale=float(near[0]))
    return part


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────


def _names(a: Results, b: Results) -> tuple[str, str]:
    """What to call the two. Raises OptionError unless each has lines of one adapter."""
    found = []
    for side, one in (("A", a), ("B", b)):
        adapters = one.adapter.distinct()
        if len(adapters) != 1:
            raise OptionError(
                f"{side}, {one.folder}",
                reason=f"has pictures of {listed(adapters) or 'no adapter'}",
                hint="Name one with --adapter." if adapters else "Finish the study first.",
            )
        scales = np.unique(one.scale)
        what = "scale" if len(scales) == 1 else "scales"
        found.append(f"{adapters[0]}, {what} {', '.join(f'{scale:g}' for scale in scales)}")
    if found[0] == found[1]:
        found = [f"{name} ({one.folder.name})" for name, one in zip(found, (a, b), strict=True)]
    return found[0], found[1]


def _check_parts(a: Results, b: Results) -> None:
    """The content of a pair of adapters is compared with content alone. Raises OptionError."""
    parts = [part_of_pair(one, one.adapter.distinct()[0]) for one in (a, b)]
    if parts[0] != parts[1]:
        told = [f"the {part} of a pair" if part else "a single adapter" for part in parts]
        raise OptionError(
            f"{told[0]} and {told[1]}",
            reason="not comparable because they are measured on different references",
            hint="Compare content with content, or style with style.",
        )


def _metrics(a: Results, b: Results, given: Collection[str] | None) -> list[str]:
    shared = [name for name in a.metrics if name in b.metrics]
    if given is None:
        if not shared:
            raise OptionError("metrics", reason="A and B have none in common")
        return shared
    for name in given:
        if name not in shared:
            raise OptionError(
                f"metric {name!r}",
                reason="not in both",
                hint=known_ones(name, shared),
            )
    return [*dict.fromkeys(given)]


def _paired(a: Results, b: Results) -> tuple[Results, Results]:
    """The lines of both in the order of A. Raises OptionError for unequal sets."""
    with_scale = any(len(np.unique(one.scale)) > 1 for one in (a, b))
    rows = tuple(_by_key(one, side, with_scale) for one, side in ((a, "A"), (b, "B")))
    problems = []
    total = len(rows[0].keys() | rows[1].keys())
    for side, missing in (
        ("A", [*rows[1].keys() - rows[0].keys()]),
        ("B", [*rows[0].keys() - rows[1].keys()]),
    ):
        if missing:
            shown = "; ".join(sorted(map(_described, missing))[:LISTED])
            more = f"; and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            problems.append(f"{side} lacks {len(missing)} of {total}: {shown}{more}")
    if problems:
        raise OptionError(
            "A and B are unequal sets",
            reason=". ".join(problems),
            hint="Generate what is missing with `imageprompt evaluate`, or name one --scale.",
        )
    keys = [*rows[0]]
    return a.take([rows[0][key] for key in keys]), b.take([rows[1][key] for key in keys])


_Key = tuple[Any, ...]


def _by_key(results: Results, side: str, with_scale: bool) -> dict[_Key, int]:
    found: dict[_Key, int] = {}
    scales: Any = results.scale.tolist() if with_scale else [None] * len(results)
    columns = (results.prompt, results.reference, results.seed.tolist(), scales)
    for row, key in enumerate(zip(*columns, strict=True)):
        if key in found:
            raise OptionError(
                f"{side}, {results.folder}",
                reason=f"has two pictures of {_described(key)}",
                hint="Delete one of the lines.",
            )
        found[key] = row
    return found


def _described(key: _Key) -> str:
    prompt, reference, seed, scale = key
    at = "" if scale is None else f", scale {scale:g}"
    return f"{prompt!r}, {reference}, seed {seed}{at}"


def _check_references(a: Results, b: Results) -> None:
    """A name may stand for another picture in the other study. Raises OptionError."""
    if "reference" not in a.hashes or "reference" not in b.hashes:
        return
    columns = zip(a.reference, a.hashes["reference"], b.hashes["reference"], strict=True)
    changed = {name for name, one, other in columns if one and other and one != other}
    if changed:
        raise OptionError(
            "A and B",
            reason="not comparable because these references differ: "
            f"{listed(sorted(map(str, changed))[:LISTED])} ({len(changed)} in all)",
            hint="Evaluate both with the same pictures.",
        )


def _notes(
    a: Results, b: Results, rows: Sequence[MetricComparison], lost: Sequence[str]
) -> tuple[str, ...]:
    notes = [
        f"{row.metric}: {row.left_out} pairs without a finite value are left out"
        for row in rows
        if row.left_out
    ]
    notes += [f"{metric}: no pair has a finite value" for metric in lost]
    bases = [_base(one) for one in (a, b)]
    if bases[0] != bases[1]:
        notes.append(f"the bases differ: {bases[0]} and {bases[1]}")
    clusters = max(row.result.clusters for row in rows)
    if clusters < MIN_CLUSTERS + 1:
        lowest = 2.0 ** (1 - clusters)
        notes.append(
            f"{clusters} prompts or references: p cannot fall below {lowest:.2g}; add some"
        )
    if all(np.array_equal(a.metrics[row.metric], b.metrics[row.metric], True) for row in rows):
        notes.append("all values are equal: are these two adapters the same file?")
    return tuple(notes)


def _base(results: Results) -> str:
    hashes: Mapping[str, Any] = results.hashes
    found = [*results.base.distinct(), *(hashes["base"].distinct() if "base" in hashes else ())]
    return " ".join(found) or "unknown"


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def _range(row: MetricComparison) -> str:
    interval = row.result.interval
    return f"{interval.low:+.3g} to {interval.high:+.3g}" if interval.known else "-"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
