"""`tune`: the scale, and the preset, with the best balance of likeness and following the text.

A search over the scales of a sweep in steps of 0.05, of which it generates a part: each scale that
it looks at is a study of its own, with the same references, texts and seeds.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imageprompt.control.controls import Controls
from imageprompt.core.atomic_files import check_folder, write_atomically
from imageprompt.core.console import Bars, aligned, json_text, with_head
from imageprompt.core.errors import OptionError, as_text
from imageprompt.core.hub import part_of
from imageprompt.evaluation.balance import Axes, oriented, range_of
from imageprompt.evaluation.metrics import METRICS
from imageprompt.evaluation.phrases import counted
from imageprompt.evaluation.report import write_report
from imageprompt.evaluation.scale_search import Rule, ScaleSearch, scales_up_to
from imageprompt.evaluation.settings import Setting, settings_of
from imageprompt.evaluation.study.config import AdapterEntry, StudyConfig
from imageprompt.evaluation.study.pairs import holds_pair
from imageprompt.evaluation.study.references import DRAWN, drawn_references
from imageprompt.evaluation.study.results import (
    ADAPTER,
    CONTROL,
    RESULTS,
    STUDY,
    read_lines,
    read_results,
    read_study,
)
from imageprompt.evaluation.study.run import Study

HIGHEST = 1.0
"""The largest scale that is looked at, unless another is given."""


@dataclass(frozen=True)
class Point:
    """A preset at a scale: what was measured."""

    preset: str | None
    scale: float
    setting: Setting

    def values(self, axes: Axes) -> tuple[float, float]:
        """Likeness and text, higher is better."""
        names = (axes.likeness, axes.text)
        one, other = (float(oriented(name, self.setting.value(name))) for name in names)
        return one, other

    def as_dict(self, axes: Axes) -> dict[str, Any]:
        """As plain data for JSON."""
        means = self.setting.means
        return {
            "preset": self.preset,
            "scale": self.scale,
            "likeness": means[axes.likeness].as_dict(),
            "text": means[axes.text].as_dict(),
        }


@dataclass(frozen=True)
class TuneResult:
    """What was found; `str` is what the command prints. `controls` go to `generate`."""

    rule: Rule
    axes: Axes
    adapter: str
    control: Point
    points: Sequence[Point]
    """All that were measured, by preset and scale."""
    best: Point
    pictures: int
    exhaustive: int
    """Pictures of a whole sweep."""
    studies: Path | None = None
    """The folder of the pictures, if it is kept."""

    @property
    def controls(self) -> Controls:
        return Controls(scale=self.best.scale, preset=self.best.preset)

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "scale": self.best.scale,
            "preset": self.best.preset,
            "rule": str(self.rule),
            "adapter": self.adapter,
            "likeness": self.axes.likeness,
            "text": self.axes.text,
            "best": self.best.as_dict(self.axes),
            "text_alone": self.control.as_dict(self.axes),
            "points": [point.as_dict(self.axes) for point in self.points],
            "pictures": self.pictures,
            "exhaustive": self.exhaustive,
            "controls": self.controls.as_dict(),
        }

    def __str__(self) -> str:
        axes = self.axes
        head = ("preset", "scale", f"likeness: {axes.likeness}", f"text: {axes.text}", "")
        rows = [
            (
                point.preset or "-",
                f"{point.scale:g}",
                *(_shown(point.setting, name) for name in (axes.likeness, axes.text)),
                "best" if point is self.best else "",
            )
            for point in (self.control, *self.points)
        ]
        preset = f" with preset {self.best.preset}" if self.best.preset else ""
        return as_text(
            (
                *aligned(with_head(head, rows), ""),
                "",
                f"{self.adapter}: scale {self.best.scale:g}{preset} ({self.rule})",
                f"{self.pictures} pictures, {self.pictures / self.exhaustive:.0%} of a whole sweep",
            )
        )


def tune(
    study: StudyConfig | Mapping[str, Any],
    rule: Rule | str | None = None,
    *,
    presets: Sequence[str | None] = (None,),
    likeness: str | None = None,
    text: str | None = None,
    highest: float = HIGHEST,
    studies: str | os.PathLike[str] | None = None,
    log: Callable[[str], object] = lambda line: None,
    progress: bool = True,
) -> TuneResult:
    """Find the scale of an adapter at which likeness and text following are balanced best.

    `study` says references, prompts, seeds, base and one adapter, as for `evaluate`. `rule` is the
    knee (None), or a lower limit of text following such as ">= 0.9" or ">= 90%" (of what it is
    without a reference). `presets` are tried one after the other; None is none. `likeness` and
    `text` name the metrics of the axes. `studies` is a folder for all pictures and a report;
    without it they are deleted. Raises an ImagePromptError; OptionError if no scale obeys the rule.
    """
    config = study if isinstance(study, StudyConfig) else StudyConfig.load({"output": ".", **study})
    wanted = Rule.of(rule) if isinstance(rule, str) else rule or Rule()
    scales = _scales(highest)
    with _folder(studies) as folder, Bars(progress) as bars:
        search = ScaleSearch(wanted, scales)
        sweep = Sweep(config, folder, likeness, text, search.budget * len(presets), log, bars)
        _check_rule(wanted, sweep.axes)
        found: list[Point] = []
        for preset in presets:
            measured = dict[float, Point]()
            scale: float | None = scales[-1]
            while scale is not None:
                measured[scale] = sweep.measure(preset, scale)
                _check_share(wanted, sweep.control, sweep.axes)
                places = {s: p.values(sweep.axes) for s, p in measured.items()}
                scale = search.next({0.0: sweep.control.values(sweep.axes), **places})
            found += sorted(measured.values(), key=lambda point: point.scale)
        best = _best(wanted, sweep.control, found, sweep.axes)
        if studies is not None:
            sweep.write_whole()
        return TuneResult(
            wanted,
            sweep.axes,
            sweep.entry.title,
            sweep.control,
            found,
            best,
            sweep.pictures,
            sweep.per_setting * len(scales) * len(presets) + sweep.control_pictures,
            None if studies is None else folder,
        )


def _scales(highest: float) -> list[float]:
    from imageprompt.control.scales import one_scale

    scales = scales_up_to(one_scale(highest, "highest scale"))
    if len(scales) < 4:
        raise OptionError(
            f"highest scale {highest:g}", reason="there is nothing to search", hint="Try 1."
        )
    return scales


def _check_rule(rule: Rule, axes: Axes) -> None:
    """Raises OptionError for a limit that text following cannot reach."""
    _, most = range_of(axes.text)
    if rule.minimum is not None and not rule.relative and most is not None and rule.minimum > most:
        raise OptionError(
            str(rule),
            reason=f"{axes.text} is never above {most:g}",
            hint="Write '>= 0.9', or '>= 90%' of text following without a reference.",
        )


def _check_share(rule: Rule, control: Point, axes: Axes) -> None:
    """Raises OptionError for a share of nothing, which each scale has."""
    text_alone = control.values(axes)[1]
    if rule.relative and rule.minimum and text_alone == 0:
        raise OptionError(
            str(rule),
            reason=f"{axes.text} is 0 without a reference: the base does not follow these texts",
            hint="Use other texts or more steps, or a limit such as '>= 0.9'.",
        )


@contextmanager
def _folder(studies: str | os.PathLike[str] | None) -> Iterator[Path]:
    if studies is not None:
        folder = check_folder(studies)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="imageprompt-tune-") as name:
        yield Path(name)


def _best(rule: Rule, control: Point, found: Sequence[Point], axes: Axes) -> Point:
    """Over all presets. Raises OptionError if none obeys the rule."""
    points = np.array([point.values(axes) for point in (control, *found)])
    text_alone = float(points[0, 1])
    score = rule.score(points[:, 0], points[:, 1], text_alone)[1:]
    if not np.isfinite(score).any():
        most = max(found, key=lambda point: point.values(axes)[1])
        raise OptionError(
            f"no scale has {rule}",
            reason=f"the most is {abs(most.values(axes)[1]):.3g} at scale {most.scale:g}, and "
            f"{abs(text_alone):.3g} without a reference",
            hint="Ask for less, or for '>= 90%' of text following without a reference.",
        )
    return found[int(np.argmax(score))]


class Sweep:
    """Measures settings of one adapter; each is a study in a folder of its own."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        likeness: str | None,
        text: str | None,
        most: int,
        log: Callable[[str], object],
        bars: Bars,
    ) -> None:
        """Raises OptionError unless there is one adapter and a metric for each axis."""
        self._folder, self._log, self._bars = folder, log, bars
        self._most = most
        self.entry = _one_adapter(config)
        if config.references is None:
            drawn_references(folder, config.count, config.base)
            config = replace(config, references=str(folder / DRAWN))
        self._config = replace(config, ceiling=False, control=False)
        self.axes = self._axes(likeness, text)
        self._names: list[str] = []
        self._control: Point | None = None
        self.pictures = self.per_setting = self.control_pictures = 0

    def _axes(self, likeness: str | None, text: str | None) -> Axes:
        study = Study(self._study_config(None, HIGHEST, self._folder), self._folder)
        asked = [METRICS[name].name for name in (likeness, text) if name is not None]
        names = [*dict.fromkeys([*study.metrics, *asked])]
        axes = Axes.of(names, likeness, text)
        if axes is None:
            raise OptionError(
                f"metrics {', '.join(names)}",
                reason="measures neither likeness nor text following",
                hint="Name a CLIP with a text encoder: --extractor clip=SOURCE, or both metrics: "
                "--likeness dino --text clip-t.",
            )
        self._config = replace(self._config, metrics=(axes.likeness, axes.text))
        return axes

    def _study_config(self, preset: str | None, scale: float, output: Path) -> StudyConfig:
        named = {name: value for name, value in vars(self.entry).items() if value is not None}
        named |= {"name": self._title(preset)} | ({"preset": preset} if preset else {})
        return replace(self._config, adapters=(named,), scales=(scale,), output=str(output))

    def _title(self, preset: str | None) -> str:
        return f"{self.entry.title}, {preset}" if preset else self.entry.title

    @property
    def control(self) -> Point:
        """Text alone, measured with the first setting."""
        assert self._control is not None
        return self._control

    def measure(self, preset: str | None, scale: float) -> Point:
        """Generate and score a setting; the first one with the pictures without an adapter."""
        first = not self._names
        name = f"{_plain(preset)}{scale:.2f}"
        config = replace(self._study_config(preset, scale, self._folder / name), control=first)
        study = Study(config, self._folder)
        if first:
            self._log(
                f"up to {counted(self._most, 'setting')} of "
                f"{counted(len(study.plan.cases) * config.seeds, 'picture')}"
            )
        self._bars.update("setting", len(self._names), self._most)
        study.run(progress=False, report=False)
        self._names.append(name)
        settings = settings_of(read_results(study.folder))
        of_row = {one.row: one for one in settings}
        made = of_row[ADAPTER].pictures
        self.pictures += made
        self.per_setting = made
        if first:
            self._control = Point(None, 0.0, of_row[CONTROL])
            self.control_pictures = of_row[CONTROL].pictures
            self.pictures += self.control_pictures
        for setting in of_row.values():
            self._check_values(setting)
        return Point(preset, scale, of_row[ADAPTER])

    def _check_values(self, setting: Setting) -> None:
        """Raises OptionError if no picture of a setting has a value on an axis."""
        for name in (self.axes.likeness, self.axes.text):
            if not np.isfinite(setting.value(name)):
                reasons = (one[name] for one in setting.lines.failed.values() if name in one)
                raise OptionError(
                    f"metric {name}",
                    reason=f"no picture of {setting.name} has a value "
                    f"({next(reasons, 'the texts say nothing')})",
                    hint="Use other texts, or name another metric.",
                )

    def write_whole(self) -> None:
        """All settings as one study with a report, in the folder above theirs."""
        stated, _ = read_study(self._folder / self._names[0])
        with write_atomically(self._folder / RESULTS) as temporary, temporary.open("w") as file:
            for name in sorted(self._names):
                for line in read_lines(self._folder / name):
                    line["picture"] = f"{name}/{line['picture']}"
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
        kept = ("base", "adapters", "options", "extractors", "environment")
        whole = {name: stated[name] for name in kept if name in stated} | {"root": "."}
        with write_atomically(self._folder / STUDY) as temporary:
            temporary.write_text(f"{json_text(whole)}\n", encoding="utf-8")
        write_report(self._folder, self.axes)


def _one_adapter(config: StudyConfig) -> AdapterEntry:
    entries = config.entries
    if len(entries) != 1:
        raise OptionError(
            f"{len(entries)} adapters",
            reason="tune takes one",
            hint=f"Name it: --adapter {entries[-1].title}.",
        )
    (entry,) = entries
    if entry.part is not None or holds_pair(config, entry):
        raise OptionError(
            f"adapter {entry.title}",
            reason="holds a pair of adapters, with a scale each",
            hint=f"Tune one of them: {part_of(entry.adapter, 'content')} or "
            f"{part_of(entry.adapter, 'style')}.",
        )
    return entry


def _plain(preset: str | None) -> str:
    return "" if preset is None else f"{preset.replace(' ', '-')}-"


def _shown(setting: Setting, metric: str) -> str:
    mean = setting.means[metric]
    if mean.value is None:
        return "-"
    ends = mean.interval
    return f"{mean.value:.3f}" + (f" ({ends.low:.3f} to {ends.high:.3f})" if ends.known else "")
