"""What one denoiser call publishes to its attention sites: the prompts in use, batch and guidance.

A denoiser with adapters attached owns one AttentionState. Its forward pre-hook works out which rows of the
batch are positive and which negative, and which step of the loop the call is; each site then asks
for its image terms. Nothing about the pipeline is known here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention.active_prompt import ActivePrompt
from imageprompt.attention.cfg_layout import (
    CFGLayout,
    LayoutCache,
    copies_in,
    layout_from_batch_size,
)
from imageprompt.attention.decoupled import ImageTerm
from imageprompt.attention.step_caches import has_step_caches, reset_step_caches
from imageprompt.attention.step_tracker import StepTracker, is_view


class AttentionState:
    """The state that one denoiser's sites read while it runs."""

    def __init__(self) -> None:
        self.in_use: list[ActivePrompt] = []
        self.run = 0  # counts denoise loops; whatever was cached in an older one is stale
        self._clock = StepTracker()
        self._layouts = LayoutCache()
        self._contributed: list[tuple[Any, ...]] = []
        self._has_caches = False
        self.check: Callable[[], None] = _no_check
        """Raises AttachError where somebody has replaced the sites' processors."""

    def before_forward(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook: read the call's batch and timestep, lay the prompts out for it."""
        timestep = _argument(args, kwargs, 1, "timestep")
        if not torch.compiler.is_compiling():
            self._tick(timestep)
        elif self._has_caches or any(entry.is_timed for entry in self.in_use):
            from imageprompt.attention.graph_break import outside

            outside(self._tick, timestep)
            if self._has_caches:
                outside(self._forget_other_steps, denoiser)
        if self.in_use:
            sample = _argument(args, kwargs, 0, "sample")
            text = _argument(args, kwargs, 2, "encoder_hidden_states")
            for entry in self.in_use:
                branches = entry.branches or self._layout(sample, text, entry.prompts)
                entry.bind(
                    branches, copies_in(sample.shape[0], len(branches), entry.prompts), sample
                )
        if not torch.compiler.is_compiling():
            self._forget_other_steps(denoiser)

    def _tick(self, timestep: object) -> None:
        """A call begins: be at its step. Nothing is read where nothing depends on it."""
        if not self.in_use and not is_view(timestep):
            return  # a loop over a schedule is followed even so: use() may be entered within it
        if not self._clock.update(timestep):
            self.run += 1
            self._layouts.forget()
        if self.in_use:
            self.check()
        for entry in self.in_use:
            if entry.is_timed:
                entry.at(self._clock.position(entry.timesteps))

    def detect_step_caches(self, denoiser: nn.Module) -> None:
        """A compiled call cannot look for caches over steps itself; nor is there any need else."""
        if "torch._dynamo" in sys.modules:
            self._has_caches = has_step_caches(denoiser)

    def _forget_other_steps(self, denoiser: nn.Module) -> None:
        """Caches over steps hold what the sites gave then; another contribution voids them."""
        contributed = [entry.contribution for entry in self.in_use]
        if contributed != self._contributed:
            self._contributed = contributed
            reset_step_caches(denoiser)

    def _layout(self, sample: Tensor, text: Tensor | None, prompts: int) -> CFGLayout:
        """The layout of a batch."""
        if torch.compiler.is_compiling():
            return layout_from_batch_size(sample.shape[0], prompts)
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


def _no_check() -> None:
    """A state without a denoiser has nothing to check."""


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
