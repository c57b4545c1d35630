"""What one denoiser call shares with its attention sites: active prompts, step and guidance layout.

A denoiser with adapters attached owns one AttentionState. Its forward pre-hook works out which rows
of the batch are positive or negative and which step of the loop the call is; each site then asks
for its image terms. Nothing is read from the pipeline.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention.active_prompt import ActivePrompt
from imageprompt.attention.cfg_layout import (
    CFGLayout,
    LayoutCache,
    count_images_per_prompt,
    layout_from_batch_size,
)
from imageprompt.attention.decoupled import ImageTerm
from imageprompt.attention.step_tracker import StepTracker, is_view


class AttentionState:
    """What the sites of one denoiser read while it runs."""

    def __init__(self) -> None:
        self.active: list[ActivePrompt] = []
        self.run = 0  # counts denoise loops; anything cached in an earlier one is stale
        self._tracker = StepTracker()
        self._layouts = LayoutCache()
        self._contributions: list[tuple[Any, ...]] = []
        self._has_step_caches = False
        self.check: Callable[[], None] = _no_check
        """Raises AttachError if the attention processors of the sites were replaced."""

    def before_forward(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook: read batch and timestep of the call and prepare the prompts for it."""
        timestep = _argument(args, kwargs, 1, "timestep")
        if not torch.compiler.is_compiling():
            self._update_step(timestep)
        elif self._has_step_caches or any(prompt.is_timed for prompt in self.active):
            from imageprompt.attention.graph_break import run_outside_graph

            run_outside_graph(self._update_step, timestep)
            if self._has_step_caches:
                run_outside_graph(self._void_step_caches, denoiser)
        if self.active:
            sample = _argument(args, kwargs, 0, "sample")
            text = _argument(args, kwargs, 2, "encoder_hidden_states")
            for prompt in self.active:
                layout = prompt.layout or self._infer_layout(sample, text, prompt.prompts)
                images = count_images_per_prompt(sample.shape[0], layout, prompt.prompts)
                prompt.bind(layout, images, sample)
        if not torch.compiler.is_compiling():
            self._void_step_caches(denoiser)

    def _update_step(self, timestep: object) -> None:
        """A call begins: find its step. Nothing is read where nothing depends on it."""
        if not self.active and not is_view(timestep):
            return  # a loop over a schedule is tracked anyway: use() may be entered inside it
        if not self._tracker.update(timestep):
            self.run += 1
            self._layouts.reset()
        if self.active:
            self.check()
        for prompt in self.active:
            if prompt.is_timed:
                prompt.go_to(self._tracker.position(prompt.timesteps))

    def _infer_layout(self, sample: Tensor, text: Tensor | None, prompts: int) -> CFGLayout:
        if torch.compiler.is_compiling():
            return layout_from_batch_size(sample.shape[0], prompts)
        return self._layouts.layout(sample, text, prompts, scheduled=self._tracker.scheduled)

    def terms(self, index: int, q: Tensor) -> list[ImageTerm]:
        """The image terms of one site, in order of use."""
        terms = (prompt.term(index, q) for prompt in self.active)
        return [term for term in terms if term is not None]

    def lora_strength(self, owner: object) -> Tensor | None:
        """The LoRA strength of an adapter: the largest of its active prompts; None if LoRA is off.

        Two uses of one adapter share its LoRA, so their strengths are not added.
        """
        strengths = [
            prompt.lora_strength
            for prompt in self.active
            if prompt.owner is owner and prompt.adds_lora
        ]
        if len(strengths) > 1:
            return torch.stack(strengths).amax()
        return strengths[0] if strengths else None

    # ── diffusers' caches over steps ────────────────────────────────────────────────────────────

    def detect_step_caches(self, denoiser: nn.Module) -> None:
        """Note whether the denoiser has step caches, for compiled calls; eager calls look again."""
        if "torch._dynamo" in sys.modules:
            self._has_step_caches = any(True for _ in _stateful_hooks(denoiser))

    def _void_step_caches(self, denoiser: nn.Module) -> None:
        """Reset the step caches if the sites now add something else than at the last call."""
        contributions = [prompt.contribution for prompt in self.active]
        if contributions != self._contributions:
            self._contributions = contributions
            reset_step_caches(denoiser)


def reset_step_caches(denoiser: nn.Module) -> None:
    """Reset every stateful hook of diffusers on a denoiser: the next call computes everything.

    Such hooks return at a later step what a layer returned at an earlier one, image terms included.
    Of those in diffusers 0.42, PyramidAttentionBroadcast and TaylorSeer run on a UNet.
    FirstBlockCache, MagCache and SeaCache find nothing to hook there; FasterCache with guidance
    cuts the batch within the call, which the sites refuse. Hooks without state (offloading,
    casting) are left alone.
    """
    for module, hook in _stateful_hooks(denoiser):
        # a reset also forgets the cache context that the pipeline has set, which must survive
        managers = [value for value in vars(hook).values() if hasattr(value, "set_context")]
        contexts = [manager._context for manager in managers]
        hook.reset_state(module)
        for manager, context in zip(managers, contexts, strict=True):
            manager.set_context(context)


def _stateful_hooks(denoiser: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    for module in denoiser.modules():
        registry: Any = module.__dict__.get("_diffusers_hook")
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield module, hook


def _no_check() -> None:
    """A state without a denoiser has nothing to check."""


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
