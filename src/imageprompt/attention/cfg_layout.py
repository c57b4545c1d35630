"""The guidance layout of a batch: which rows are positive, which negative.

Pipelines stack the branches of guidance along the batch. Nothing of the pipeline is read: the
layout is told from what it hands to the denoiser, or explicit_timesteps by the user.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from imageprompt.core.errors import GuidanceError

Branch = Literal["negative", "positive"]
CFGLayout = tuple[Branch, ...]

LAYOUTS: dict[str, CFGLayout] = {
    "none": ("positive",),
    "negative-positive": ("negative", "positive"),
    "positive-negative": ("positive", "negative"),
    "positive-positive": ("positive", "positive"),  # perturbed attention without guidance
    "negative-positive-positive": ("negative", "positive", "positive"),  # ... and with it
    "positive-negative-negative": ("positive", "negative", "negative"),  # InstructPix2Pix
}
"""Named guidance layouts: the branches that a pipeline stacks along the batch, in order."""


def named_layout(guidance: str | Sequence[Branch]) -> CFGLayout | None:
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
        reason="not a known layout",
        hint=f"Use auto, {', '.join(LAYOUTS)}, or a sequence of 'negative' and 'positive'.",
    )


def layout_from_batch_size(batch: int, prompts: int) -> CFGLayout:
    """The layout that the batch size alone tells: the prompts' batch, or twice that."""
    if batch == prompts:
        return LAYOUTS["none"]
    if batch == 2 * prompts:
        return LAYOUTS["negative-positive"]
    raise GuidanceError(
        f"a compiled call with batch {batch} and {prompts} image prompt(s)",
        reason="the guidance layout cannot be told inside a compiled graph",
        hint="Pass guidance='negative-positive' or guidance='none' to use().",
    )


def infer_layout(
    sample: Tensor, text: Tensor | None, prompts: int, *, scheduled: bool
) -> CFGLayout:
    """The layout of a batch: the prompts' batch is positive, twice that [negative, positive].

    Larger batches are told by their latents, which guidance repeats: halves that are equal are
    [negative, positive], equal neighbours with the same text every second row [negative, positive]
    over and over. A loop over a schedule (`scheduled`) may also draw two pictures with every image
    prompt, of one text or of two, without guidance: then the latents differ. Raises GuidanceError
    for three or more equal copies, where pipelines differ in what they mean.
    """
    batch = sample.shape[0]
    if batch % prompts or batch == prompts:
        return LAYOUTS["none"]
    if batch == 2 * prompts:
        pictures = scheduled and not _repeats(sample, 2)
        return LAYOUTS["none"] if pictures else LAYOUTS["negative-positive"]
    copies = _copies(sample, prompts)
    if copies == 2:
        return LAYOUTS["negative-positive"]
    if copies > 2:
        return _many(copies, text, batch // copies)
    if batch % 2 == 0 and _in_turn(sample, text):
        return LAYOUTS["negative-positive"] * (batch // 2)
    return LAYOUTS["none"]


def _many(copies: int, text: Tensor | None, latents: int) -> CFGLayout:
    """More than two equal copies of the latents: only their texts may tell what they are."""
    if text is not None and copies % 2 == 0 and text.shape[0] % copies == 0:
        texts = text.chunk(copies)
        if all(torch.equal(texts[0], other) for other in texts[1 : copies // 2]):
            return LAYOUTS["negative-positive"]  # several prompts on the same latents
        if _in_turn(None, text, copies):
            return LAYOUTS["negative-positive"] * (copies // 2)
    raise GuidanceError(
        f"{copies} copies of {latents} latent(s)",
        reason=f"a batch of {copies} guidance branches has no single meaning",
        hint="Pass guidance= to use(): 'positive-negative-negative' (InstructPix2Pix), "
        "'negative-positive-positive' (perturbed attention), or the branches as a list of "
        "'negative' and 'positive' (an edit counts as positive).",
    )


def _copies(sample: Tensor, prompts: int) -> int:
    """How many times a batch repeats the same latents, every prompt being in each."""
    batch = sample.shape[0]
    counts = (batch // part for part in range(prompts, batch, prompts) if batch % part == 0)
    return next((count for count in counts if _repeats(sample, count)), 1)


def _repeats(sample: Tensor, parts: int) -> bool:
    """Are the parts of a batch equal? Four channels are read: others may hold conditions."""
    first, *others = sample[:, :4].chunk(parts)
    return all(torch.equal(first, other) for other in others)


def _in_turn(sample: Tensor | None, text: Tensor | None, parts: int | None = None) -> bool:
    """Is every second text the same negative one, on latents that are equal in pairs?"""
    if text is None:
        return False
    texts = text.chunk(parts or text.shape[0])
    negative, positive = texts[::2], texts[1::2]
    turns = (
        len(negative) == len(positive)
        and all(torch.equal(negative[0], other) for other in negative)
        and not any(torch.equal(negative[0], other) for other in positive)
    )
    return turns and (sample is None or torch.equal(sample[::2, :4], sample[1::2, :4]))


class LayoutCache:
    """The layouts of a denoise loop, told once each, since that compares latents.

    A pipeline may call its denoiser again with one half of the text alone (self-attention guidance
    does, with the negative half): a view of a text that is known has the branches of its rows.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], CFGLayout] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], CFGLayout]] = {}

    def forget(self) -> None:
        """A new loop begins."""
        self._told = {}

    def of(
        self, sample: Tensor, text: Tensor | None, prompts: int, *, scheduled: bool
    ) -> CFGLayout:
        """The branches of a call. Raises GuidanceError."""
        rows = None if text is None else self._rows(text, prompts)
        if rows is not None:
            return rows
        key = (sample.shape[0], prompts)
        if key not in self._told:
            self._told[key] = infer_layout(sample, text, prompts, scheduled=scheduled)
        told = self._told[key]
        if text is not None and len(told) > 1:
            self._known[prompts] = (weakref.ref(text), told)
        return told

    def _rows(self, text: Tensor, prompts: int) -> CFGLayout | None:
        """The branches of a text that shares the memory of one that is known."""
        reference, branches = self._known.get(prompts, (None, ()))
        whole = None if reference is None else reference()
        if whole is None or text is whole or not _is_part(text, whole):
            return None
        each = whole.shape[0] // len(branches)
        first = (text.storage_offset() - whole.storage_offset()) // whole.stride(0)
        last = first + text.shape[0] - 1
        if first // each == last // each:
            return (branches[first // each],)
        whole_branches = first % each == 0 and text.shape[0] % each == 0
        return branches[first // each : last // each + 1] if whole_branches else None


def _is_part(text: Tensor, whole: Tensor) -> bool:
    """Is `text` made of some rows of `whole`, in the same memory?"""
    return (
        text.shape[0] < whole.shape[0]
        and text.shape[1:] == whole.shape[1:]
        and text.stride() == whole.stride()
        and whole.stride(0) > 0
        and text.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    )


def copies_in(batch: int, branches: int, prompts: int) -> int:
    if batch % (branches * prompts):
        raise GuidanceError(
            f"a batch of {batch}",
            reason=f"{prompts} image prompt(s) x {branches} guidance branch(es) do not divide it",
            hint="Encode one reference per text prompt, or a single one for all; "
            "pass guidance= to use() if the pipeline stacks its batch in another way.",
        )
    return batch // (branches * prompts)
