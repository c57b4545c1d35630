"""The metrics of rows whose pictures exist, and the lines of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.extractors import TextExtractor
from imageprompt.evaluation.metrics import PixelMetric, SetMetric, TextMetric, TwoSetMetric
from imageprompt.evaluation.scoring import Picture, Scorer
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.models import StudyModels
from imageprompt.evaluation.study.plan import Plan, Row

_INFINITE = "infinite: the picture equals its reference"


def default_metrics(config: StudyConfig) -> list[str]:
    """The metrics that can be computed with the extractors of a study."""
    from imageprompt.core import bundled

    own = config.base in bundled.ONE_OBJECT
    names = ["attributes", "words", "clip-i"] if own else []
    needs = {"clip": ("clip-i", "clip-t"), "dino": ("dino",), "csd": ("csd",), "face": ("face",)}
    for role, found in needs.items():
        if role in config.extractors:
            names += found
    if any(entry.part for entry in config.entries):
        names += ["shape", "look"] if own else ["layout"]
    return [*dict.fromkeys([*names, "lab", "copying"])]


def check_metrics(scorer: Scorer, plan: Plan) -> None:
    """Whether each can be computed for this study. Raises OptionError, and as the extractors do."""
    extractors = scorer.open_extractors()
    for name, metric in scorer.metrics.items():
        if isinstance(metric, TextMetric):
            backbone = extractors[metric.extractor]
            if not isinstance(backbone, TextExtractor):
                raise OptionError(
                    f"metric {name}",
                    reason=f"{backbone.name} has no text encoder",
                    hint=f"Name one that has: --extractor {metric.extractor}=SOURCE.",
                )
        counts = {}
        if isinstance(metric, SetMetric | TwoSetMetric):
            counts["pictures of each adapter and scale"] = len(plan.cases) * len(plan.seeds)
        if isinstance(metric, TwoSetMetric):
            counts["references"] = len(plan.references)
        for what, count in counts.items():
            if count < metric.min_count:
                raise OptionError(
                    f"metric {name} of {count} {what}",
                    reason=f"needs at least {metric.min_count}",
                    hint="Use more references, prompts or seeds, or leave it out.",
                )


class LineMaker:
    """Lines of the results: what a row is, its metrics, and the hashes of all that it is from."""

    def __init__(
        self, folder: Path, config: StudyConfig, plan: Plan, studied: StudyModels, scorer: Scorer
    ) -> None:
        self._folder, self._config, self._plan, self._scorer = folder, config, plan, scorer
        self._adapters = [one["hash"] for one in studied.adapters]
        self._base = studied.recipe.base.hash
        self._extractors = {role: one.fingerprint for role, one in scorer.open_extractors().items()}

    def expected(self, row: Row) -> dict[str, Any]:
        """What a row's line begins with: known before there is a picture."""
        reference = self._plan.references[row.reference].picture.name
        return {
            "row": row.row,
            "prompt": row.prompt,
            "reference": reference,
            "seed": row.seed,
            "scale": row.scale,
            "adapter": None if row.adapter is None else self._plan.adapters[row.adapter],
            "base": self._config.base,
            "picture": row.picture,
        }

    def lines(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The lines of rows whose pictures exist."""
        made = {row.picture: Picture(self._folder / row.picture, row.picture) for row in rows}
        pictures = [made[row.picture] for row in rows]
        metrics: list[dict[str, float | None]] = [{} for _ in rows]
        failed: list[dict[str, str]] = [{} for _ in rows]
        for name in self._scorer.of_pictures:
            found = self._values(name, rows, pictures)
            for index, (value, reason) in enumerate(found):
                metrics[index][name] = value if value is not None and math.isfinite(value) else None
                if reason:
                    failed[index][name] = reason
        return [
            self.expected(row)
            | {"metrics": metrics[index]}
            | ({"failed": failed[index]} if failed[index] else {})
            | {"hashes": self._hashes(row, pictures[index]), "extractors": self._extractors}
            | ({"text": row.text} if row.text not in (None, row.prompt) else {})
            for index, row in enumerate(rows)
        ]

    def _hashes(self, row: Row, picture: Picture) -> dict[str, str | None]:
        return {
            "adapter": None if row.adapter is None else self._adapters[row.adapter],
            "base": self._base,
            "reference": self._plan.references[row.reference].picture.hash,
            "picture": picture.hash,
        }

    def _values(
        self, name: str, rows: Sequence[Row], pictures: Sequence[Picture]
    ) -> list[tuple[float | None, str]]:
        """For each row its value, on average over what it is compared with, and why it has none.

        A row without a text has no text following, and that is no failure.
        """
        metric, references = self._scorer.metrics[name], self._plan.references
        if isinstance(metric, TextMetric):
            pairs = [(i, row.reference) for i, row in enumerate(rows) if row.text is not None]
        else:
            pairs = [(i, one) for i, row in enumerate(rows) for one in row.compared_with]
        found: list[tuple[float | None, str]] = [(None, "")] * len(rows)
        if not pairs:
            return found
        owners = np.array([i for i, _ in pairs])
        values = self._scorer.values(
            name,
            [pictures[i] for i, _ in pairs],
            [references[one].picture for _, one in pairs],
            [rows[i].text or "" for i, _ in pairs],
        )
        for i in dict.fromkeys(owners.tolist()):
            mine = values.values[owners == i]
            value = float(mine.mean())
            reason = ""
            if math.isnan(value):
                others = [references[one].picture.name for one in rows[i].compared_with]
                names = [pictures[i].name, *others]
                reason = next((values.failed[n] for n in names if n in values.failed), "no value")
            elif math.isinf(value):
                reason = _INFINITE if isinstance(metric, PixelMetric) else "infinite"
            found[i] = (value, reason)
        return found
