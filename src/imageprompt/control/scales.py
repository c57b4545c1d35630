"""The scale: one number, or numbers by site in any of the notations in use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from imageprompt.core.errors import ScaleError
from imageprompt.core.schema import plain_number
from imageprompt.core.spec import Site

Scaling = Literal["V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"]
"""What the scale multiplies, by ComfyUI's names. "V only" is the paper: the attention result.

"K+V" scales K' and V'; "K+mean(V)" scales K' and the mean of V' over the tokens. A "C penalty"
multiplies the scale of a site by its width / 1280. Of tokens that follow those of the text (FLUX
Redux), "V only" is how many times they count, and "K+V" scales the tokens; there is no other.
"""

DEFAULT_SCALE = 0.8
"""The scale wherever none is given: for a reference beside a text. Use 1.0 without a text."""
MAX_SCALE = 2.0

Scale = float | str | Mapping[Any, Any] | Sequence[str]
"""How strongly the image prompt acts at each site:

- a number 0..2: the same at all sites (a numpy scalar or an array or tensor of one number too);
- numbers by site: a site's name, a prefix of it (`up_blocks.1`) or a role (`style`, `layout`,
  `other`), of which the longest match counts; or the number of its transformer in sampling order;
- diffusers' `{"down": {"block_2": [0.0, 1.0]}, "mid": 1.0, "up": ...}`: what is left out is 0;
- ComfyUI's layer weights, a string such as `"3:1.0,6:0.5"`;
- InstantStyle's list of block names: 1 at the sites whose names contain one of them.
"""


@dataclass(frozen=True)
class SiteScale:
    """The scale of one site; with `on_negative`, of the negative rows instead of the positive."""

    scale: float
    on_negative: bool = False


_DIFFUSERS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
_BLOCK = re.compile(r"block_(\d+)")
_LAYER = re.compile(r"\s*(\d+)\s*:\s*([^\s:]+)\s*")


def site_scales(scale: Scale, sites: Sequence[Site]) -> tuple[float | None, ...]:
    """The scale of every site, in site order; None for a site that a mapping leaves out.

    Raises ScaleError for numbers outside 0..2 and for keys that match no site.
    """
    if isinstance(scale, str | Mapping):
        return _matched(dict(_entries(scale)), sites)
    if isinstance(scale, Sequence):
        return _containing(scale, sites)
    return (one_scale(scale, "scale"),) * len(sites)


def check_scale(scale: Scale) -> None:
    """Check everything that can be checked without a base. Raises ScaleError."""
    if isinstance(scale, str | Mapping):
        list(_entries(scale))
    elif isinstance(scale, Sequence):
        _names(scale)
    else:
        one_scale(scale, "scale")


def one_scale(value: object, name: str) -> float:
    """`value` as a float if it is a number 0..2. Raises ScaleError that calls it `name`."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScaleError(f"{name} = {value!r}", reason="a scale is a number from 0 to 2")
    if not (math.isfinite(value) and 0.0 <= value <= MAX_SCALE):
        raise ScaleError(
            f"{name} = {value}",
            reason="a scale is a number from 0 (the base alone) to 2",
            hint="Try 0.5 to 0.8 with a text, 1.0 without one.",
        )
    return float(value)


def _entries(scale: str | Mapping[Any, Any]) -> Iterator[tuple[str | int, float]]:
    """Pairs of a key (site, prefix, role or transformer number) and a scale, of any notation."""
    if not scale:
        raise ScaleError(f"scale = {scale!r}", reason="names no site")
    if isinstance(scale, str):
        yield from _layers(scale)
    elif set(scale) & set(_DIFFUSERS):
        yield from _diffusers(scale)
    else:
        for key, value in scale.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise ScaleError(f"scale[{key!r}]", reason="a key must be a string or a number")
            number = isinstance(key, str) and key.isdecimal()  # JSON has no int keys
            yield int(key) if number else key, one_scale(value, f"scale[{key!r}]")


