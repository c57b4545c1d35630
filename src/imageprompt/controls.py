"""How strongly each site listens to a reference: what a person asks for, as a table of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from imageprompt.errors import ScaleError
from imageprompt.spec import Site

MAX_SCALE = 2.0
Scale = float | Mapping[str, float]
"""One number for all sites, or numbers by site: a site's name, a prefix of it
(`up_blocks.1`) or a role (`style`, `layout`, `other`); the longest match counts."""


def site_scales(scale: Scale, sites: Sequence[Site]) -> tuple[float | None, ...]:
    """The scale of every site, in site order; None for a site that a mapping leaves out.

    Raises ScaleError for numbers outside 0..2 and for keys that match no site.
    """
    if not isinstance(scale, Mapping):
        return (one_scale(scale, "scale"),) * len(sites)
    table = {key: one_scale(value, f"scale[{key!r}]") for key, value in scale.items()}
    matches = [_best_key(site, table) for site in sites]
    for key in table:
        if not any(_covers(key, site) for site in sites):
            raise _unknown(key, sites)
    return tuple(None if key is None else table[key] for key in matches)


def one_scale(value: object, name: str) -> float:
    """`value` if it is a number 0..2, as a float. Raises ScaleError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScaleError(f"{name} = {value!r}", rule="a scale is a number from 0 to 2")
    if not (math.isfinite(value) and 0.0 <= value <= MAX_SCALE):
        raise ScaleError(
            f"{name} = {value}",
            rule="a scale is a number from 0 (the base alone) to 2",
            remedy="Try 0.5 to 0.8 beside a text, 1.0 for a picture alone.",
        )
    return float(value)


def _covers(key: str, site: Site) -> bool:
    return key == site.role or site.name == key or site.name.startswith(f"{key}.")


def _best_key(site: Site, table: Mapping[str, float]) -> str | None:
    """The most specific key that covers a site: a path beats a role, a longer path a shorter."""
    paths = [key for key in table if key != site.role and _covers(key, site)]
    return max(paths, key=len) if paths else site.role if site.role in table else None


def _unknown(key: str, sites: Sequence[Site]) -> ScaleError:
    known: set[str] = {site.role for site in sites}
    for site in sites:
        parts = site.name.split(".")
        known.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    near = get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ScaleError(
        f"scale[{key!r}]",
        rule="no attention layer of this base has that name, prefix or role",
        remedy=f"Use one of style, layout, other, or a path such as {sites[0].name!r}.{hint}",
    )
