"""What stands on a page: the numbers, words and pictures of each section, for the templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from imageprompt.evaluation.balance import Axes, metric_of, title_of
from imageprompt.evaluation.comparability import extractors_of, within
from imageprompt.evaluation.compare import Comparison
from imageprompt.evaluation.conclusions import pairs_of_adapters, verdicts
from imageprompt.evaluation.phrases import counted, listed
from imageprompt.evaluation.report import plots
from imageprompt.evaluation.report.pictures import Gallery
from imageprompt.evaluation.report.shown import copying, differing, extremes, grid
from imageprompt.evaluation.report.summary import (
    against_each_other,
    cards,
    chosen_settings,
    comparison_rows,
    is_number,
    set_metrics,
    summary_rows,
)
from imageprompt.evaluation.settings import Front, Setting, settings_of
from imageprompt.evaluation.study.results import ADAPTER, CEILING, CONTROL, Results

MAX_STATED = 2000
"""Figures and choices of a protocol."""


def study_sections(results: Results, axes: Axes | None, gallery: Gallery) -> dict[str, Any]:
    """Everything that `study.html` shows."""
    settings = settings_of(results)
    front = None if axes is None else Front.of(settings, axes)
    adapters = [*dict.fromkeys(one.adapter for one in settings if one.adapter)]
    colours = {name: number % plots.COLOURS for number, name in enumerate(adapters)}
    chosen = chosen_settings(settings, front)
    pairs = {} if axes is None else pairs_of_adapters(results, settings, axes)
    of_sets = set_metrics(results)
    names = [*results.metrics, *dict.fromkeys(name for one in of_sets.values() for name in one)]
    titles = {name: title_of(name) for name in names}
    context = {
        "title": f"{listed(adapters) or 'References'} on {listed(results.base.distinct())}",
        "kicker": "imageprompt evaluation",
        "facts": _facts(results, settings),
        "complete": results.complete,
        "colours": colours,
        "axes": axes,
        "titles": titles,
        "encoders": _encoders(results, names),
        "protocol": _protocol(results.study.get("protocol")),
        "metrics": names,
        "cards": [*cards(results, settings, front, chosen, colours)],
        "rows": summary_rows(settings, names, of_sets, front, colours),
        "against": [*against_each_other(pairs, colours)],
        "verdicts": [*verdicts(pairs)],
        "unit": results.clusters()[0],
        "problems": within(results, settings),
        "plots": _plots(settings, front, chosen, titles),
        "grid": grid(results, settings, gallery),
        "extremes": extremes(results, chosen, axes, gallery),
        "copying": copying(results, gallery),
        "explained": [*_explained(results, names)],
        "environment": _environment(results),
        "failed": _failed(results),
    }
    gallery.load()
    sections = {
        "summary": "Summary",
        **({"protocol": "Protocol"} if context["protocol"] else {}),
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
        "rows": comparison_rows(comparison),
        "titles": {row.metric: title_of(row.metric) for row in comparison.rows},
        "strips": [*differing(comparison, gallery)],
        "explained": [*_explained(comparison.pairs[0], [row.metric for row in comparison.rows])],
        "unit": comparison.unit,
    }
    gallery.load()
    sections = {"summary": "Summary", "pairs": "Pictures", "metrics": "Metrics"}
    return context | {"sections": sections.items()}


# ── facts ──────────────────────────────────────────────────────────────────────────────────────


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
    parts = [counted(count, name) for name, count in counts.items()]
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
        "trade_off": plots.trade_off(settings, front, titles)
        if front is not None and any(front.on_front)
        else None,
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
            "title": title_of(name),
            "metric": found,
            "direction": {True: "higher", False: "lower"}.get(
                found.higher_is_better if found is not None else None  # type: ignore[arg-type]
            ),
            "extractor": stated.get(role, {}),
            "fingerprints": fingerprints,
        }


def _protocol(stated: Any) -> dict[str, Any] | None:
    """What study.json says of the protocol, without what has another shape; None if nothing."""
    if not isinstance(stated, dict):
        return None
    figures, choices, published = (stated.get(key) for key in ("figures", "choices", "published"))
    return {
        **{key: str(stated.get(key, "")) for key in ("title", "data", "source")},
        "figures": [one for one in _dicts(figures) if _is_figure(one)],
        "choices": [
            {key: str(one.get(key, "")) for key in ("topic", "stated", "here")}
            for one in _dicts(choices)
        ],
        "published": {
            method: {name: value for name, value in row.items() if is_number(value)}
            for method, row in (published.items() if isinstance(published, dict) else ())
            if isinstance(row, dict)
        },
    }


def _dicts(value: Any) -> list[dict[str, Any]]:
    found = value[:MAX_STATED] if isinstance(value, list) else []
    return [one for one in found if isinstance(one, dict)]


def _is_figure(one: Mapping[str, Any]) -> bool:
    ends = one.get("interval") or [None, None]
    return (
        {"name", "setting", "value", "n"} <= one.keys()
        and is_number(one["n"])
        and isinstance(ends, list)
        and len(ends) == 2
        and all(end is None or is_number(end) for end in (one["value"], *ends))
    )


def _encoders(results: Results, names: Sequence[str]) -> dict[str, str]:
    """Metric -> the name of its encoder, which says where the weights are not those published."""
    stated = extractors_of(results)
    roles = {name: metric_of(name) for name in names}
    return {
        name: str(stated[str(found.extractor)]["name"])
        for name, found in roles.items()
        if found is not None and "name" in stated.get(str(found.extractor), {})
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