def _layers(text: str) -> Iterator[tuple[int, float]]:
    seen: set[int] = set()
    for part in text.split(","):
        match = _LAYER.fullmatch(part)
        if match is None:
            raise ScaleError(
                f"scale {text!r}",
                reason="must be layer weights, number:weight separated by commas",
                hint="For example: 3:1.0,6:0.5",
            )
        if int(match[1]) in seen:
            raise ScaleError(f"scale {text!r}", reason=f"layer {match[1]} appears twice")
        seen.add(int(match[1]))
        yield int(match[1]), one_scale(_float(match[2]), f"layer {match[1]}")


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # one_scale raises the error


def _diffusers(scale: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for part, value in scale.items():
        if part not in _DIFFUSERS:
            raise ScaleError(
                f"scale[{part!r}]", reason="diffusers' notation has only down, mid and up"
            )
        prefix, name = _DIFFUSERS[part], f"scale[{part!r}]"
        if part == "mid" and isinstance(value, list | tuple) and len(value) == 1:
            yield prefix, one_scale(value[0], name)
        elif isinstance(value, Mapping) and part != "mid":
            for block, inner in value.items():
                match = _BLOCK.fullmatch(str(block))
                if match is None:
                    raise ScaleError(
                        f"{name}[{block!r}]", reason="blocks are named block_0, block_1 ..."
                    )
                yield from _attentions(f"{prefix}.{match[1]}", inner, f"{name}[{block!r}]")
        else:
            yield prefix, one_scale(value, name)


def _attentions(block: str, value: Any, name: str) -> Iterator[tuple[str, float]]:
    """One number for a block, or a list with one for each attention of it."""
    if not isinstance(value, list | tuple):
        yield block, one_scale(value, name)
    elif len(value) == 1:
        yield block, one_scale(value[0], name)
    elif not value:
        raise ScaleError(f"{name} = []", reason="must hold one number per attention of the block")
    else:
        for index, inner in enumerate(value):
            yield f"{block}.attentions.{index}", one_scale(inner, f"{name}[{index}]")


def _names(scale: Sequence[Any]) -> Sequence[str]:
    if not scale or not all(isinstance(name, str) and name for name in scale):
        raise ScaleError(
            f"scale = {scale!r}",
            reason="a list must hold names of blocks, as in InstantStyle",
            hint="Give numbers for each step as schedule=.",
        )
    return scale


def _containing(scale: Sequence[Any], sites: Sequence[Site]) -> tuple[float | None, ...]:
    names = _names(scale)
    for name in names:
        if not any(name in site.name for site in sites):
            raise _unknown(name, sites)
    return tuple(1.0 if any(name in site.name for name in names) else None for site in sites)


def _matched(table: Mapping[str | int, float], sites: Sequence[Site]) -> tuple[float | None, ...]:
    matches = [_best_key(site, table) for site in sites]
    for key in table:
        if not any(_covers(key, site) for site in sites):
            raise _unknown(key, sites)
    return tuple(None if key is None else table[key] for key in matches)


def _covers(key: str | int, site: Site) -> bool:
    if isinstance(key, int):
        return key == site.transformer_index
    return key == site.role or site.name == key or site.name.startswith(f"{key}.")


def _best_key(site: Site, table: Mapping[str | int, float]) -> str | int | None:
    """The most specific key that covers a site: the longest path, else a number, else a role."""
    covering = [key for key in table if _covers(key, site)]
    paths = [key for key in covering if isinstance(key, str) and key != site.role]
    numbers = [key for key in covering if isinstance(key, int)]
    return max(paths, key=len) if paths else next(iter(numbers or covering), None)


def _unknown(key: str | int, sites: Sequence[Site]) -> ScaleError:
    if isinstance(key, int):
        order = [site.transformer_index for site in sites if site.transformer_index is not None]
        hint = f"They are 0 to {max(order)}." if order else "Name the sites instead."
        return ScaleError(
            f"scale[{key}]", reason="this base has no transformer of that number", hint=hint
        )
    known: set[str] = {site.role for site in sites}
    for site in sites:
        parts = site.name.split(".")
        known.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    near = get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if key in ("style", "layout"):
        hint = " `imageprompt probe` finds the roles to state in the config of the base."
    example = f", or a path such as {sites[0].name!r}" if sites else ""
    return ScaleError(
        f"scale[{key!r}]",
        reason="no site of this base has that name, prefix or role",
        hint=f"Use one of style, layout, other{example}.{hint}",
    )
