"""What a study says to its reader: each adapter's best scale, and which adapter is better."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.evaluation.balance import Axes
from imageprompt.evaluation.compare import SIGNIFICANT, Comparison, compare
from imageprompt.evaluation.phrases import counted, listed
from imageprompt.evaluation.settings import Front, Setting, settings_of
from imageprompt.evaluation.study.results import Results

MAX_PAIRS_OF_ADAPTERS = 6
_OPTIONS = ("adapter", "variant", "reading", "encoder", "faces", "preset")

Pairs = Mapping[tuple[str, str], Sequence[tuple[float, Comparison]]]
"""Two adapters -> each scale that both have, and their comparison at it on both axes."""


def conclusions(results: Results) -> list[str]:
    """What there is to say in sentences; [] without both axes."""
    axes = Axes.of(results.metrics)
    if axes is None:
        return []
    settings = settings_of(results)
    front = Front.of(settings, axes)
    return [*_best_scales(settings, front), *verdicts(pairs_of_adapters(results, settings, axes))]


def _best_scales(settings: Sequence[Setting], front: Front) -> Iterator[str]:
    scales = Counter(one.adapter for one in settings if one.adapter is not None and not one.part)
    for adapter, count in scales.items():
        if adapter in front.knees:
            best = settings[front.knees[adapter]]
            yield f"{adapter}: the best balance of likeness and text is at scale {best.scale:g}"
        elif count > 1:
            yield f"{adapter}: too few scales for a best balance"


def pairs_of_adapters(results: Results, settings: Sequence[Setting], axes: Axes) -> Pairs:
    """The adapters of a study two by two; unequal or incomparable sets are left out."""
    scales: dict[str, set[float]] = {}
    for one in settings:
        if one.adapter is not None and one.scale is not None:
            scales.setdefault(one.adapter, set()).add(one.scale)
    names = [*scales]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found: dict[tuple[str, str], list[tuple[float, Comparison]]] = {}
    for a, b in pairs[:MAX_PAIRS_OF_ADAPTERS]:
        for scale in sorted(scales[a] & scales[b]):
            try:
                comparison = compare(
                    results.where(adapter=a, scale=scale),
                    results.where(adapter=b, scale=scale),
                    [axes.likeness, axes.text],
                )
            except OptionError:  # `comparability.within` says why
                continue
            found.setdefault((a, b), []).append((scale, comparison))
    return found


def verdicts(pairs: Pairs) -> Iterator[str]:
    """For each two adapters, which is better at which scale, or why that is not known."""
    for (a, b), compared in pairs.items():
        told = [
            f"at scale {scale:g}, {name} is better at {listed(won)}"
            for scale, comparison in compared
            for name, side in ((a, "A"), (b, "B"))
            if (won := [row.metric for row in comparison.rows if row.better == side])
        ]
        rows = [row for _, comparison in compared for row in comparison.rows]
        count, unit = max(row.result.clusters for row in rows), compared[0][1].unit
        needed = 1 + math.ceil(math.log2(len(compared[0][1].rows) / SIGNIFICANT))
        if told:
            yield f"{a} and {b}: {'; '.join(told)}"
        elif count < needed:
            yield (
                f"{a} and {b}: {counted(count, unit)} cannot show which is "
                f"better; use {needed} or more"
            )
        else:
            yield f"{a} and {b}: no scale tells them apart; the differences may be chance"


def command_of(results: Results, setting: Setting) -> str | None:
    """How to generate with a setting; None if the study does not say what its adapters are."""
    config: Any = results.study.get("config")
    adapters: Any = results.study.get("adapters")
    try:
        names = [one["name"] for one in adapters]
        entry = config["adapters"][names.index(setting.adapter)]
        options = {name: entry[name] for name in _OPTIONS if entry.get(name)}
        if config["base"] != bundled.NAME:
            options = {"base": config["base"], **options}
    except (AttributeError, LookupError, TypeError, ValueError):  # a study of other hands
        return None
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items()]
    sources = "--content PICTURE --style PICTURE" if setting.part else "--reference PICTURE"
    return " ".join(
        (
            f"imageprompt generate {sources} --prompt TEXT",
            *words,
            f"--scale {setting.scale:g}",
        )
    )
