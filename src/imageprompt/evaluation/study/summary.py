"""The means of a study: for each adapter and scale, its control and its ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from imageprompt.evaluation.scoring import Picture, Scorer
from imageprompt.evaluation.settings import Setting, settings_of
from imageprompt.evaluation.study.results import ADAPTER, Results


def summarise(
    results: Results,
    scorer: Scorer,
    references: Sequence[Picture],
    *,
    on_setting: Callable[[int, int], object] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """A row for each setting: its means, and for an adapter the metrics of whole sets."""
    settings = settings_of(results)
    rows = []
    for index, setting in enumerate(settings):
        metrics = {name: mean.as_dict() for name, mean in setting.means.items()}
        if setting.row == ADAPTER:
            metrics |= _of_sets(setting, scorer, references)
        rows.append(
            {
                "row": setting.row,
                "adapter": setting.adapter,
                "scale": setting.scale,
                **({"part": setting.part} if setting.part else {}),
                "pictures": setting.pictures,
                "metrics": metrics,
            }
        )
        on_setting(index + 1, len(settings))
    return rows


def _of_sets(
    setting: Setting, scorer: Scorer, references: Sequence[Picture]
) -> dict[str, dict[str, Any]]:
    """The metrics of whole sets: each picture once, beside all references."""
    folder = setting.lines.folder
    pictures = [Picture(folder / name, name) for name in setting.lines.picture.distinct()]
    return {
        name: {
            "value": score.value,
            "interval": score.interval.as_list(),
            "n": score.n,
            **({"missing": len(score.failed)} if score.failed else {}),
        }
        for name, score in scorer.set_scores(pictures, references).items()
    }
