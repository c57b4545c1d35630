"""A judge model rates the pictures of a study: an optional plug-in whose raw answers are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.atomic_files import append_line
from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import Budget, open_regular, parse_json
from imageprompt.encoding.images.open_image import open_picture
from imageprompt.evaluation.study.results import ADAPTER, MAX_LINE, Results

if TYPE_CHECKING:
    from PIL.Image import Image

Judge = Callable[["Image", "Image", str], Mapping[str, Any]]
"""(picture, reference, prompt) -> {"scores": {"concept preservation": 3, ...}, "raw": the answer}.

What it raises counts as a failure of that picture, never as a score.
"""

ANSWERS = "judge.jsonl"
GROUP = "imageprompt.judges"
"""The entry points of other packages that are judges."""


@dataclass(frozen=True)
class Verdicts:
    """The scores of a judge, by picture."""

    scores: Mapping[str, Mapping[str, float]]
    failed: Mapping[str, str]
    """Picture -> why it has no score."""

    def names(self) -> list[str]:
        """What the judge scores."""
        return [*dict.fromkeys(name for one in self.scores.values() for name in one)]

    def values(self, name: str, lines: Results) -> NDArray[np.float64]:
        """A score for each line, [n]; NaN where there is none."""
        found = (self.scores.get(str(one), {}).get(name, math.nan) for one in lines.picture)
        return np.fromiter(found, np.float64, len(lines))


def find_judge(name: str) -> Judge:
    """The judge of that name that another package offers. Raises OptionError."""
    known = {one.name: one for one in entry_points(group=GROUP)}
    if name not in known:
        raise OptionError(
            f"judge {name!r}",
            reason=f"not one of {', '.join(sorted(known))}" if known else "none is installed",
            hint=f"Install a package that has an entry point in {GROUP}, or use Python.",
        )
    found: Judge = known[name].load()
    return found


def judge_all(
    results: Results,
    judge: Judge,
    *,
    on_picture: Callable[[int, int], object] = lambda done, total: None,
) -> Verdicts:
    """Ask for each picture of an adapter that has no answer yet; each answer is kept at once.

    Pictures whose call failed are asked for again. Raises OptionError for a damaged file.
    """
    path = results.folder / ANSWERS
    known = _read(path)
    for row in range(len(results)):
        picture = str(results.picture[row])
        if results.row[row] == ADAPTER and "scores" not in known.get(picture, {}):
            answer = _ask(judge, results, row)
            append_line(path, json.dumps({"picture": picture, **answer}))
            known[picture] = answer
        on_picture(row + 1, len(results))
    return Verdicts(
        {name: one["scores"] for name, one in known.items() if "scores" in one},
        {name: one["error"] for name, one in known.items() if "scores" not in one},
    )


def _ask(judge: Judge, results: Results, row: int) -> dict[str, Any]:
    reference, prompt = results.reference_path(row), results.prompt[row] or ""
    try:
        found = judge(open_picture(results.picture_path(row)), open_picture(str(reference)), prompt)
        scores = {str(name): float(value) for name, value in found["scores"].items()}
        if not all(map(math.isfinite, scores.values())):
            raise ValueError("a score is not finite")
        return {"scores": scores, "raw": json.loads(json.dumps(found.get("raw")))}
    except Exception as error:  # of a model that is not ours, such as a refused call
        return {"error": f"{type(error).__name__}: {error}"[:1000]}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Picture -> the last answer; a last line that is half written is cut off."""
    known: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return known
    size = 0
    with open_regular(path, inside=path.parent) as stream:
        for number, line in enumerate(stream):
            if not line.endswith(b"\n"):
                break
            size += len(line)
            try:
                found = parse_json(line, Budget(nbytes=64 * MAX_LINE))
                picture = found.pop("picture")
                if not isinstance(picture, str) or not ({"scores", "error"} & found.keys()):
                    raise ValueError("not an answer")
            except (ValueError, AttributeError, KeyError) as error:
                raise OptionError(
                    f"answers {str(path)!r}, line {number + 1}",
                    reason=f"damaged ({error})",
                    hint="Delete this line.",
                ) from error
            known[picture] = found
    with path.open("r+b") as stream_to_cut:
        stream_to_cut.truncate(size)
    return known
