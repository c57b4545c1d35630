"""Fusion formulas: the features of several references become those of one, or stay side by side.

Every formula works on x [n, ...], the features of the n references of a prompt, before they are
projected. The first seven are those of ComfyUI_IPAdapter_plus (its combine-embeds node).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE = 0.1
"""Of the softmax over cosine similarities: a reference closer by 0.1 weighs e times more."""

CONCAT, WEIGHTED, ATTENTION = "concat", "weighted", "attention-weighted"

Formula = Callable[["Tensor"], "Tensor"]


def _norm_average(x: Tensor) -> Tensor:
    """mean of x / |x|, where |x| is taken over the references, for each number of the features.

    So it is not the length of each reference that becomes 1. Numbers that are zero in all
    references stay zero (ComfyUI_IPAdapter_plus makes them NaN).
    """
    length = x.norm(dim=0, keepdim=True)
    mean: Tensor = (x / length.where(length > 0, 1)).mean(0, keepdim=True)
    return mean


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        CONCAT: lambda x: x,
        "add": lambda x: x.sum(0, keepdim=True),
        "subtract": lambda x: x[:1] - x[1:].mean(0, keepdim=True),
        "average": lambda x: x.mean(0, keepdim=True),
        "norm average": _norm_average,
        "max": lambda x: x.amax(0, keepdim=True),
        "min": lambda x: x.amin(0, keepdim=True),
    }
)
"""x [n, ...] -> [n, ...] or [1, ...]."""

FUSIONS = (*FORMULAS, WEIGHTED, ATTENTION)
"""All names. `weighted` is sum(w x) / sum(w). `attention-weighted` is the same with computed
weights: the softmax of each reference's similarity to the text, or to the other references."""

NOT_FOR_FACES = ("max", "min")
"""A face embedding is a direction: its single numbers have no meaning."""


def parse_fusion(name: object) -> str:
    """The fusion of that name, in any spelling (hyphens, spaces). Raises OptionError."""
    plain = str(name).strip().lower().replace("-", " ").replace("_", " ")
    found = [fusion for fusion in FUSIONS if fusion.replace("-", " ") == plain]
    if not isinstance(name, str) or not found:
        raise OptionError(
            f"fusion {name!r}", reason="no such fusion", hint=f"Use one of: {', '.join(FUSIONS)}."
        )
    return found[0]


def parse_weights(weights: object, fusion: str) -> tuple[float, ...] | None:
    """Weights, one for each reference of a prompt; None if none were given.

    Raises OptionError for anything but a list of finite numbers, and for weights that the fusion
    needs or cannot use.
    """
    if weights is None:
        if fusion == WEIGHTED:
            raise OptionError(
                "fusion 'weighted'", reason="it needs weights", hint="Give one for each reference."
            )
        return None
    if fusion == ATTENTION:
        raise OptionError(
            f"weights with fusion {ATTENTION!r}",
            reason="it computes its own weights",
            hint="Leave the weights out, or use 'weighted'.",
        )
    numbers = list(weights) if isinstance(weights, Sequence) else []
    wrong = [w for w in numbers if isinstance(w, bool) or not isinstance(w, Real)]
    if not numbers or isinstance(weights, str) or wrong or not all(map(math.isfinite, numbers)):
        raise OptionError(
            f"weights {weights!r}",
            reason="not a list of finite numbers, one for each reference",
            hint="For two references: [0.7, 0.3].",
        )
    if fusion == WEIGHTED and sum(numbers) <= 0:
        raise OptionError(
            f"weights {numbers}", reason="'weighted' divides by their sum, which must be above 0"
        )
    return tuple(map(float, numbers))


def fuse(x: Tensor, fusion: str, weights: Tensor | None = None) -> Tensor:
    """Features [n, ...] -> [n, ...] for `concat`, else [1, ...]; weights [n].

    Weights also multiply the features before any other formula, as in ComfyUI_IPAdapter_plus'
    encode node; side by side they apply to the tokens instead (see `fuse_references`). Every
    fusion leaves a single reference as it is, apart from its weight.
    """
    if fusion == CONCAT:
        return x
    if fusion in (WEIGHTED, ATTENTION):
        assert weights is not None, "checked before"
        return (x * _as_factors(weights / weights.sum(), x)).sum(0, keepdim=True)
    if weights is not None:
        x = x * _as_factors(weights, x)
    return x if len(x) == 1 else FORMULAS[fusion](x)


def attention_weights(x: Tensor, text: Tensor | None = None) -> Tensor:
    """softmax(s / TEMPERATURE) [n] of references, given as vectors x [n, F].

    s is the cosine of each with `text` [F], or without a text the mean cosine with the others: a
    reference that agrees with the rest counts for more. A single reference has weight 1.
    """
    units = x.float() / x.float().norm(dim=1, keepdim=True).clamp(min=1e-12)
    if text is not None:
        text = text.float().to(units.device)
        similarity = units @ (text / text.norm().clamp(min=1e-12))
    else:
        pairs = units @ units.T
        similarity = (pairs.sum(1) - pairs.diagonal()) / max(len(x) - 1, 1)
    weights: Tensor = (similarity / TEMPERATURE).softmax(0)
    return weights


def _as_factors(weights: Tensor, x: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], in the precision of x."""
    return weights.to(x).reshape(-1, *(1 for _ in x.shape[1:]))
