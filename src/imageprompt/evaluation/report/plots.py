"""The plots of a report: SVG whose colours are CSS variables of the page, so one suits any theme.

matplotlib draws in colours that stand for the variables, and their names replace them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.evaluation.settings import Front, Setting
from imageprompt.evaluation.statistics.intervals import Interval
from imageprompt.evaluation.study.results import ADAPTER, CEILING, CONTROL

INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"}
COLOURS = 6
"""Adapters that have a colour of their own."""
_SERIES = [f"#05050{number}" for number in range(COLOURS)]
_VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(_SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are shown as they are
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "axes.unicode_minus": True,
    "lines.solid_capstyle": "round",
}
_BINS = 24


def colour_of(number: int) -> str:
    """The colour that stands for an adapter's variable."""
    return _SERIES[number % COLOURS]


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """A figure in inches; at the end of the block, the list holds its SVG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    name = re.sub(r"[^a-z0-9-]", "_", name)
    drawn: list[str] = []
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, drawn
        stream = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=empty, transparent=True)
    drawn.append(_inline(stream.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """As part of a page: no prologue, names that no other plot has, variables for colours."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg)


# ── plots ───────────────────────────────────────────────────────────────────────────────────────


def trade_off(settings: Sequence[Setting], front: Front, titles: Mapping[str, str]) -> str:
    """Likeness over text following: a line for each adapter, a point for each scale."""
    likeness, text = front.axes.likeness, front.axes.text
    with _figure("balance", 5, 4) as (figure, drawn):
        axes = figure.subplots()
        axes.grid(True)
        labels = _Labels(axes, settings, (text, likeness))
        for number, adapter in enumerate(_adapters(settings)):
            colour, knee = colour_of(number), front.knees.get(adapter)
            own = [i for i, one in enumerate(settings) if one.adapter == adapter]
            points = np.array([[settings[i].value(name) for name in (text, likeness)] for i in own])
            axes.plot(*points.T, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
            for i, (x, y) in zip(own, points, strict=True):
                _cross(axes, settings[i], text, likeness, colour)
                fill = colour if front.on_front[i] else PAPER
                axes.plot(x, y, "o", color=colour, markerfacecolor=fill, markersize=5.5, zorder=4)
                if knee == i:
                    ring = {"markerfacecolor": "none", "markersize": 12, "zorder": 3}
                    axes.plot(x, y, "o", color=colour, **ring)
            for i in sorted(own, key=lambda i: i not in (knee, own[0], own[-1])):
                labels.add(f"{settings[i].scale:g}", settings[i], colour, above=number % 2 == 0)
        for one in settings:
            if one.row == CONTROL and np.isfinite([one.value(text), one.value(likeness)]).all():
                place = one.value(text), one.value(likeness)
                axes.plot(*place, "D", color=MUTED, markersize=5.5, zorder=4)
                labels.add("text alone", one, MUTED, above=True)
            if one.row == CEILING and np.isfinite(one.value(likeness)):
                axes.axhline(one.value(likeness), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                axes.annotate(
                    "ceiling",
                    (0, one.value(likeness)),
                    xycoords=("axes fraction", "data"),
                    xytext=(3, 3),
                    textcoords="offset points",
                    color=MUTED,
                    fontsize=8,
                )
        axes.set_xlabel(f"text following: {titles[text]} →")
        axes.set_ylabel(f"likeness: {titles[likeness]} →")
        _invert(axes, text, likeness)
        axes.margins(0.09)
    return drawn[0]


def _invert(axes: Any, text: str, likeness: str) -> None:
    """Better is always to the right and to the top."""
    from imageprompt.evaluation.balance import higher_is_better

    if higher_is_better(text) is False:
        axes.invert_xaxis()
    if higher_is_better(likeness) is False:
        axes.invert_yaxis()


def over_scale(settings: Sequence[Setting], metric: str, title: str) -> str:
    """A metric over the scale: a line and its intervals for each adapter, text alone, ceiling."""
    with _figure(f"scale-{metric}", 5, 2.4) as (figure, drawn):
        axes = figure.subplots()
        axes.grid(True, axis="y")
        for number, adapter in enumerate(_adapters(settings)):
            own = [one for one in settings if one.adapter == adapter and metric in one.means]
            scales = [one.scale for one in own]
            ends = np.array([_ends(one.means[metric].interval) for one in own]).reshape(-1, 2)
            colour = colour_of(number)
            axes.fill_between(scales, *ends.T, color=colour, alpha=0.14, linewidth=0)
            values = [one.value(metric) for one in own]
            axes.plot(scales, values, "o-", color=colour, linewidth=1.6, markersize=4)
        for one in settings:
            if one.row != ADAPTER and np.isfinite(one.value(metric)):
                style = (0, (4, 3)) if one.row == CEILING else (0, (1, 2))
                axes.axhline(one.value(metric), color=MUTED, linewidth=1, linestyle=style)
                axes.annotate(
                    one.name,
                    (1, one.value(metric)),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    color=MUTED,
                    ha="right",
                    fontsize=8,
                )
        axes.set_xlabel("scale")
        axes.set_title(title, loc="left", color=INK, fontsize=9.5)
    return drawn[0]


def distribution(
    groups: Mapping[str, tuple[str, NDArray[np.float64]]], name: str, title: str
) -> str:
    """Histograms of a metric: name -> (colour, values); shares of the pictures of each group."""
    everything = np.concatenate([values for _, values in groups.values()])
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    with _figure(f"spread-{name}", 3.4, 2) as (figure, drawn):
        axes = figure.subplots()
        for colour, values in groups.values():
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.13)
            axes.stairs(shares, edges, color=colour, linewidth=1.4)
            axes.axvline(float(values.mean()), color=colour, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_title(title, loc="left", color=INK, fontsize=9.5)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return drawn[0]


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


def _adapters(settings: Sequence[Setting]) -> list[str]:
    return [*dict.fromkeys(one.adapter for one in settings if one.adapter)]


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _cross(axes: Any, setting: Setting, text: str, likeness: str, colour: str) -> None:
    """The intervals of a point."""
    x, y = setting.value(text), setting.value(likeness)
    line = {"color": colour, "linewidth": 0.8, "alpha": 0.3, "zorder": 1}
    axes.plot(_ends(setting.means[text].interval), (y, y), **line)
    axes.plot((x, x), _ends(setting.means[likeness].interval), **line)


class _Labels:
    """Words beside points; those that would lie on others are left out."""

    def __init__(self, axes: Any, settings: Sequence[Setting], metrics: tuple[str, str]) -> None:
        self._axes, self._metrics = axes, metrics
        points = np.array([[one.value(name) for name in metrics] for one in settings])
        with np.errstate(invalid="ignore"):
            extent = np.nanmax(points, 0) - np.nanmin(points, 0)
        self._room = np.where(extent > 0, extent, 1) * (0.09, 0.055)
        self._taken: list[NDArray[np.float64]] = []

    def add(self, words: str, setting: Setting, colour: str, *, above: bool) -> None:
        place = np.array([setting.value(name) for name in self._metrics])
        side = place + np.array([0, self._room[1] if above else -self._room[1]])
        if any((np.abs(side - other) < self._room).all() for other in self._taken):
            return
        self._taken.append(side)
        self._axes.annotate(
            words,
            place,
            xytext=(6, 5 if above else -5),
            textcoords="offset points",
            color=colour,
            va="bottom" if above else "top",
            fontsize=8,
            zorder=5,
        )
