"""The guidance layout of a batch: which rows are positive and which are negative.

Pipelines stack the branches of classifier-free guidance along the batch. The layout is inferred
from the tensors that reach the denoiser, unless the user states it; nothing is read from the
pipeline.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from imageprompt.core.errors import GuidanceError

Branch = Literal["negative", "positive"]
"""One branch of guidance: a block of rows that share the negative or the positive condition."""
CFGLayout = tuple[Branch, ...]
"""The branches that a batch stacks, in order."""

LAYOUTS: dict[str, CFGLayout] = {
    "none": ("positive",),
    "negative-positive": ("negative", "positive"),
    "positive-negative": ("positive", "negative"),
    "positive-positive": ("positive", "positive"),  # perturbed attention without guidance
    "negative-positive-positive": ("negative", "positive", "positive"),  # ... and with it
    "positive-negative-negative": ("positive", "negative", "negative"),  # InstructPix2Pix
}
"""Layouts by name: the branches that a pipeline stacks along the batch, in order."""


def named_layout(guidance: str | Sequence[Branch]) -> CFGLayout | None:
    """The layout of that name, or of that sequence of branches; None for "auto".

    Raises GuidanceError for anything else.
    """
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
    """The layout, from the batch size alone: one row per prompt, or two.

    Raises GuidanceError for any other batch size.
    """
    if batch == prompts:
        return LAYOUTS["none"]
    if batch == 2 * prompts:
        return LAYOUTS["negative-positive"]
    raise GuidanceError(
        f"a compiled call with batch {batch} and {prompts} image prompt(s)",
        reason="the guidance layout cannot be inferred inside a compiled graph",
        hint="Pass guidance='negative-positive' or guidance='none' to use().",
    )


def infer_layout(
    sample: Tensor, text: Tensor | None, prompts: int, *, scheduled: bool
) -> CFGLayout:
    """The layout of a batch of latents `sample` with text states `text`.

    One row per prompt is positive; two are [negative, positive]. In a larger batch the latents
    decide, because guidance repeats them: two equal halves are [negative, positive]; equal
    neighbours whose every second text is the same are [negative, positive] over and over. A loop
    over a schedule (`scheduled`) may also draw two pictures per image prompt without guidance,
    with one text or with two; their latents differ. Raises GuidanceError for three or more equal
    repeats of the latents, because pipelines disagree on what they mean.
    """
    batch = sample.shape[0]
    if batch % prompts or batch == prompts:
        return LAYOUTS["none"]
    if batch == 2 * prompts:
        two_pictures = scheduled and not _repeats(sample, 2)
        return LAYOUTS["none"] if two_pictures else LAYOUTS["negative-positive"]
    repeats = _count_repeats(sample, prompts)
    if repeats == 2:
        return LAYOUTS["negative-positive"]
    if repeats > 2:
        return _layout_from_text(repeats, text, batch // repeats)
    if batch % 2 == 0 and _alternates(sample, text):
        return LAYOUTS["negative-positive"] * (batch // 2)
    return LAYOUTS["none"]


def _layout_from_text(repeats: int, text: Tensor | None, latents: int) -> CFGLayout:
    """More than two equal repeats of the latents: only their texts can tell the branches apart."""
    if text is not None and repeats % 2 == 0 and text.shape[0] % repeats == 0:
        texts = text.chunk(repeats)
        if all(torch.equal(texts[0], other) for other in texts[1 : repeats // 2]):
            return LAYOUTS["negative-positive"]  # several prompts on the same latents
        if _alternates(None, text, repeats):
            return LAYOUTS["negative-positive"] * (repeats // 2)
    raise GuidanceError(
        f"{repeats} copies of {latents} latent(s)",
        reason=f"a batch of {repeats} guidance branches has no single meaning",
        hint="Pass guidance= to use(): 'positive-negative-negative' (InstructPix2Pix), "
        "'negative-positive-positive' (perturbed attention), or the branches as a list of "
        "'negative' and 'positive' (an edit counts as positive).",
    )


def _count_repeats(sample: Tensor, prompts: int) -> int:
    """How often a batch repeats the same latents, with every prompt in each repeat."""
    batch = sample.shape[0]
    counts = (batch // part for part in range(prompts, batch, prompts) if batch % part == 0)
    return next((count for count in counts if _repeats(sample, count)), 1)


def _repeats(sample: Tensor, parts: int) -> bool:
    """Are all parts of a batch equal? Only four channels are read: others may hold conditions."""
    first, *others = sample[:, :4].chunk(parts)
    return all(torch.equal(first, other) for other in others)


def _alternates(sample: Tensor | None, text: Tensor | None, parts: int | None = None) -> bool:
    """Is every second text the same negative one, on latents that are equal in pairs?"""
    if text is None:
        return False
    texts = text.chunk(parts or text.shape[0])
    negative, positive = texts[::2], texts[1::2]
    alternates = (
        len(negative) == len(positive)
        and all(torch.equal(negative[0], other) for other in negative)
        and not any(torch.equal(negative[0], other) for other in positive)
    )
    return alternates and (sample is None or torch.equal(sample[::2, :4], sample[1::2, :4]))


class LayoutCache:
    """Infers each layout of a denoise loop once, because that compares latents.

    A pipeline may call its denoiser again with part of the text only (self-attention guidance does,
    with the negative half). A view into a text that was seen before has the branches of its rows.
    """

    def __init__(self) -> None:
        self._layouts: dict[tuple[int, int], CFGLayout] = {}
        self._texts: dict[int, tuple[weakref.ref[Tensor], CFGLayout]] = {}

    def reset(self) -> None:
        """Forget the layouts: a new loop begins."""
        self._layouts = {}

    def layout(
        self, sample: Tensor, text: Tensor | None, prompts: int, *, scheduled: bool
    ) -> CFGLayout:
        """The layout of a call. Raises GuidanceError."""
        part = None if text is None else self._layout_of_view(text, prompts)
        if part is not None:
            return part
        key = (sample.shape[0], prompts)
        if key not in self._layouts:
            self._layouts[key] = infer_layout(sample, text, prompts, scheduled=scheduled)
        layout = self._layouts[key]
        if text is not None and len(layout) > 1:
            self._texts[prompts] = (weakref.ref(text), layout)
        return layout

    def _layout_of_view(self, text: Tensor, prompts: int) -> CFGLayout | None:
        """The branches of a text that is a view into one that was seen before; else None."""
        reference, layout = self._texts.get(prompts, (None, ()))
        whole = None if reference is None else reference()
        if whole is None or text is whole or not _is_part(text, whole):
            return None
        rows = whole.shape[0] // len(layout)
        first = (text.storage_offset() - whole.storage_offset()) // whole.stride(0)
        last = first + text.shape[0] - 1
        if first // rows == last // rows:
            return (layout[first // rows],)
        whole_branches = first % rows == 0 and text.shape[0] % rows == 0
        return layout[first // rows : last // rows + 1] if whole_branches else None


def _is_part(text: Tensor, whole: Tensor) -> bool:
    """Does `text` consist of some rows of `whole`, in the same memory?"""
    return (
        text.shape[0] < whole.shape[0]
        and text.shape[1:] == whole.shape[1:]
        and text.stride() == whole.stride()
        and whole.stride(0) > 0
        and text.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    )


def count_images_per_prompt(batch: int, layout: CFGLayout, prompts: int) -> int:
    """How many rows of each branch belong to one prompt.

    Raises GuidanceError where prompts and branches do not divide the batch.
    """
    branches = len(layout)
    if batch % (branches * prompts):
        raise GuidanceError(
            f"a batch of {batch}",
            reason=f"{prompts} image prompt(s) x {branches} guidance branch(es) do not divide it",
            hint="Encode one reference per text prompt, or a single one for all; "
            "pass guidance= to use() if the pipeline stacks its batch in another way.",
        )
    return batch // (branches * prompts)
