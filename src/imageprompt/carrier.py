"""What one denoiser call publishes to its attention sites: the prompts in use, batch and guidance.

A denoiser with adapters attached owns one Carrier. Its forward pre-hook works out which rows of the
batch are positive and which negative; each site then asks for its image terms. Nothing about the
pipeline is known here.

Shapes: P prompts, B batch, H heads, N image tokens, D head width, S sites.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.attention import ImageTerm
from imageprompt.controls import Scale, site_scales
from imageprompt.errors import GuidanceError
from imageprompt.spec import Site

Branch = Literal["negative", "positive"]
Branches = tuple[Branch, ...]
KeyValue = tuple[Tensor, Tensor]

LAYOUTS: dict[str, Branches] = {
    "none": ("positive",),
    "negative-positive": ("negative", "positive"),
    "positive-negative": ("positive", "negative"),
    "positive-positive": ("positive", "positive"),  # perturbed attention without guidance
    "negative-positive-positive": ("negative", "positive", "positive"),  # ... and with it
    "positive-negative-negative": ("positive", "negative", "negative"),  # InstructPix2Pix
}
"""Named guidance layouts: the branches that a pipeline stacks along the batch, in order."""


class InUse:
    """One image prompt in use on a denoiser: K', V' of every site and a live scale.

    `pairs[s]` holds K' and V' [2P or P, H, N, D] of site s, negative rows first if there are any.
    """

    def __init__(
        self,
        owner: object,
        sites: Sequence[Site],
        pairs: Sequence[KeyValue],
        *,
        prompts: int,
        scale: Scale,
        branches: Branches | None,
    ) -> None:
        self.owner = owner
        self.prompts = prompts
        self.branches = branches
        self._sites = sites
        self._pairs = list(pairs)
        self._table = torch.zeros(len(sites), device=pairs[0][0].device)
        self._bound: list[KeyValue] = []
        self._bound_for: tuple[Any, ...] = ()
        self.scale = scale

    @property
    def scale(self) -> Scale:
        """The scale: a number 0..2, or a mapping of site, prefix or role to numbers. Live."""
        return self._scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        values = site_scales(scale, self._sites)
        self._scale = scale
        self._values = [value or 0.0 for value in values]
        self._off = [value is None for value in values]
        self._table.copy_(torch.tensor(self._values))

    @property
    def has_negative(self) -> bool:
        return self._pairs[0][0].shape[0] == 2 * self.prompts

    def bind(self, branches: Branches, copies: int, like: Tensor) -> None:
        """Lay K', V' out for a batch, once per layout rather than once per step."""
        wanted = (branches, copies, like.device, like.dtype)
        # a compiled graph lays them out itself: whatever it kept would guard its next call
        if torch.compiler.is_compiling() or wanted != self._bound_for:
            self._bound = [
                (
                    self._rows(k, branches, copies).to(like.device, like.dtype),
                    self._rows(v, branches, copies).to(like.device, like.dtype),
                )
                for k, v in self._pairs
            ]
            self._table = self._table.to(like.device)
            self._bound_for = wanted

    def _rows(self, x: Tensor, branches: Branches, copies: int) -> Tensor:
        """[2P, ...] -> [B, ...]: the branches stacked, every prompt `copies` times in a row."""
        half = {"positive": x[-self.prompts :], "negative": x[: self.prompts]}
        parts = [half[branch] for branch in branches]
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        return stacked if copies == 1 else stacked.repeat_interleave(copies, dim=0)

    def term(self, index: int, q: Tensor) -> ImageTerm | None:
        """The image term of site `index` for queries [B * frames, H, Q, D]; None where it is off.

        A scale of exactly 0 switches the site off, except inside a compiled graph: there the value
        stays a tensor, so that changing it costs no recompilation.
        """
        if self._off[index]:
            return None
        if not torch.compiler.is_compiling() and self._values[index] == 0.0:
            return None
        key, value = self._bound[index]
        frames = int(q.shape[0]) // int(key.shape[0])
        if frames > 1:  # video: the batch was flattened with its frames
            key = key.repeat_interleave(frames, dim=0)
            value = value.repeat_interleave(frames, dim=0)
        return ImageTerm(key.to(q.dtype), value.to(q.dtype), self._table[index])


class Carrier:
    """The state that one denoiser's sites read while it runs."""

    def __init__(self) -> None:
        self.in_use: list[InUse] = []
        self.run = 0  # counts denoise loops; whatever was cached in an older one is stale
        self._clock = _Clock()
        self._told = _Told()

    def before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: read the call's batch and timestep, lay the prompts out for it."""
        if not self.in_use:
            return
        sample = _argument(args, kwargs, 0, "sample")
        text = _argument(args, kwargs, 2, "encoder_hidden_states")
        if not torch.compiler.is_compiling():
            self._note_time(_argument(args, kwargs, 1, "timestep"))
        for entry in self.in_use:
            branches = entry.branches or self._told.branches(sample, text, entry.prompts)
            copies = _copies(sample.shape[0], len(branches), entry.prompts)
            if "negative" in branches and not entry.has_negative:
                raise GuidanceError(
                    "image prompt without null tokens",
                    rule="guidance needs a negative side",
                    remedy="Encode with an encoder attached, or pass null_features=.",
                )
            entry.bind(branches, copies, sample)

    def _note_time(self, timestep: object) -> None:
        if not self._clock.goes_on(timestep):
            self.run += 1
            self._told = _Told()

    def terms(self, index: int, q: Tensor) -> list[ImageTerm]:
        """The image terms of one site, in order of use."""
        terms = (entry.term(index, q) for entry in self.in_use)
        return [term for term in terms if term is not None]


