"""diffusers' caches over steps: void where an adapter contributes something else.

They give a later step what a layer returned at an earlier one, image terms included. Of those in
diffusers 0.42 PyramidAttentionBroadcast and TaylorSeer run on a UNet. FirstBlockCache, MagCache and
SeaCache find nothing there to hook; FasterCache with guidance cuts the batch within the call, which
the sites refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def reset_step_caches(denoiser: nn.Module) -> None:
    """Reset every stateful hook of diffusers on a denoiser: the next call computes everything.

    Hooks without state (offloading, casting) are left alone; without hooks nothing happens.
    """
    for module, hook in _stateful(denoiser):
        _reset(hook, module)


def has_step_caches(denoiser: nn.Module) -> bool:
    """Is there anything to forget?"""
    return any(True for _ in _stateful(denoiser))


def _stateful(denoiser: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    for module in denoiser.modules():
        registry: Any = module.__dict__.get("_diffusers_hook")
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield module, hook


def _reset(hook: Any, module: nn.Module) -> None:
    """Drop what a hook keeps, but not the pipeline's word on which call this is."""
    managers = [value for value in vars(hook).values() if hasattr(value, "set_context")]
    contexts = [manager._context for manager in managers]
    hook.reset_state(module)
    for manager, context in zip(managers, contexts, strict=True):
        manager.set_context(context)
