"""From the pictures of every setting to results: distances to the references, and shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.evaluation.probing.measures import MEASURES, picture_statistics
from imageprompt.evaluation.probing.result import ALL_SITES, NO_SITES, ROLES, SettingResult
from imageprompt.evaluation.probing.sampling import Sampler
from imageprompt.evaluation.probing.shares import Bootstrap, interval, role
from imageprompt.evaluation.statistics.intervals import RESAMPLES, Array

if TYPE_CHECKING:
    from PIL.Image import Image

Classifier = Callable[[Sequence["Image"]], list[dict[str, str]]]
"""Names what each picture shows: {"shape": "star", ...}, the same attributes for every picture."""
Distances = Mapping[str, Array]
"""By measure: the distances of a setting's pictures to their references, [units]."""

PICTURES_SHOWN = 4
"""Pictures of each setting that its result holds."""


class SettingEvaluator:
    """Samples settings and compares them with no sites and with all sites.

    The units of the intervals are the references, or the seeds of a single one. `classify` names
    what pictures show; `expected` what each reference shows (default: what `classify` says of it).
    """

    def __init__(
        self,
        sampler: Sampler,
        references: Sequence[Image],
        *,
        scale: float,
        seeds: int,
        classify: Classifier | None,
        expected: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        self._sampler, self._references = sampler, references
        self._scale, self._seeds, self._classify = scale, seeds, classify
        self._expected = expected or ([] if classify is None else classify(references))
        self._units = len(references) if len(references) > 1 else seeds
        self._bootstrap = Bootstrap(self._units)

    def run(self, settings: Mapping[str, Any], seed: int) -> list[SettingResult]:
        """Results of no sites, all sites, and each of these settings (name -> scale)."""
        seeds = [seed + i for i in range(self._seeds)]
        settings = {NO_SITES: 0.0, ALL_SITES: self._scale, **settings}
        distances: dict[str, Distances] = {}
        matches: dict[str, dict[str, float]] = {}
        examples: dict[str, tuple[Image, ...]] = {}
        for name, scale in settings.items():
            pictures = self._sampler.sample(scale, seeds)
            distances[name], matches[name] = self._distances(pictures), self._matches(pictures)
            examples[name] = tuple(pictures[:PICTURES_SHOWN])
        results = []
        for name, scale in settings.items():
            shares = self._shares(distances[name], distances[NO_SITES], distances[ALL_SITES])
            embedding = distances[name].get("embedding")
            results.append(
                SettingResult(
                    name=name,
                    scale=scale,
                    role=self._role(name, shares),
                    carried={key: None if s is None else interval(s) for key, s in shares.items()},
                    cosine=None if embedding is None else float(1 - embedding.mean()),
                    matches=matches[name],
                    pictures=examples[name],
                )
            )
        return results

    def _distances(self, pictures: Sequence[Image]) -> Distances:
        """Mean distances over the seeds; over the references if there is only one."""
        measured = [picture_statistics(picture) for picture in pictures]
        size = pictures[0].size
        targets = [picture_statistics(picture, size) for picture in self._references] * self._seeds
        values: dict[str, Sequence[float]] = {}
        cosines = self._sampler.cosines(pictures)
        if cosines is not None:
            values["embedding"] = [1 - cosine for cosine in cosines]
        for name, measure in MEASURES.items():
            values[name] = [measure(a, b) for a, b in zip(measured, targets, strict=True)]
        tables = {name: np.reshape(found, (self._seeds, -1)) for name, found in values.items()}
        axis = 0 if len(self._references) > 1 else 1
        return {name: table.mean(axis) for name, table in tables.items()}

    def _matches(self, pictures: Sequence[Image]) -> dict[str, float]:
        if self._classify is None:
            return {}
        labels = self._classify(pictures)
        agree: dict[str, list[bool]] = {name: [] for name in labels[0]}
        for found, expected in zip(labels, [*self._expected] * self._seeds, strict=True):
            for name, label in expected.items():
                agree[name].append(found[name] == label)
        return {name: float(np.mean(values)) for name, values in agree.items() if values}

    def _shares(
        self, distances: Distances, no_sites: Distances, all_sites: Distances
    ) -> dict[str, Array | None]:
        return {
            name: self._bootstrap.share(no_sites[name], all_sites[name], values)
            for name, values in distances.items()
        }

    def _role(self, name: str, shares: Mapping[str, Array | None]) -> str:
        if name in (NO_SITES, ALL_SITES, *ROLES):
            return ""
        nothing = np.zeros(RESAMPLES + 1)
        known = {key: nothing if share is None else share for key, share in shares.items()}
        return role(known[ROLES["style"]], known[ROLES["layout"]])
