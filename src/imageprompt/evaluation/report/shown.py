"""The pictures of a page: the grid, the best and the worst, copies, and pairs that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.untrusted import is_inside
from imageprompt.evaluation.balance import Axes, oriented, title_of
from imageprompt.evaluation.compare import Comparison
from imageprompt.evaluation.report.figures import figure
from imageprompt.evaluation.report.pictures import Gallery, Shown
from imageprompt.evaluation.settings import TITLES, Setting
from imageprompt.evaluation.study.results import ADAPTER, CONTROL, Results

BEST_AND_WORST = 12
COPYING = "copying"
COPY, RELATED = 0.7, 0.5
"""Values of `copying` from which a picture counts as a copy, and as related."""
MAX_GRID = 600
"""Pictures of the grid; the pairs beyond are in the folder."""


@dataclass(frozen=True)
class Grid:
    """Prompt and reference by setting, one seed for all."""

    heads: Sequence[Setting]
    rows: Sequence[tuple[str, Shown | None, Sequence[Shown | None]]]
    seed: int
    left_out: int


def grid(results: Results, settings: Sequence[Setting], gallery: Gallery) -> Grid | None:
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
        lines, row = next(
            (one.lines, found[prompt, reference])
            for one, found in zip(heads, places, strict=True)
            if (prompt, reference) in found
        )
        shown.append((prompt or "no text", _reference(lines, row, gallery), cells))
    return Grid(heads, shown, seed, len(cases) - len(kept))


def _shown(lines: Results, row: int, gallery: Gallery) -> Shown:
    path = lines.picture_path(row)
    return gallery.add(path, _about(lines, row), own=is_inside(path, lines.folder))


def _reference(lines: Results, row: int, gallery: Gallery) -> Shown | None:
    path = lines.reference_path(row)
    if path is None:
        return None
    return gallery.add(path, f"reference {path.name}", own=lines.may_show(row, path))


def _about(lines: Results, row: int) -> str:
    """Prompt, setting, seed and values of a picture."""
    adapter, scale, seed = lines.adapter[row], float(lines.scale[row]), int(lines.seed[row])
    kind = lines.row[row]
    setting = f"{adapter}, scale {scale:g}" if kind == ADAPTER else TITLES[str(kind)]
    values = [
        f"{title_of(name)} {figure(float(column[row]))}" for name, column in lines.metrics.items()
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


def extremes(
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
    values = ", ".join(figure(float(lines.metrics[name][row])) for name in metrics)
    adapter = lines.adapter[row]
    return Listed(
        _shown(lines, row, gallery),
        _reference(lines, row, gallery),
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


def copying(results: Results, gallery: Gallery) -> dict[str, Any] | None:
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


def differing(comparison: Comparison, gallery: Gallery) -> Iterator[dict[str, Any]]:
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
    values = (figure(float(one.metrics[metric][row])) for one in (a, b))
    return {
        "reference": _reference(a, row, gallery),
        "a": _shown(a, row, gallery),
        "b": _shown(b, row, gallery),
        "line": " and ".join(values),
        "prompt": a.prompt[row] or "no text",
    }
