"""What stands on a page: the numbers, words and pictures of each section, for the templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.balance import Axes, metric_of, oriented
from imageprompt.evaluation.comparability import extractors_of, within
from imageprompt.evaluation.compare import Comparison, compare
from imageprompt.evaluation.report import plots
from imageprompt.evaluation.report.figures import Bar, Span, bar, figure
from imageprompt.evaluation.report.pictures import Gallery, Shown
from imageprompt.evaluation.settings import TITLES, Front, Mean, Setting, settings_of
from imageprompt.evaluation.statistics.intervals import UNKNOWN, Interval
from imageprompt.evaluation.study.results import ADAPTER, CEILING, CONTROL, Results
from imageprompt.evaluation.words import listed

BEST_AND_WORST = 12
COPYING = "copying"
COPY, RELATED = 0.7, 0.5
"""Values of `copying` from which a picture counts as a copy, and as related."""
MAX_GRID = 600
"""Pictures of the grid; the pairs beyond are in the folder."""
MAX_PAIRS_OF_ADAPTERS = 6

Colours = Mapping[str, int]


def study_sections(results: Results, axes: Axes | None, gallery: Gallery) -> dict[str, Any]:
    """Everything that `study.html` shows."""
    settings = settings_of(results)
    front = None if axes is None else Front.of(settings, axes)
    adapters = [*dict.fromkeys(one.adapter for one in settings if one.adapter)]
    colours = {name: number % plots.COLOURS for number, name in enumerate(adapters)}
    chosen = _chosen(settings, front)
    of_sets = _set_metrics(results)
    names = [*results.metrics, *dict.fromkeys(name for one in of_sets.values() for name in one)]
    titles = {name: _title(name) for name in names}
    context = {
        "title": f"{listed(adapters) or 'References'} on {listed(results.base.distinct())}",
        "kicker": "imageprompt evaluation",
        "facts": _facts(results, settings),
        "complete": results.complete,
        "colours": colours,
        "axes": axes,
        "titles": titles,
        "metrics": names,
        "cards": [*_cards(settings, front, chosen, colours)],
        "rows": _summary(settings, names, of_sets, front, colours),
        "against": [*_against(results, settings, axes, colours)],
        "unit": results.clusters()[0],
        "problems": within(results, settings),
        "plots": _plots(settings, front, chosen, titles),
        "grid": _grid(results, settings, gallery),
        "extremes": _extremes(results, chosen, axes, gallery),
        "copying": _copying(results, gallery),
        "explained": [*_explained(results, names)],
        "environment": _environment(results),
        "failed": _failed(results),
    }
    gallery.load()
    sections = {
        "summary": "Summary",
        "balance": "Likeness and text",
        "grid": "Pictures",
        "extremes": "Best and worst",
        "copying": "Copying",
        "spread": "Distributions",
        "metrics": "Metrics",
        "environment": "Environment",
    }
    return context | {"sections": sections.items(), "side": gallery.side}


def comparison_sections(comparison: Comparison, gallery: Gallery) -> dict[str, Any]:
    """Everything that `comparison.html` shows."""
    clusters = max(row.result.clusters for row in comparison.rows)
    pairs = len(comparison.pairs[0])
    context = {
        "title": f"{comparison.a} against {comparison.b}",
        "kicker": "imageprompt comparison",
        "facts": f"{pairs} pairs of pictures with the same prompt, reference and seed; "
        f"{clusters} {comparison.unit}s",
        "comparison": comparison,
        "rows": _comparison_rows(comparison),
        "titles": {row.metric: _title(row.metric) for row in comparison.rows},
        "strips": [*_differing(comparison, gallery)],
        "explained": [*_explained(comparison.pairs[0], [row.metric for row in comparison.rows])],
        "unit": comparison.unit,
    }
    gallery.load()
    sections = {"summary": "Summary", "pairs": "Pictures", "metrics": "Metrics"}
    return context | {"sections": sections.items()}


# ── summary ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Card:
    """An adapter at the scale of its best balance."""

    setting: Setting
    colour: int
    knee: bool
    """Is it a knee, not the only or the first scale?"""
    bars: Mapping[str, Bar]


def _chosen(settings: Sequence[Setting], front: Front | None) -> dict[str, Setting]:
    """The setting that stands for each adapter: its knee, or its largest scale."""
    found = {one.adapter: one for one in settings if one.adapter is not None}
    if front is not None:
        found |= {adapter: settings[index] for adapter, index in front.knees.items()}
    return found


def _cards(
    settings: Sequence[Setting],
    front: Front | None,
    chosen: Mapping[str, Setting],
    colours: Colours,
) -> Iterator[Card]:
    for adapter, setting in chosen.items():
        names = [] if front is None else [front.axes.likeness, front.axes.text]
        bars = {name: _bar(setting, name, _span(settings, name)) for name in names}
        knee = front is not None and adapter in front.knees
        yield Card(setting, colours[adapter], knee, bars)


@dataclass(frozen=True)
class SummaryRow:
    setting: Setting
    means: Mapping[str, Mean]
    bars: Mapping[str, Bar]
    colour: int | None
    on_front: bool
    knee: bool


def _summary(
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


def _set_metrics(results: Results) -> dict[tuple[str | None, float | None], dict[str, Mean]]:
    """(adapter, scale) -> the metrics of whole sets, which only the study's summary has."""
    found = {}
    rows = results.study.get("summary")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("metrics"), dict):
            means = {
                name: mean
                for name, stated in row["metrics"].items()
                if name not in results.metrics and (mean := _stated_mean(stated)) is not None
            }
            found[row.get("adapter"), row.get("scale")] = means
    return found


