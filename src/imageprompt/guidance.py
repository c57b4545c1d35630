"""The guidance layout of a batch: which rows are positive, which negative.

Pipelines stack the branches of guidance along the batch. Nothing of the pipeline is read: the
layout is told from what it hands to the denoiser, or stated by the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from imageprompt.errors import GuidanceError

Branch = Literal["negative", "positive"]
Branches = tuple[Branch, ...]

LAYOUTS: dict[str, Branches] = {
    "none": ("positive",),
    "negative-positive": ("negative", "positive"),
    "positive-negative": ("positive", "negative"),
    "positive-positive": ("positive", "positive"),  # perturbed attention without guidance
    "negative-positive-positive": ("negative", "positive", "positive"),  # ... and with it
    "positive-negative-negative": ("positive", "negative", "negative"),  # InstructPix2Pix
}
"""Named guidance layouts: the branches that a pipeline stacks along the batch, in order."""


def named_layout(guidance: str | Sequence[Branch]) -> Branches | None:
    """The branches of a layout's name or sequence; None for "auto"."""
    if guidance == "auto":
        return None
    if isinstance(guidance, str):
        if guidance in LAYOUTS:
            return LAYOUTS[guidance]
    elif guidance and set(guidance) <= {"negative", "positive"}:
        return tuple(guidance)
    raise GuidanceError(
        f"guidance={guidance!r}",
        rule="not a known layout",
        remedy=f"Use auto, {', '.join(LAYOUTS)}, or a sequence of 'negative' and 'positive'.",
    )


def by_count(batch: int, prompts: int) -> Branches:
    """The layout that the batch size alone tells: the prompts' batch, or twice that."""
    if batch == prompts:
        return LAYOUTS["none"]
    if batch == 2 * prompts:
        return LAYOUTS["negative-positive"]
    raise GuidanceError(
        f"a compiled call with batch {batch} and {prompts} image prompt(s)",
        rule="the guidance layout cannot be told inside a compiled graph",
        remedy="Pass guidance='negative-positive' or guidance='none' to use().",
    )


def tell(sample: Tensor, text: Tensor | None, prompts: int, *, scheduled: bool) -> Branches:
    """The layout of a batch: the prompts' batch is positive, twice that [negative, positive].

    Larger batches are told by their latents, which guidance repeats. A loop over a schedule
    (`scheduled`) may also draw two pictures of every prompt without guidance: then the latents
    differ while the text is the same. Raises GuidanceError for three equal copies, where pipelines
    differ in what they mean.
    """
    batch = sample.shape[0]
    copies = batch // prompts if batch % prompts == 0 else 0
    if copies == 2:
        pictures = (
            scheduled and not _repeats(sample, 2) and text is not None and _same_rows(text, prompts)
        )
        return LAYOUTS["none"] if pictures else LAYOUTS["negative-positive"]
    if copies > 2 and copies % 2 == 0 and _repeats(sample, 2):
        return LAYOUTS["negative-positive"]
    if copies % 3 == 0 and copies and _repeats(sample, 3):
        raise GuidanceError(
            f"three copies of {batch // 3} latent(s)",
            rule="a batch of three guidance branches has no single meaning",
            remedy="Pass guidance='positive-negative-negative' (InstructPix2Pix) or "
            "'negative-positive-positive' (perturbed attention) to use().",
        )
    return LAYOUTS["none"]


def _repeats(sample: Tensor, parts: int) -> bool:
    """Are the parts of a batch equal? Four channels are read: others may hold conditions."""
    first, *others = sample[:, :4].chunk(parts)
    return all(torch.equal(first, other) for other in others)


def _same_rows(text: Tensor, prompts: int) -> bool:
    if text.shape[0] % prompts:
        return False
    rows = text.reshape(prompts, -1, *text.shape[1:])
    return bool((rows == rows[:, :1]).all())


def copies_in(batch: int, branches: int, prompts: int) -> int:
    if batch % (branches * prompts):
        raise GuidanceError(
            f"a batch of {batch}",
            rule=f"{prompts} image prompt(s) x {branches} guidance branch(es) do not divide it",
            remedy="Encode one reference per text prompt, or a single one for all; "
            "pass guidance= to use() if the pipeline stacks its batch in another way.",
        )
    return batch // (branches * prompts)
