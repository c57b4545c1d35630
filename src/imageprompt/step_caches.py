"""diffusers' caches over steps (PyramidAttentionBroadcast, FasterCache, TaylorSeer ...).

They give a later step what a layer returned at an earlier one, image terms included. Where an
adapter contributes something else, what they kept is void.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def forget_steps(denoiser: nn.Module) -> None:
    """Reset every stateful hook of diffusers on a denoiser: the next call computes everything.

    Hooks without state (offloading, casting) are left alone; without hooks nothing happens.
    """
    for module in denoiser.modules():
        registry: Any = module.__dict__.get("_diffusers_hook")
        if registry is not None:
            registry.reset_stateful_hooks(recurse=False)
