"""Features that a projector reads: their shapes by kind, and groups of them.

The references of one prompt form a group: a tensor [n, ...], or for variants that read a face
embedding beside the picture's features a tuple of two tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imageprompt.core.errors import EncoderError, PromptError
from imageprompt.core.spec import AdapterSpec

Group = Tensor | tuple[Tensor, ...]
Features = Group | Sequence[Group]
"""A group for one prompt, or a list with one for each of several prompts."""


def as_groups(features: Features) -> list[Group]:
    """One group for each prompt."""
    return [features] if isinstance(features, Tensor | tuple) else list(features)


def concatenate(groups: Sequence[Group]) -> Group:
    """The references of all prompts in one group."""
    if isinstance(groups[0], Tensor):
        return torch.cat([group for group in groups if isinstance(group, Tensor)])
    return tuple(torch.cat(parts) for parts in zip(*groups, strict=True))


def map_parts(group: Group, function: Callable[[Tensor], Tensor]) -> Group:
    """Apply a function to every tensor of a group."""
    if isinstance(group, Tensor):
        return function(group)
    return tuple(function(part) for part in group)


def reference_count(group: Group) -> int:
    """The number of references in a group."""
    return len(group if isinstance(group, Tensor) else group[0])


def first_reference(group: Group) -> Group:
    """A group with the first reference alone."""
    return group[:1] if isinstance(group, Tensor) else tuple(part[:1] for part in group)


def check_counts(groups: Sequence[Group]) -> None:
    """Raises PromptError unless every prompt of a batch has the same number of references, > 0."""
    counts = sorted({reference_count(group) for group in groups})
    if len(counts) != 1 or counts[0] == 0:
        raise PromptError(
            f"prompts with {' and '.join(map(str, counts)) or 'no'} reference(s)",
            reason="every prompt of a batch needs the same number, at least one",
            hint="Give each as many references, or fuse those of a prompt: fusion='average'.",
        )


def check_shapes(groups: Sequence[Group], spec: AdapterSpec) -> None:
    """Raises EncoderError for features of the wrong kind or not finite, PromptError for none."""
    expected = _shapes(spec)
    for group in groups:
        parts = (group,) if isinstance(group, Tensor) else group
        fits = len(parts) == len(expected) and all(
            part.ndim == len(shape) and part.shape[-1] == shape[-1] and len(part) == len(parts[0])
            for part, shape in zip(parts, expected, strict=True)
        )
        if not fits:
            names = " and ".join(f"[{', '.join(map(str, shape))}]" for shape in expected)
            raise EncoderError(
                f"features of shape {' and '.join(str(list(part.shape)) for part in parts)}",
                reason=f"this adapter reads {spec.feature} of shape {names}",
                hint=encoder_hint(spec),
            )
        for part in parts:
            if wrong := not_finite(part):
                raise EncoderError(
                    f"features of shape {list(part.shape)}",
                    reason=f"{wrong} of {part.numel()} numbers are NaN or infinite",
                    hint="Half precision may overflow in an encoder: load it in float32.",
                )
    if not groups or not all(map(reference_count, groups)):
        check_counts([])


def not_finite(tensor: Tensor) -> int:
    """How many numbers are NaN or infinite."""
    return 0 if torch.isfinite(tensor).all() else int((~torch.isfinite(tensor)).sum())


def _shapes(spec: AdapterSpec) -> tuple[tuple[str | int, ...], ...]:
    """n references, L positions; the last number is the width."""
    if spec.projector.face_dim:
        return ("n", spec.projector.face_dim), ("n", "L", spec.feature_dim)
    if spec.feature.is_vector:
        return (("n", spec.feature_dim),)
    return (("n", "L", spec.feature_dim),)


def encoder_hint(spec: AdapterSpec) -> str:
    """Which encoder makes the features that this adapter reads; the hint of an error."""
    from imageprompt.checkpoint.identify.published import encoder_name

    if spec.feature.faces_only:
        return "Use ArcFace embeddings of faces, made by a face recogniser."
    name = encoder_name(spec.feature, spec.feature_dim)
    return f"It was made for {name}." if name else "Use the encoder it was trained with."
