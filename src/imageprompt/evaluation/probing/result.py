"""What a probe has found: a row for each setting, the roles, and scales to go on with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import aligned
from imageprompt.core.spec import Site
from imageprompt.evaluation.probing.shares import LEAST, Interval
from imageprompt.hosts.contract import ROLES_KEY

if TYPE_CHECKING:
    from PIL.Image import Image

_SECTIONS = ("input", "middle", "output")


def places(sites: Sequence[Site], *, each: bool) -> list[str]:
    """Paths in sampling order: one for each transformer, or with `each` for each site alone."""
    order = sorted(range(len(sites)), key=lambda i: (_SECTIONS.index(sites[i].stage), i))
    names = [sites[i].name for i in order]
    return names if each else list(dict.fromkeys(map(transformer, names)))


def transformer(site: str) -> str:
    """`up_blocks.1.attentions.0` of the name of a site in it."""
    return site.partition(".transformer_blocks.")[0]


def within(site: str, paths: Iterable[str]) -> bool:
    """Is the site one of these, or inside one of them?"""
    return any(site == path or site.startswith(f"{path}.") for path in paths)


def shortened(paths: Collection[str], sites: Sequence[Site]) -> list[str]:
    """The fewest, shortest paths that cover the same sites: a block's name where all of it is in.

    `up_blocks.1` for `up_blocks.1.attentions.0` and `.1`, if there are no more.
    """
    names = [site.name for site in sites]
    chosen = {name for name in names if within(name, paths)}
    found: list[str] = []
    for name in names:
        if name in chosen and not within(name, found):
            parts = name.split(".")
            first = 1 if parts[0] == "mid_block" else 2  # `up_blocks` alone says too little
            heads = (".".join(parts[:end]) for end in range(first, len(parts) + 1))
            found.append(next(h for h in heads if {n for n in names if within(n, [h])} <= chosen))
    return found


ROLES = {"style": "colour", "layout": "layout"}
"""The measure that tells each role. Texture is told apart, but comes along with either."""


_MORE = "More references or seeds tell more."


@dataclass(frozen=True)
class Row:
    """One setting. `carried`: shares of what all sites carry, None where those carry nothing of it.

    `cosine` is that of the pictures' embeddings to their references', above scale 0; `matches` how
    often a picture shows the word of its reference (where the text leaves it open, if that was
    said); `pictures` the first few.
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
    """`sites`: a row for each; `none` and `every`: all sites off and on.

    `suggested` maps "style" and "layout" to a scale each, where such sites were found; `checked`
    are their rows, painted with other seeds than those that chose them.
    """

    settings: Mapping[str, Any]
    none: Row
    every: Row
    sites: tuple[Row, ...]
    suggested: Mapping[str, Mapping[str, float]]
    checked: tuple[Row, ...]
    references: tuple[Image, ...] = field(repr=False)

    @property
    def confirmed(self) -> dict[str, Mapping[str, float]]:
        """The suggestions that carry what they are for with other seeds too."""
        shares = {row.name: row.carried[ROLES[row.name]] for row in self.checked}
        sure = {name for name, share in shares.items() if share is not None and share.low > 0}
        return {role: scale for role, scale in self.suggested.items() if role in sure}

    @property
    def roles(self) -> dict[str, list[str]]:
        """What `_imageprompt_roles` in the config of the base's denoiser would say."""
        return {role: list(scale) for role, scale in self.confirmed.items()}

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them, in the order in which they are shown."""
        return (self.none, *self.sites, self.every, *self.checked)

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
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        count = self.settings["references"]
        yield (
            "Of what all sites carry from a reference, so much is carried by each alone"
            f" (1: all of it; 95 % intervals over {count} references):"
        )
        yield ""
        yield from aligned(self._shares())
        if self.every.matches:
            yield ""
            yield "How often a picture shows what its reference shows and its text leaves open:"
            yield ""
            yield from aligned(self._matches())
        yield ""
        yield from self._advice()

    def _shares(self) -> Iterator[tuple[str, ...]]:
        names = list(self.every.carried)
        yield ("", *names, "role")
        for row in (*self.sites, *self.checked):
            cells = ("-" if share is None else str(share) for share in map(row.carried.get, names))
            yield (row.name, *cells, row.role)

    def _matches(self) -> Iterator[tuple[str, ...]]:
        names = list(self.every.matches)
        yield ("", *names)
        for row in self.rows:
            yield (row.name, *(f"{row.matches[name]:.0%}" for name in names))

    def _advice(self) -> Iterator[str]:
        lacking = [name for name, share in self.every.carried.items() if share is None]
        if lacking:
            yield (
                f"With all sites on, pictures come no nearer to their references in"
                f" {' and '.join(lacking)}: no site can be told by that (-)."
            )
        for role, measure in ROLES.items():
            if role in self.confirmed:
                yield f"{role:6}  --scale '{json.dumps(self.confirmed[role])}'"
            elif role in self.suggested:
                found = ", ".join(self.suggested[role])
                yield f"{role:6}  {found}: by chance, with other seeds it carries none. {_MORE}"
            else:
                yield (
                    f"{role:6}  no site carries {measure} above all, and {LEAST:g} of it. {_MORE}"
                )
        if self.roles:
            stated = json.dumps({ROLES_KEY: self.roles})[1:-1]
            yield f"roles   presets mean these sites once the denoiser's config.json says {stated}"
