"""From the pictures of every setting to rows: distances to the references, and shares of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.evaluation.probing.measures import MEASURES, statistics
from imageprompt.evaluation.probing.result import ROLES, Row
from imageprompt.evaluation.probing.sampling import Painter
from imageprompt.evaluation.probing.shares import RESAMPLES, Array, Bootstrap, interval, role

if TYPE_CHECKING:
    from PIL.Image import Image

Reading = Callable[[Sequence["Image"]], list[dict[str, str]]]
"""Names what each picture shows: {"shape": "star", ...}, the same names for every picture."""
Distances = Mapping[str, Array]
"""By measure, how far the pictures of a setting are from their references: [units]."""

SHOWN = 4
"""Pictures of each setting that a row keeps."""
NONE, EVERY = "no site", "all sites"


class Study:
    """Paints settings and measures them against what no site and all sites carry.

    The units that intervals are over are the references; of a single one, its seeds.
    """

    def __init__(
        self,
        painter: Painter,
        references: Sequence[Image],
        *,
        scale: float,
        seeds: int,
        read: Reading | None,
        shows: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        self._painter, self._references = painter, references
        self._scale, self._seeds, self._read = scale, seeds, read
        self._shows = shows or ([] if read is None else read(references))
        self._units = len(references) if len(references) > 1 else seeds
        self._bootstrap = Bootstrap(self._units)

    def run(self, settings: Mapping[str, Any], seed: int) -> list[Row]:
        """Rows of no site, all sites, and each of these (name to scale)."""
        seeds = [seed + i for i in range(self._seeds)]
        settings = {NONE: 0.0, EVERY: self._scale, **settings}
        measured: dict[str, Distances] = {}
        read: dict[str, dict[str, float]] = {}
        shown: dict[str, tuple[Image, ...]] = {}
        for name, scale in settings.items():
            pictures = self._painter.paint(scale, seeds)
            measured[name], read[name] = self._distances(pictures), self._matches(pictures)
            shown[name] = tuple(pictures[:SHOWN])
        rows = []
        for name, scale in settings.items():
            shares = self._shares(measured[name], measured[NONE], measured[EVERY])
            embedding = measured[name].get("embedding")
            rows.append(
                Row(
                    name=name,
                    scale=scale,
                    role=self._role(name, shares),
                    carried={key: None if s is None else interval(s) for key, s in shares.items()},
                    cosine=None if embedding is None else float(1 - embedding.mean()),
                    matches=read[name],
                    pictures=shown[name],
                )
            )
        return rows

    def _distances(self, pictures: Sequence[Image]) -> Distances:
        """Means over seeds; over the references where there is only one."""
        seen = [statistics(picture) for picture in pictures]
        size = pictures[0].size
        wanted = [statistics(picture, size) for picture in self._references] * self._seeds
        found: dict[str, Sequence[float]] = {}
        cosines = self._painter.cosines(pictures)
        if cosines is not None:
            found["embedding"] = [1 - cosine for cosine in cosines]
        for name, measure in MEASURES.items():
            found[name] = [measure(a, b) for a, b in zip(seen, wanted, strict=True)]
        tables = {name: np.reshape(values, (self._seeds, -1)) for name, values in found.items()}
        axis = 0 if len(self._references) > 1 else 1
        return {name: table.mean(axis) for name, table in tables.items()}

    def _matches(self, pictures: Sequence[Image]) -> dict[str, float]:
        if self._read is None:
            return {}
        seen = self._read(pictures)
        agree: dict[str, list[bool]] = {name: [] for name in seen[0]}
        for words, wanted in zip(seen, [*self._shows] * self._seeds, strict=True):
            for name, word in wanted.items():
                agree[name].append(words[name] == word)
        return {name: float(np.mean(found)) for name, found in agree.items() if found}

    def _shares(
        self, found: Distances, none: Distances, every: Distances
    ) -> dict[str, Array | None]:
        return {
            name: self._bootstrap.share(none[name], every[name], values)
            for name, values in found.items()
        }

    def _role(self, name: str, shares: Mapping[str, Array | None]) -> str:
        if name in (NONE, EVERY, *ROLES):
            return ""
        nothing = np.zeros(RESAMPLES + 1)
        told = {key: nothing if share is None else share for key, share in shares.items()}
        return role(told[ROLES["style"]], told[ROLES["layout"]])