def _stated_mean(stated: Any) -> Mean | None:
    """A mean as study.json has it; None for what is none."""
    if not isinstance(stated, dict) or not isinstance(stated.get("value"), int | float):
        return None
    ends = stated.get("interval")
    interval = Interval(*ends) if isinstance(ends, list) and len(ends) == 2 else UNKNOWN
    return Mean(stated["value"], interval, int(stated.get("n", 0)))


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


def _against(
    results: Results, settings: Sequence[Setting], axes: Axes | None, colours: Colours
) -> Iterator[Against]:
    """Each pair of adapters at each scale that both have."""
    if axes is None:
        return
    names = [*colours]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = []
    for a, b in pairs[:MAX_PAIRS_OF_ADAPTERS]:
        scales = [{one.scale for one in settings if one.adapter == name} for name in (a, b)]
        for scale in sorted(scale for scale in scales[0] & scales[1] if scale is not None):
            one, other = (results.where(adapter=name, scale=scale) for name in (a, b))
            try:
                found.append((compare(one, other, [axes.likeness, axes.text]), scale, (a, b)))
            except OptionError:  # unequal or incomparable sets: `problems` says why
                continue
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


def _comparison_rows(comparison: Comparison) -> list[tuple[Any, Bar]]:
    found = []
    for row in comparison.rows:
        one = row.result
        ends = [one.difference, one.interval.low, one.interval.high, one.smallest_detectable]
        span = Span.of([*ends, *(-end for end in ends)])
        found.append((row, bar(one.difference, one.interval, span, zero=True)))
    return found


def _facts(results: Results, settings: Sequence[Setting]) -> str:
    of_adapters = results.where(row=ADAPTER)
    scales = [
        f"{scale:g}" for scale in np.unique(of_adapters.scale[np.isfinite(of_adapters.scale)])
    ]
    counts = {
        "prompt": len(of_adapters.prompt.distinct()),
        "reference": len(of_adapters.reference.distinct()),
        "seed": len(np.unique(of_adapters.seed)),
    }
    made = len(results.take(~results.row.equal(CEILING)).picture.distinct())
    parts = [_counted(count, name) for name, count in counts.items()]
    scale = f"scale{'s' if len(scales) > 1 else ''} {listed(scales)}"
    return f"{made:,} pictures: {', '.join(parts)}, {scale}"


# ── plots ───────────────────────────────────────────────────────────────────────────────────────


