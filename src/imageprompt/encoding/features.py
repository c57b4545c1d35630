"""Ready-made features of references: their shapes by kind of feature, and groups of them.

The references of one prompt are a tensor [n, ...], or for variants that read a face embedding
beside the picture's features a tuple of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imageprompt.checkpoint.identify.published import encoder_name
from imageprompt.core.errors import EncoderError, PromptError
from imageprompt.core.spec import AdapterSpec

Group = Tensor | tuple[Tensor, ...]
Features = Group | Sequence[Group]
"""Of one prompt, or a list of several prompts'."""


def groups_of(features: Features) -> list[Group]:
    """One entry for each prompt."""
    return [features] if isinstance(features, Tensor | tuple) else list(features)


def joined(groups: Sequence[Group]) -> Group:
    """The references of all prompts in a row."""
    if isinstance(groups[0], Tensor):
        return torch.cat([group for group in groups if isinstance(group, Tensor)])
    return tuple(torch.cat(parts) for parts in zip(*groups, strict=True))


def mapped(group: Group, change: Callable[[Tensor], Tensor]) -> Group:
    """Every part of a group, changed."""
    if isinstance(group, Tensor):
        return change(group)
    return tuple(change(part) for part in group)


def zeros_like(features: Group) -> Group:
    return mapped(features, torch.zeros_like)


def count(group: Group) -> int:
    """References in a group."""
    return len(group if isinstance(group, Tensor) else group[0])


def first(group: Group) -> Group:
    """The first reference alone."""
    return group[:1] if isinstance(group, Tensor) else tuple(part[:1] for part in group)


def check_counts(groups: Sequence[Group]) -> None:
    """Raises PromptError unless every prompt of a batch has as many references, at least one."""
    counts = sorted({count(group) for group in groups})
    if len(counts) != 1 or counts[0] == 0:
        raise PromptError(
            f"prompts with {' and '.join(map(str, counts)) or 'no'} reference(s)",
            reason="side by side, every prompt of a batch has the same number, at least one",
            hint="Give each as many references, or mix those of a prompt: fusion='average'.",
        )


def check_shapes(groups: Sequence[Group], spec: AdapterSpec) -> None:
    """Raises EncoderError for features of another kind, PromptError where there are none."""
    wanted = _shapes(spec)
    for group in groups:
        parts = (group,) if isinstance(group, Tensor) else group
        fits = len(parts) == len(wanted) and all(
            part.ndim == len(shape) and part.shape[-1] == shape[-1] and len(part) == len(parts[0])
            for part, shape in zip(parts, wanted, strict=True)
        )
        if not fits:
            shown = " and ".join(f"[{', '.join(map(str, shape))}]" for shape in wanted)
            raise EncoderError(
                f"features of shape {' and '.join(str(list(part.shape)) for part in parts)}",
                reason=f"{spec.feature} of this adapter are {shown}",
                hint=encoder_hint(spec),
            )
    if not groups or not all(map(count, groups)):
        check_counts([])


def _shapes(spec: AdapterSpec) -> tuple[tuple[str | int, ...], ...]:
    """n references, L positions; the last number is the width."""
    if spec.projector.face_dim:
        return ("n", spec.projector.face_dim), ("n", "L", spec.feature_dim)
    if spec.feature.is_vector:
        return (("n", spec.feature_dim),)
    return (("n", "L", spec.feature_dim),)


def encoder_hint(spec: AdapterSpec) -> str:
    if spec.feature.faces_only:
        return "They are ArcFace's embeddings of faces, made by a face recogniser."
    name = encoder_name(spec.feature, spec.feature_dim)
    return f"It was made for {name}." if name else "Use the encoder it was trained with."
