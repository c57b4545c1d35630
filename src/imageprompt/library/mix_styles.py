"""Mixes of styles: the weighted mean of their encoder features, or of their tokens.

The mean of features is projected like the features of one picture, and so gives as many tokens, of
the kind that the adapter was trained with. The mean of tokens needs no adapter, but styles with the
same number of tokens. On the bundled stack, pictures of the two look much the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from imageprompt.checkpoint.torch_io import tensor_of
from imageprompt.core.errors import OptionError, PromptError
from imageprompt.encoding.features import Group
from imageprompt.library.style import Style
from imageprompt.library.style_file import features_of
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter


@dataclass(frozen=True)
class StyleMix:
    """The tensors of a mix; `of` is "features" or "tokens"."""

    of: str
    tokens: Tensor
    null_tokens: Tensor | None
    features: Group | None
    embedding: Tensor | None
    encode_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `Adapter.encode` besides the features."""


def shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights scaled to sum to 1. Raises OptionError for fewer than two, or a bad weight."""
    if not isinstance(weights, Mapping) or len(weights) < 2:
        raise OptionError(
            f"a mix of {len(weights) if isinstance(weights, Mapping) else weights!r:.40}",
            reason="needs at least two styles, each with a weight",
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


def check_same_models(styles: Sequence[Style]) -> None:
    """Were all styles made by the same projector and encoder? Raises PromptError."""
    first = styles[0]
    for other in styles[1:]:
        for what in ("adapter", "encoder"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if (ours and ours.hash) != (theirs and theirs.hash):
                raise PromptError(
                    f"styles {first.name!r} and {other.name!r}",
                    reason=f"made with different {what}s ({_label(ours)}, {_label(theirs)})",
                    hint=f"Add the pictures of one of them again, with the {what} of the other.",
                )


def mix(styles: Sequence[Style], shares: Sequence[float], adapter: Adapter | None) -> StyleMix:
    """The mix of styles that passed `check_same_models`. Raises PromptError if impossible."""
    embedding = _mean_embedding(styles, shares)
    features, options = _mean_features(styles, shares), _encode_options(styles)
    if adapter is not None and features is not None and options is not None:
        prompt = adapter.encode(features=features, **options)
        nulls = [_one_null(style, prompt.tokens.shape[1]) for style in styles]
        null = _mean_null(nulls, shares)
        null = prompt.null_tokens if null is None else null
        return StyleMix("features", prompt.tokens, null, features, embedding, options)
    counts = sorted({style.shape[0] for style in styles})
    if len(counts) > 1:
        hint = "Add them again with the same number of references."
        if features is not None and options is not None:
            hint = "Give the adapter that made them: --adapter (adapter= in Python)."
        raise PromptError(
            f"styles of {' and '.join(map(str, counts))} tokens",
            reason="tokens of different numbers have no mean",
            hint=hint,
        )
    tokens = _mean([tensor_of(style.tensors["tokens"]) for style in styles], shares)
    stored = [style.tensors.get("null_tokens") for style in styles]
    nulls = [None if null is None else tensor_of(null) for null in stored]
    return StyleMix("tokens", tokens, _mean_null(nulls, shares), None, embedding)


def _encode_options(styles: Sequence[Style]) -> dict[str, Any] | None:
    """The options that the tokens depend on besides the features; None if the styles differ."""
    found = {str(style.recipe.get("face_strength", "1")) for style in styles}
    try:
        (strength,) = map(float, found)
    except ValueError:  # several, or not a number
        return None
    return {} if strength == 1 else {"face_strength": strength}


def _mean_features(styles: Sequence[Style], shares: Sequence[float]) -> Group | None:
    """[1, ...]: the mean over the references of each style, then over the styles.

    References side by side are weighted by the style's `weights`; fusion has applied them already.
    None if a style has no features, or features of another shape.
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
    """The weights of a style's references side by side, from its recipe; 1 by default."""
    try:
        found = [float(word) for word in str(style.recipe.get("weights", "")).split(",")]
    except ValueError:
        found = []
    valid = len(found) == count and all(0 <= weight < math.inf for weight in found)
    return found if valid and max(found) > 0 else [1.0] * count


def _shares_of(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _one_null(style: Style, count: int) -> Tensor | None:
    """The null tokens [1, count, W] of one reference: the same for all, times their weights."""
    stored = style.tensors.get("null_tokens")
    if stored is None or stored.shape[1] % count:
        return None
    weights = _weights(style, stored.shape[1] // count)
    most = weights.index(max(weights))
    rows = tensor_of(stored)[:, most * count : (most + 1) * count]
    return rows if weights[most] == 1 else rows / weights[most]


def _mean_null(nulls: Sequence[Tensor | None], shares: Sequence[float]) -> Tensor | None:
    """None if a style has none."""
    known = [null for null in nulls if null is not None]
    return _mean(known, shares) if len(known) == len(nulls) else None


def _mean_embedding(styles: Sequence[Style], shares: Sequence[float]) -> Tensor | None:
    """[1, E], normalised."""
    stored = [style.tensors.get("embedding") for style in styles]
    found = [tensor_of(rows) for rows in stored if rows is not None]
    if len(found) < len(stored) or len({rows.shape[1] for rows in found}) > 1:
        return None
    means = [normalize(rows.float(), dim=-1).mean(0, keepdim=True) for rows in found]
    return normalize(_mean(means, shares), dim=-1)


def _mean(rows: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean in float32; equal tensors, as null tokens usually are, stay exact."""
    if all(torch.equal(rows[0], other) for other in rows[1:]):
        return rows[0]
    total = sum((s * x.float() for s, x in zip(shares, rows, strict=True)), torch.zeros(()))
    return total.to(rows[0].dtype)


def _label(record: AssetRecord | None) -> str:
    return "none" if record is None else f"{record.name or 'unnamed'} {record.hash[:16]}"