def _plots(
    settings: Sequence[Setting],
    front: Front | None,
    chosen: Mapping[str, Setting],
    titles: Mapping[str, str],
) -> dict[str, Any] | None:
    """The plots by name; None if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    over = []
    if front is not None and any(one.row == ADAPTER for one in settings):
        names = (front.axes.likeness, front.axes.text)
        over = [plots.over_scale(settings, name, titles[name]) for name in names]
    return {
        "trade_off": plots.trade_off(settings, front, titles) if front is not None else None,
        "over_scale": over,
        "spread": [*_distributions(settings, chosen, titles)],
    }


def _distributions(
    settings: Sequence[Setting], chosen: Mapping[str, Setting], titles: Mapping[str, str]
) -> Iterator[str]:
    shown = [(plots.MUTED, one) for one in settings if one.row == CONTROL]
    shown += [(plots.colour_of(number), one) for number, one in enumerate(chosen.values())]
    for name in settings[0].lines.metrics:
        title, groups = titles[name], {}
        for colour, one in shown:
            values = one.lines.metrics[name]
            if len(finite := values[np.isfinite(values)]):
                groups[one.name] = (colour, finite)
        if groups:
            yield plots.distribution(groups, name, title)


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Grid:
    """Prompt and reference by setting, one seed for all."""

    heads: Sequence[Setting]
    rows: Sequence[tuple[str, Shown | None, Sequence[Shown | None]]]
    seed: int
    left_out: int


def _grid(results: Results, settings: Sequence[Setting], gallery: Gallery) -> Grid | None:
    heads = [one for one in settings if one.row in (CONTROL, ADAPTER)]
    of_adapters = results.where(row=ADAPTER)
    if not len(of_adapters):
        return None
    seed = int(of_adapters.seed.min())
    places: list[dict[tuple[str | None, str | None], int]] = []
    for one in heads:
        rows = np.flatnonzero(one.lines.seed == seed).tolist()
        places.append({(one.lines.prompt[row], one.lines.reference[row]): row for row in rows})
    cases = [*dict.fromkeys(key for found in places for key in found)]
    kept = cases[: max(1, MAX_GRID // (len(heads) + 1))]
    shown = []
    for prompt, reference in kept:
        cells = [
            _shown(one.lines, found[prompt, reference], gallery)
            if (prompt, reference) in found
            else None
            for one, found in zip(heads, places, strict=True)
        ]
        source = next(
            (one.lines.reference_path(found[prompt, reference]), one.lines)
            for one, found in zip(heads, places, strict=True)
            if (prompt, reference) in found
        )[0]
        picture = None if source is None else gallery.add(source, f"reference {source.name}")
        shown.append((prompt or "no text", picture, cells))
    return Grid(heads, shown, seed, len(cases) - len(kept))


def _shown(lines: Results, row: int, gallery: Gallery) -> Shown:
    return gallery.add(lines.picture_path(row), _about(lines, row))


def _about(lines: Results, row: int) -> str:
    """Prompt, setting, seed and values of a picture."""
    adapter, scale, seed = lines.adapter[row], float(lines.scale[row]), int(lines.seed[row])
    kind = lines.row[row]
    setting = f"{adapter}, scale {scale:g}" if kind == ADAPTER else TITLES[str(kind)]
    values = [
        f"{_title(name)} {figure(float(column[row]))}" for name, column in lines.metrics.items()
    ]
    text = lines.prompt[row]
    words = [f"“{text}”" if text else "no text", setting]
    words += [f"seed {seed}"] if seed >= 0 else []
    return f"{', '.join(words)}\n{', '.join(values)}"


@dataclass(frozen=True)
class Listed:
    """A picture beside its reference, with a short line."""

    picture: Shown
    reference: Shown | None
    line: str
    tag: str = ""


def _extremes(
    results: Results, chosen: Mapping[str, Setting], axes: Axes | None, gallery: Gallery
) -> dict[str, Any] | None:
    """The best and the worst pictures, by the weaker axis of each."""
    if axes is None or not chosen:
        return None
    parts = [one.lines for one in chosen.values()]
    rows: list[tuple[Results, int, float]] = []
    names = ", ".join(one.name for one in chosen.values())
    pool = [
        (part, row)
        for part in parts
        for row in range(len(part))
        if np.isfinite(part.metrics[axes.likeness][row])
        and np.isfinite(part.metrics[axes.text][row])
    ]
    if not pool:
        return None
    ranks = [
        _ranks(oriented(name, [float(part.metrics[name][row]) for part, row in pool]))
        for name in (axes.likeness, axes.text)
    ]
    score = np.minimum(*ranks) + 1e-3 * (ranks[0] + ranks[1])
    order = np.argsort(-score, kind="stable")
    count = min(BEST_AND_WORST, len(pool) // 2)
    rows = [(*pool[i], float(score[i])) for i in order]
    shown = [
        [_listing(part, row, [axes.likeness, axes.text], gallery) for part, row, _ in some]
        for some in (rows[:count], rows[::-1][:count])
    ]
    return {"best": shown[0], "worst": shown[1], "of": names, "count": len(pool)}


def _listing(
    lines: Results, row: int, metrics: Sequence[str], gallery: Gallery, tag: str = ""
) -> Listed:
    source = lines.reference_path(row)
    values = ", ".join(figure(float(lines.metrics[name][row])) for name in metrics)
    adapter = lines.adapter[row]
    return Listed(
        _shown(lines, row, gallery),
        None if source is None else gallery.add(source, f"reference {source.name}"),
        f"{adapter} {lines.scale[row]:g}: {values}",
        tag,
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks from 0 to 1: equal values have equal ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts + 1) / 2
    ranks: NDArray[np.float64] = middle[inverse] / max(1, len(values) - 1)
    return ranks


def _copying(results: Results, gallery: Gallery) -> dict[str, Any] | None:
    """The pictures most like a copy of their reference; None if that is not measured."""
    if COPYING not in results.metrics:
        return None
    lines = results.where(row=ADAPTER)
    values = lines.metrics[COPYING]
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(-values[known], kind="stable")][:BEST_AND_WORST]
    return {
        "copies": int((values[known] > COPY).sum()),
        "related": int(((values[known] > RELATED) & (values[known] <= COPY)).sum()),
        "count": len(known),
        "limits": (RELATED, COPY),
        "listed": [
            _listing(
                lines,
                int(row),
                [COPYING],
                gallery,
                "copy" if values[row] > COPY else "related" if values[row] > RELATED else "",
            )
            for row in order
        ],
    }


def _differing(comparison: Comparison, gallery: Gallery) -> Iterator[dict[str, Any]]:
    """For each metric the pairs that speak most for A, and for B."""
    a, b = comparison.pairs
    for row in comparison.rows:
        difference = oriented(row.metric, b.metrics[row.metric] - a.metrics[row.metric])
        known = np.flatnonzero(np.isfinite(difference) & (difference != 0))
        order = known[np.argsort(-difference[known], kind="stable")]
        half = BEST_AND_WORST // 2
        sides = {
            comparison.b: [i for i in order[:half] if difference[i] > 0],
            comparison.a: [i for i in order[::-1][:half] if difference[i] < 0],
        }
        for name, chosen in sides.items():
            if chosen:
                yield {
                    "metric": row.metric,
                    "name": name,
                    "pairs": [_one_pair(a, b, int(i), row.metric, gallery) for i in chosen],
                }


def _one_pair(a: Results, b: Results, row: int, metric: str, gallery: Gallery) -> dict[str, Any]:
    source = a.reference_path(row)
    values = (figure(float(one.metrics[metric][row])) for one in (a, b))
    return {
        "reference": None if source is None else gallery.add(source, f"reference {source.name}"),
        "a": _shown(a, row, gallery),
        "b": _shown(b, row, gallery),
        "line": " and ".join(values),
        "prompt": a.prompt[row] or "no text",
    }


# ── what was measured, and by what ──────────────────────────────────────────────────────────────


def _explained(results: Results, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Formula, source and encoder of each metric."""
    stated = extractors_of(results)
    for name in names:
        found = metric_of(name)
        role = str(found.extractor) if found is not None else ""
        fingerprints = results.extractors[role].distinct() if role in results.extractors else []
        yield {
            "name": name,
            "title": _title(name),
            "metric": found,
            "direction": {True: "higher", False: "lower"}.get(
                found.higher_is_better if found is not None else None  # type: ignore[arg-type]
            ),
            "extractor": stated.get(role, {}),
            "fingerprints": fingerprints,
        }


def _environment(results: Results) -> list[tuple[str, str]]:
    """What the study says of where and how it ran, as lines."""
    study = results.study
    found: list[tuple[str, str]] = []
    for part in ("environment", "config"):
        found += _flat(study.get(part), "")
    for name, labels in results.hashes.items():
        if name in ("adapter", "base") and (distinct := labels.distinct()):
            found.append((f"hash of {name}", ", ".join(distinct)))
    return found


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "extractors":
                yield from _flat(one, f"{name} {key}".strip())
    elif value not in (None, "", [], ()):
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name.replace("_", " "), shown


def _failed(results: Results) -> list[tuple[str, str, int]]:
    """Metric, reason and number of pictures without a value."""
    counts: dict[tuple[str, str], int] = {}
    for reasons in results.failed.values():
        for name, reason in reasons.items():
            counts[name, reason] = counts.get((name, reason), 0) + 1
    return [(name, reason, count) for (name, reason), count in sorted(counts.items())]


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def _title(name: str) -> str:
    found = metric_of(name)
    return found.title if found is not None and found.name == name else name


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
