"""What one denoiser call publishes to its attention sites: the prompts in use, batch and guidance.

A denoiser with adapters attached owns one Carrier. Its forward pre-hook works out which rows of the
batch are positive and which negative; each site then asks for its image terms. Nothing about the
pipeline is known here.

Shapes: P prompts, B batch, H heads, N image tokens, D head width, S sites.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention import ImageTerm
from imageprompt.controls import Scale, one_scale, site_scales
from imageprompt.errors import GuidanceError
from imageprompt.guidance import Branches, Layouts, by_count, copies_in
from imageprompt.spec import Site

KeyValue = tuple[Tensor, Tensor]


class InUse:
    """One image prompt in use on a denoiser: K', V' of every site, a live scale and LoRA strength.

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
        lora: float = 1.0,
    ) -> None:
        self.owner = owner
        self.prompts = prompts
        self.branches = branches
        self._sites = sites
        self._pairs = list(pairs)
        self._table = torch.zeros(len(sites), device=pairs[0][0].device)
        self._bound: list[KeyValue] = []
        self._bound_for: tuple[Any, ...] = ()
        self._lora = one_scale(lora, "lora")
        self.strength = torch.zeros((), device=self._table.device)
        self.scale = scale

    @property
    def lora(self) -> float:
        """How strongly the adapter's LoRA acts, where it has any: a number 0..2. Live.

        It does not act where the scale is 0 at every site: that is the base alone.
        """
        return self._lora

    @lora.setter
    def lora(self, lora: float) -> None:
        self._lora = one_scale(lora, "lora")
        self._set_strength()

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
        self._set_strength()

    def _set_strength(self) -> None:
        """LoRA's strength as a tensor, so that changing it recompiles nothing."""
        self.strength.fill_(self._lora if any(self._values) else 0.0)

    @property
    def adds_lora(self) -> bool:
        """Does LoRA act? Inside a compiled graph that is left to its strength."""
        return torch.compiler.is_compiling() or (self._lora != 0 and any(self._values))

    @property
    def has_negative(self) -> bool:
        return self._pairs[0][0].shape[0] == 2 * self.prompts

    def bind(self, branches: Branches, copies: int, like: Tensor) -> None:
        """Lay K', V' out for a batch, once per layout rather than once per step."""
        # what was laid out without gradients has lost them
        wanted = (branches, copies, like.device, like.dtype, torch.is_grad_enabled())
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
            self.strength = self.strength.to(like.device)
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
        self._layouts = Layouts()
        self.check: Callable[[], None] = _no_check
        """Raises AttachError where somebody has replaced the sites' processors."""

    def before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: read the call's batch and timestep, lay the prompts out for it."""
        if not self.in_use:
            return
        sample = _argument(args, kwargs, 0, "sample")
        text = _argument(args, kwargs, 2, "encoder_hidden_states")
        if not torch.compiler.is_compiling():
            self.check()
            self._note_time(_argument(args, kwargs, 1, "timestep"))
        for entry in self.in_use:
            branches = entry.branches or self._layout(sample, text, entry.prompts)
            copies = copies_in(sample.shape[0], len(branches), entry.prompts)
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
            self._layouts.forget()

    def _layout(self, sample: Tensor, text: Tensor | None, prompts: int) -> Branches:
        """The layout of a batch."""
        if torch.compiler.is_compiling():
            return by_count(sample.shape[0], prompts)
        return self._layouts.of(sample, text, prompts, scheduled=self._clock.scheduled)

    def terms(self, index: int, q: Tensor) -> list[ImageTerm]:
        """The image terms of one site, in order of use."""
        terms = (entry.term(index, q) for entry in self.in_use)
        return [term for term in terms if term is not None]

    def strength(self, owner: object) -> Tensor | None:
        """How strongly an adapter's LoRA acts; the strongest of its prompts' in use, else None."""
        found = [
            entry.strength for entry in self.in_use if entry.owner is owner and entry.adds_lora
        ]
        if len(found) > 1:
            return torch.stack(found).amax()
        return found[0] if found else None


class _Clock:
    """Tells whether a call continues the denoise loop before it, without reading the device."""

    def __init__(self) -> None:
        self._base: weakref.ref[Tensor] | None = None
        self._offset = 0
        self._number: float | None = None

    @property
    def scheduled(self) -> bool:
        """Did the last timestep come out of a schedule, as a view of its tensor?"""
        return self._base is not None

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
                self._base, self._number = None, None
                return False
        self._base, before = None, self._number
        self._number = float(timestep)  # type: ignore[arg-type]
        return before is not None and self._number < before


def _no_check() -> None:
    """A carrier without a denoiser has nothing to check."""


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
