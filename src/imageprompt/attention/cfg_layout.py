"""The guidance layout of a batch: which rows are positive and which are negative.

Pipelines stack the branches of classifier-free guidance along the batch. What the user states
comes first, then what the running pipeline says (see `witness`), then the tensors that reach the
denoiser. Where two readings are left, that is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from imageprompt.core.errors import GuidanceError

if TYPE_CHECKING:
    from imageprompt.attention.witness import Witness

Branch = Literal["negative", "positive"]
"""One branch of guidance: a block of rows that share the negative or the positive condition."""
CFGLayout = tuple[Branch, ...]
"""The branches that a batch stacks, in order."""

LAYOUTS: dict[str, CFGLayout] = {
    "none": ("positive",),
    "positive": ("positive",),  # the call of one branch, where each has its own
    "negative": ("negative",),
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


@dataclass(frozen=True)
class Reading:
    """A layout, and whether the latents of the next step must confirm it.

    Two equal halves of latents are the two sides of guidance, or two pictures that start from one
    noise. From the second step on only the first stay equal.
    """

    layout: CFGLayout
    halves_equal: bool | None = None
    """What the halves of the latents must be at the next step; None: the layout is certain."""


def read_layout(
    sample: Tensor, text: Tensor | None, prompts: int, witness: Witness | None = None
) -> Reading:
    """Read the layout of a batch of latents `sample` with text states `text`.

    A pipeline that runs without guidance has positive rows only. One that runs with it stacks
    [negative, positive], a row for each of its texts' pictures in each. In any other batch the
    latents decide, because guidance repeats them: two equal halves are [negative, positive]; equal
    neighbours whose every second text is the same are [negative, positive] over and over. A loop
    may also draw two pictures per image prompt without guidance; their latents differ.

    Raises GuidanceError for three or more equal repeats of the latents, because pipelines disagree
    on what they mean.
    """
    if witness is not None and witness.guided is not None:
        told = _told_by_pipeline(sample, prompts, witness)
        if told is not None:
            return Reading(told)
    certain = witness is not None and witness.guided is not None
    batch = sample.shape[0]
    if batch % prompts:
        return Reading(LAYOUTS["none"])
    if batch == prompts:
        equal = not certain and batch % 2 == 0 and _repeats(sample, 2)
        return Reading(LAYOUTS["none"], False if equal else None)
    if batch == 2 * prompts:
        if not certain and not _repeats(sample, 2):
            return Reading(LAYOUTS["none"])
        unsure = not certain and not _equal_halves(text)
        return Reading(LAYOUTS["negative-positive"], True if unsure else None)
    return Reading(_layout_from_repeats(sample, text, prompts))


def _told_by_pipeline(sample: Tensor, prompts: int, witness: Witness) -> CFGLayout | None:
    """The layout that follows from the pipeline's own properties; None if they do not decide."""
    batch = sample.shape[0]
    if not witness.guided:
        perturbed = witness.perturbed and batch % 2 == 0 and _repeats(sample, 2)
        return LAYOUTS["positive-positive" if perturbed else "none"]
    if witness.perturbed and batch % 3 == 0 and _repeats(sample, 3):
        return LAYOUTS["negative-positive-positive"]
    rows = (witness.texts or 0) * (witness.images or 0)
    too_many_prompts = batch == prompts and batch % 2 == 0 and _repeats(sample, 2)
    if (rows and batch == 2 * rows) or too_many_prompts:
        return LAYOUTS["negative-positive"]
    return None


