"""Mixes of styles: the weighted mean of what the projector read, or of what it made of it.

Before projection the mean stands where one picture's features would: what comes out are tokens such
as the adapter was trained with, as many as of one picture. The mean of tokens needs no adapter, and
styles of as many tokens. What pictures of the two show is much the same on the bundled stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from imageprompt.checkpoint.write.storage import tensor_of
from imageprompt.core.errors import OptionError, PromptError
from imageprompt.encoding.features import Group
from imageprompt.library.style import Style
from imageprompt.library.style_file import features_of
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter


@dataclass(frozen=True)
class Mixed:
    """What a mix's file will hold; `of` tells what the mean was taken of."""

    of: str
    tokens: Tensor
    null_tokens: Tensor | None
    features: Group | None
    embedding: Tensor | None
    how: Mapping[str, Any] = field(default_factory=dict)
    """What `Adapter.encode` was told beside the features."""


def shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1. Raises OptionError for fewer than two, or what is no weight."""
    if not isinstance(weights, Mapping) or len(weights) < 2:
        raise OptionError(
            f"a mix of {len(weights) if isinstance(weights, Mapping) else weights!r:.40}",
            reason="it takes two styles at least, each with a weight",
            hint="Write A:0.6 B:0.4, or {'A': 0.6, 'B': 0.4} in Python.",
        )
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or not 0 < weight <= 1000:
            raise OptionError(
                f"weight {weight!r} of style {name!r}", reason="not a number above 0, at most 1000"
            )
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def check_relatives(styles: Sequence[Style]) -> None:
    """Were all made by the same projector and encoder? Raises PromptError."""
    first = styles[0]
    for other in styles[1:]:
        for what in ("adapter", "encoder"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if (ours and ours.hash) != (theirs and theirs.hash):
                raise PromptError(
                    f"styles {first.name!r} and {other.name!r}",
                    reason=f"they were made with different {what}s ({_shown(ours)}, "
                    f"{_shown(theirs)}): their numbers do not mean the same",
                    hint="Add the pictures of one of them again with the other's.",
                )


def mix(styles: Sequence[Style], shares: Sequence[float], adapter: Adapter | None) -> Mixed:
    """Mix styles that `check_relatives` let pass. Raises PromptError where nothing fits."""
    embedding = _mean_embedding(styles, shares)
    features, how = _mean_features(styles, shares), _how(styles)
    if adapter is not None and features is not None and how is not None:
        prompt = adapter.encode(features=features, **how)
        nulls = [_one_null(style, prompt.tokens.shape[1]) for style in styles]
        null = _mean_null(nulls, shares)
        null = prompt.null_tokens if null is None else null
        return Mixed("features", prompt.tokens, null, features, embedding, how)
    counts = sorted({style.shape[0] for style in styles})
    if len(counts) > 1:
        remedy = "Add them again with the same number of references."
        if features is not None and how is not None:
            remedy = "Give the adapter that they were made with: --adapter, adapter= in Python."
        raise PromptError(
            f"styles of {' and '.join(map(str, counts))} tokens",
            reason="their tokens have no mean",
            hint=remedy,
        )
    tokens = _mean([tensor_of(style.tensors["tokens"]) for style in styles], shares)
    stored = [style.tensors.get("null_tokens") for style in styles]
    nulls = [None if null is None else tensor_of(null) for null in stored]
    return Mixed("tokens", tokens, _mean_null(nulls, shares), None, embedding)


def _how(styles: Sequence[Style]) -> dict[str, Any] | None:
    """What besides features decides the tokens; None where the styles do not agree on it."""
    told = {str(style.recipe.get("face_strength", "1")) for style in styles}
    try:
        (strength,) = map(float, told)
    except ValueError:  # several, or no number
        return None
    return {} if strength == 1 else {"face_strength": strength}


def _mean_features(styles: Sequence[Style], shares: Sequence[float]) -> Group | None:
    """[1, ...]: of the references of each style, then of the styles; None where some lack them.

    What fusion left one of, it has weighed before; side by side, `weights` are still to be used.
    """
    groups = [features_of(style) for style in styles]
    parts = [x if isinstance(x, tuple) else (x,) for x in groups if x is not None]
    shapes = {tuple(x.shape[1:] for x in part) for part in parts}
    if len(parts) < len(groups) or len(shapes) > 1:
        return None
    means = [
        [_mean(x[:, None].unbind(), _shares_of(_weights(style, len(x)))) for x in part]
        for style, part in zip(styles, parts, strict=True)
    ]
    mixed = tuple(_mean(rows, shares) for rows in zip(*means, strict=True))
    return mixed if isinstance(groups[0], tuple) else mixed[0]


def _weights(style: Style, count: int) -> list[float]:
    """Of the references that stand side by side in a style, if its recipe tells them; else 1."""
    try:
        told = [float(word) for word in str(style.recipe.get("weights", "")).split(",")]
    except ValueError:
        told = []
    usable = len(told) == count and all(0 <= weight < math.inf for weight in told) and max(told) > 0
    return told if usable else [1.0] * count


def _shares_of(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _one_null(style: Style, count: int) -> Tensor | None:
    """Null tokens [1, count, W] of one reference: all have the same, times its weight."""
    stored = style.tensors.get("null_tokens")
    if stored is None or stored.shape[1] % count:
        return None
    weights = _weights(style, stored.shape[1] // count)
    most = weights.index(max(weights))
    rows = tensor_of(stored)[:, most * count : (most + 1) * count]
    return rows if weights[most] == 1 else rows / weights[most]


def _mean_null(nulls: Sequence[Tensor | None], shares: Sequence[float]) -> Tensor | None:
    """None where a style has none."""
    known = [null for null in nulls if null is not None]
    return _mean(known, shares) if len(known) == len(nulls) else None


def _mean_embedding(styles: Sequence[Style], shares: Sequence[float]) -> Tensor | None:
    """[1, E], of length 1."""
    stored = [style.tensors.get("embedding") for style in styles]
    found = [tensor_of(rows) for rows in stored if rows is not None]
    if len(found) < len(stored) or len({rows.shape[1] for rows in found}) > 1:
        return None
    means = [normalize(rows.float(), dim=-1).mean(0, keepdim=True) for rows in found]
    return normalize(_mean(means, shares), dim=-1)


def _mean(rows: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Taken in float32; equal tensors, as null tokens mostly are, stay what they are to the bit."""
    if all(torch.equal(rows[0], other) for other in rows[1:]):
        return rows[0]
    total = sum((s * x.float() for s, x in zip(shares, rows, strict=True)), torch.zeros(()))
    return total.to(rows[0].dtype)


def _shown(source: AssetRecord | None) -> str:
    return "none" if source is None else f"{source.name or 'unnamed'} {source.hash[:16]}"
