"""The numbers of a page: an adapter at its best, a row for each setting, adapters in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imageprompt.evaluation.compare import Comparison
from imageprompt.evaluation.conclusions import Pairs, command_of
from imageprompt.evaluation.report.figures import Bar, Span, bar
from imageprompt.evaluation.settings import Front, Mean, Setting
from imageprompt.evaluation.statistics.intervals import UNKNOWN, Interval
from imageprompt.evaluation.study.results import ADAPTER, MAX_NAMES, Results

MAX_SETTINGS = 500
"""Of a page."""

Colours = Mapping[str, int]
"""Adapter -> the number of its colour."""


@dataclass(frozen=True)
class Card:
    """An adapter at the scale of its best balance."""

    setting: Setting
    colour: int
    knee: bool
    """Is it a knee, not the only or the first scale?"""
    bars: Mapping[str, Bar]
    command: str | None
    """How to generate with it."""


def chosen_settings(settings: Sequence[Setting], front: Front | None) -> dict[str, Setting]:
    """The setting that stands for each adapter: its knee, or its largest scale."""
    found = {one.adapter: one for one in settings if one.adapter is not None}
    if front is not None:
        found |= {adapter: settings[index] for adapter, index in front.knees.items()}
    return found


def cards(
    results: Results,
    settings: Sequence[Setting],
    front: Front | None,
    chosen: Mapping[str, Setting],
    colours: Colours,
) -> Iterator[Card]:
    for adapter, setting in chosen.items():
        names = [] if front is None else [front.axes.likeness, front.axes.text]
        bars = {name: _bar(setting, name, _span(settings, name)) for name in names}
        knee = front is not None and adapter in front.knees
        yield Card(setting, colours[adapter], knee, bars, command_of(results, setting))


@dataclass(frozen=True)
class SummaryRow:
    setting: Setting
    means: Mapping[str, Mean]
    bars: Mapping[str, Bar]
    colour: int | None
    on_front: bool
    knee: bool


def summary_rows(
    settings: Sequence[Setting],
    names: Sequence[str],
    of_sets: Mapping[tuple[str | None, float | None], Mapping[str, Mean]],
    front: Front | None,
    colours: Colours,
) -> list[SummaryRow]:
    none = Mean(None, UNKNOWN, 0)
    means = [
        {
            name: {**one.means, **of_sets.get((one.adapter, one.scale), {})}.get(name, none)
            for name in names
        }
        for one in settings
    ]
    spans = {name: _span_of([row[name] for row in means]) for name in names}
    knees = set() if front is None else {*front.knees.values()}
    return [
        SummaryRow(
            one,
            row,
            {name: bar(row[name].value, row[name].interval, spans[name]) for name in names},
            colours.get(str(one.adapter)),
            front is not None and front.on_front[index] and one.row == ADAPTER,
            index in knees,
        )
        for index, (one, row) in enumerate(zip(settings, means, strict=True))
    ]


def set_metrics(results: Results) -> dict[tuple[str | None, float | None], dict[str, Mean]]:
    """(adapter, scale) -> the metrics of whole sets, which only the study's summary has."""
    found = {}
    rows = results.study.get("summary")
    for row in rows[:MAX_SETTINGS] if isinstance(rows, list) else []:
        if (
            isinstance(row, dict)
            and isinstance(row.get("metrics"), dict)
            and len(row["metrics"]) <= MAX_NAMES
            and isinstance(row.get("adapter"), str | None)
            and (row.get("scale") is None or is_number(row["scale"]))
        ):
            means = {
                name: mean
                for name, stated in row["metrics"].items()
                if name not in results.metrics and (mean := _stated_mean(stated)) is not None
            }
            found[row.get("adapter"), row.get("scale")] = means
    return found


def _stated_mean(stated: Any) -> Mean | None:
    """A mean as study.json has it; None for what is none."""
    if not isinstance(stated, dict) or not is_number(stated.get("value")):
        return None
    ends = stated.get("interval")
    known = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
    count = stated.get("n", 0)
    return Mean(
        float(stated["value"]),
        Interval(*map(float, ends)) if known else UNKNOWN,  # type: ignore[arg-type]
        int(count) if is_number(count) else 0,
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bar(setting: Setting, metric: str, span: Span) -> Bar:
    mean = setting.means[metric]
    return bar(mean.value, mean.interval, span)


def _span(settings: Sequence[Setting], metric: str) -> Span:
    return _span_of([one.means[metric] for one in settings])


def _span_of(means: Sequence[Mean]) -> Span:
    ends = [end for one in means for end in (one.interval.low, one.interval.high)]
    return Span.of([*ends, *(one.value for one in means if one.value is not None)])


@dataclass(frozen=True)
class Against:
    """Two adapters at one scale, on both axes."""

    comparison: Comparison
    scale: float
    rows: Mapping[str, Any]
    bars: Mapping[str, Bar]
    names: tuple[str, str]
    colours: tuple[int, int]


def against_each_other(pairs: Pairs, colours: Colours) -> Iterator[Against]:
    """Each pair of adapters at each scale that both have."""
    found = [
        (comparison, scale, names) for names, one in pairs.items() for scale, comparison in one
    ]
    differences = [
        (row.metric, end)
        for comparison, _, _ in found
        for row in comparison.rows
        for end in (row.result.difference, row.result.interval.low, row.result.interval.high)
    ]
    for comparison, scale, (a, b) in found:
        rows = {row.metric: row for row in comparison.rows}
        bars = {}
        for name, row in rows.items():
            ends = [end for metric, end in differences if metric == name]
            span = Span.of([*ends, *(-end for end in ends)])
            bars[name] = bar(row.result.difference, row.result.interval, span, zero=True)
        yield Against(comparison, scale, rows, bars, (a, b), (colours[a], colours[b]))


def comparison_rows(comparison: Comparison) -> list[tuple[Any, Bar]]:
    found = []
    for row in comparison.rows:
        one = row.result
        ends = [one.difference, one.interval.low, one.interval.high, one.smallest_detectable]
        span = Span.of([*ends, *(-end for end in ends)])
        found.append((row, bar(one.difference, one.interval, span, zero=True)))
    return found