class _Clock:
    """Tells whether a call continues the denoise loop before it, without reading the device."""

    def __init__(self) -> None:
        self._base: weakref.ref[Tensor] | None = None
        self._offset = 0
        self._number: float | None = None

    def goes_on(self, timestep: object) -> bool:
        """Schedulers hand out views of one tensor, in order; plain numbers must go down."""
        if isinstance(timestep, Tensor):
            base = timestep._base
            if base is not None and timestep.ndim == 0:
                same = self._base is not None and self._base() is base
                offset = int(timestep.storage_offset())
                later = same and offset > self._offset
                self._base, self._offset = weakref.ref(base), offset
                self._number = None
                return later
            if timestep.numel() != 1 or timestep.device.type != "cpu":
                self._base = self._number = None
                return False
        self._base, before = None, self._number
        self._number = float(timestep)  # type: ignore[arg-type]
        return before is not None and self._number < before


class _Told:
    """Tells the guidance layout of a batch; asked once a loop, since it compares latents."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Branches] = {}

    def branches(self, sample: Tensor, text: Tensor | None, prompts: int) -> Branches:
        if torch.compiler.is_compiling():
            return _by_count(sample.shape[0], prompts)
        key = (sample.shape[0], prompts)
        if key not in self._known:
            self._known[key] = _tell(sample, text, prompts)
        return self._known[key]


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


def _by_count(batch: int, prompts: int) -> Branches:
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


def _tell(sample: Tensor, text: Tensor | None, prompts: int) -> Branches:
    """Positive throughout, or [negative, positive]: guidance repeats the latents along the batch.

    Raises GuidanceError for three equal copies, where pipelines differ in what they mean.
    """
    batch = sample.shape[0]
    copies = batch // prompts if batch % prompts == 0 else 0
    if copies == 2:
        # random latents for a bare denoiser count as guidance too, unless the rows of every
        # prompt share their text: then they are several pictures of one prompt
        pictures = not _repeats(sample, 2) and text is not None and _same_rows(text, prompts)
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


def _copies(batch: int, branches: int, prompts: int) -> int:
    if batch % (branches * prompts):
        raise GuidanceError(
            f"a batch of {batch}",
            rule=f"{prompts} image prompt(s) x {branches} guidance branch(es) do not divide it",
            remedy="Encode one reference per text prompt, or a single one for all; "
            "pass guidance= to use() if the pipeline stacks its batch in another way.",
        )
    return batch // (branches * prompts)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
