"""The result of a probe: one row for each setting, the roles, and scales to use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import aligned
from imageprompt.core.errors import as_text
from imageprompt.evaluation.probing.shares import MIN_SHARE, Interval
from imageprompt.hosts.contract import ROLES_KEY

if TYPE_CHECKING:
    from PIL.Image import Image

ROLES = {"style": "colour", "layout": "layout"}
"""The measure that defines each role. Texture is measured too, but comes with either."""
NO_SITES, ALL_SITES = "no site", "all sites"

_MORE = "Use more references or seeds to be surer."


@dataclass(frozen=True)
class SettingResult:
    """One setting of scales, and what its pictures share with their references.

    `carried` holds, by measure, the share of what all sites carry (None if that may be nothing).
    `cosine` is that of the embeddings of pictures and references (only above scale 0). `matches` is
    how often a picture shows the same attribute as its reference. `pictures` are the first few.
    """

    name: str
    scale: Any
    role: str
    carried: Mapping[str, Interval | None]
    cosine: float | None
    matches: Mapping[str, float]
    pictures: tuple[Image, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        carried = {name: share and share.as_dict() for name, share in self.carried.items()}
        plain = {"name": self.name, "scale": self.scale, "role": self.role, "carried": carried}
        cosine = None if self.cosine is None else round(self.cosine, 4)
        return plain | {"cosine": cosine, "matches": dict(self.matches)}


@dataclass(frozen=True)
class ProbeResult:
    """`sites` has one entry for each site; `no_sites` and `all_sites` are the ends of the scale.

    `suggested` maps "style" and "layout" to a scale each, if such sites were found.
    `confirmation` has their results with other seeds than those that chose them.
    """

    settings: Mapping[str, Any]
    no_sites: SettingResult
    all_sites: SettingResult
    sites: tuple[SettingResult, ...]
    suggested: Mapping[str, Mapping[str, float]]
    confirmation: tuple[SettingResult, ...]
    references: tuple[Image, ...] = field(repr=False)

    @property
    def confirmed(self) -> dict[str, Mapping[str, float]]:
        """The suggested scales that carry their measure with other seeds too."""
        shares = {row.name: row.carried[ROLES[row.name]] for row in self.confirmation}
        sure = {name for name, share in shares.items() if share is not None and share.low > 0}
        return {role: scale for role, scale in self.suggested.items() if role in sure}

    @property
    def roles(self) -> dict[str, list[str]]:
        """The value of `_imageprompt_roles` for the config of the base's denoiser."""
        return {role: list(scale) for role, scale in self.confirmed.items()}

    @property
    def rows(self) -> tuple[SettingResult, ...]:
        """All settings, in the order in which they are shown."""
        return (self.no_sites, *self.sites, self.all_sites, *self.confirmation)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "settings": dict(self.settings),
            "rows": [row.as_dict() for row in self.rows],
            "suggested": {role: dict(scale) for role, scale in self.suggested.items()},
            "confirmed": list(self.confirmed),
            "roles": self.roles,
        }

    def __str__(self) -> str:
        return as_text(self._lines())

    def _lines(self) -> Iterator[str]:
        count = self.settings["references"]
        yield (
            "Share of what all sites carry from a reference that each site carries alone"
            f" (1 is all of it; 95 % intervals over {count} references):"
        )
        yield ""
        yield from aligned(self._share_rows())
        if self.all_sites.matches:
            yield ""
            yield "How often a picture shows what its reference shows and its text leaves open:"
            yield ""
            yield from aligned(self._match_rows())
        yield ""
        yield from self._advice()

    def _share_rows(self) -> Iterator[tuple[str, ...]]:
        names = list(self.all_sites.carried)
        yield ("", *names, "role")
        for row in (*self.sites, *self.confirmation):
            cells = ("-" if share is None else str(share) for share in map(row.carried.get, names))
            yield (row.name, *cells, row.role)

    def _match_rows(self) -> Iterator[tuple[str, ...]]:
        names = list(self.all_sites.matches)
        yield ("", *names)
        for row in self.rows:
            yield (row.name, *(f"{row.matches[name]:.0%}" for name in names))

    def _advice(self) -> Iterator[str]:
        lacking = [name for name, share in self.all_sites.carried.items() if share is None]
        if lacking:
            yield (
                f"Even all sites together bring pictures no nearer to their references in"
                f" {' and '.join(lacking)}, so sites cannot be compared by it (-)."
            )
        for role, measure in ROLES.items():
            if role in self.confirmed:
                yield f"{role:6}  --scale '{json.dumps(self.confirmed[role])}'"
            elif role in self.suggested:
                found = ", ".join(self.suggested[role])
                yield f"{role:6}  {found}: not confirmed with other seeds. {_MORE}"
            else:
                yield (
                    f"{role:6}  no site carries mainly {measure} (threshold {MIN_SHARE:g}). {_MORE}"
                )
        if self.roles:
            entry = json.dumps({ROLES_KEY: self.roles})[1:-1]
            yield f"roles   to make presets use these sites, add to the denoiser's config: {entry}"