def _layout_from_repeats(sample: Tensor, text: Tensor | None, prompts: int) -> CFGLayout:
    """A batch of more than two rows for each prompt: its equal latents tell."""
    batch, repeats = sample.shape[0], _count_repeats(sample, prompts)
    if repeats == 2:
        return LAYOUTS["negative-positive"]
    if repeats > 2:
        return _layout_from_text(repeats, text, batch // repeats)
    if batch % 2 == 0 and _alternates(sample, text):
        return LAYOUTS["negative-positive"] * (batch // 2)
    return LAYOUTS["none"]


def _equal_halves(text: Tensor | None) -> bool:
    """Two rows of equal latents and equal text would be one picture twice: guidance."""
    if text is None or text.shape[0] % 2:
        return False
    first, second = text.chunk(2)
    return torch.equal(first, second)


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


_loops = count()


class LayoutCache:
    """Reads each layout of a denoise loop once, because that compares latents.

    A pipeline may call its denoiser again with part of the text only (self-attention guidance does,
    with the negative half). A view into a text that was seen before has the branches of its rows.
    """

    def __init__(self) -> None:
        self._layouts: dict[tuple[object, ...], CFGLayout] = {}
        self._unsure: dict[tuple[object, ...], bool] = {}  # what the halves must be next time
        self._texts: dict[int, tuple[weakref.ref[Tensor], CFGLayout]] = {}
        self._last: tuple[Tensor, int, Tensor, object] | None = None
        self._first_step: object = None
        self.loop = next(_loops)
        """The number of the loop, unique in the process."""

    def reset(self) -> None:
        """Forget the layouts: a new loop begins."""
        self.loop = next(_loops)
        self._layouts, self._unsure, self._last = {}, {}, None

    @property
    def unsure(self) -> bool:
        """Was a layout of this loop read that no second step has confirmed?"""
        return bool(self._unsure)

    def layout(
        self,
        sample: Tensor,
        text: Tensor | None,
        prompts: int,
        *,
        witness: Witness | None = None,
        step: object = None,
    ) -> CFGLayout:
        """The layout of a call at a `step` (None: unknown). Raises GuidanceError."""
        if witness is not None and witness.branch is not None:
            return (witness.branch,)
        part = None if text is None else self._layout_of_view(text, prompts)
        if part is not None:
            return part
        told = None if witness is None else (witness.guided, witness.texts, witness.images)
        key = (sample.shape[0], prompts, told)
        if key in self._unsure:
            self._confirm(key, sample, step)
        if key not in self._layouts:
            reading = read_layout(sample, text, prompts, witness)
            self._layouts[key] = reading.layout
            if reading.halves_equal is not None:
                self._unsure[key] = reading.halves_equal
                self._first_step = step
        layout = self._layouts[key]
        if text is not None and len(layout) > 1:
            self._texts[prompts] = (weakref.ref(text), layout)
        guided = None if witness is None else witness.guided
        if text is not None and len(layout) == 1 and guided is not False:
            self._refuse_two_passes(sample, text, step)
        if witness is not None:
            check_prompts(prompts, sample.shape[0], layout, witness)
        return layout

    def _confirm(self, key: tuple[object, ...], sample: Tensor, step: object) -> None:
        """The second step decides between guidance and two pictures from one noise."""
        if step is not None and step == self._first_step:
            return
        if _repeats(sample, 2) == self._unsure.pop(key):
            return
        raise GuidanceError(
            f"a batch of {sample.shape[0]} with equal latents at its first step",
            reason="it can be the two sides of guidance, or pictures without guidance that start "
            "from one noise; the second step contradicts what the first was read as",
            hint="Pass guidance='none' or guidance='negative-positive' to use().",
        )

    def _refuse_two_passes(self, sample: Tensor, text: Tensor, step: object) -> None:
        """Guidance as two calls cannot be told from two pictures: which call is negative?"""
        version = -1 if sample.is_inference() else sample._version
        last, self._last = self._last, (sample, version, text, step)
        if last is None:
            return
        before, version_before, text_before, step_before = last
        if text_before is text or before.shape != sample.shape:
            return
        if None not in (step, step_before) and step != step_before:
            return
        if before is sample and version != version_before:
            return
        if before is not sample and not torch.equal(before, sample):
            return
        if text_before.shape == text.shape and torch.equal(text_before, text):
            return
        raise GuidanceError(
            "two calls at one step with the same latents and two texts",
            reason="they can be the negative and the positive side of guidance in either order, "
            "or two pictures without guidance",
            hint="Say which it is: set handle.guidance = 'negative' or 'positive' before each "
            "call (handle is what use() yields), or pass guidance='none' for two pictures.",
        )

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


def check_prompts(prompts: int, batch: int, layout: CFGLayout, witness: Witness) -> None:
    """One image prompt for all, one for each text, or one for each picture. Raises GuidanceError.

    Only where the pipeline says how many texts and pictures there are.
    """
    if not witness.texts or not witness.images:
        return
    rows = witness.texts * witness.images
    if batch != len(layout) * rows or prompts in (1, witness.texts, rows):
        return
    raise GuidanceError(
        f"{prompts} image prompts for {witness.texts} text prompt(s) with {witness.images} "
        "picture(s) each",
        reason=f"the numbers leave open which picture of {witness.source} follows which",
        hint="Encode one reference for all, one for each text prompt, or one for each picture.",
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
