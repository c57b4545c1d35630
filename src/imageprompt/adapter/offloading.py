"""Weights of a base that are elsewhere while it does not run: where they go, and their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.core.errors import AttachError


def offloaded_to(denoiser: nn.Module) -> torch.device:
    """The device to which hooks of accelerate bring weights that are on the meta device.

    Raises AttachError if there are no such hooks: the weights were never loaded.
    """
    for module in denoiser.modules():
        for hook in _hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    raise _not_loaded(denoiser)


class StoredWeights:
    """Reads weights of a base, also while they are offloaded.

    Hooks of accelerate (sequential offload) keep them in a map, group offload to the disk in files.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._owners = {
            id(weight): (module, name)
            for module in base.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        }
        groups = (_group(module) for module in base.modules())
        self._groups = [
            group
            for group in groups
            if group is not None and Path(getattr(group, "safetensors_file_path", "")).is_file()
        ]

    def read(self, weight: Tensor) -> Tensor:
        """The content of a weight. Raises AttachError where it cannot be had."""
        for group in self._groups:
            if weight in group.tensor_to_key:
                from safetensors import safe_open

                with safe_open(group.safetensors_file_path, framework="pt") as file:
                    stored: Tensor = file.get_tensor(group.tensor_to_key[weight])
                    return stored
        if weight.device.type != "meta":
            return weight
        module, name = self._owners.get(id(weight), (self._base, ""))
        for hook in _hooks(module):
            weights = getattr(hook, "weights_map", None)
            if weights is not None and weights[name].device.type != "meta":
                found: Tensor = weights[name]
                return found
        raise _not_loaded(self._base)


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate on a module, those inside a chain one by one."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else [*getattr(hook, "hooks", ()), hook]


def _group(module: nn.Module) -> Any:
    """The offload group of diffusers that a module is in; None if it is in none."""
    registry: Any = module.__dict__.get("_diffusers_hook")
    hook = None if registry is None else registry.hooks.get("group_offloading")
    return getattr(hook, "group", None)


def _not_loaded(denoiser: nn.Module) -> AttachError:
    return AttachError(
        f"a {type(denoiser).__name__} on the meta device",
        reason="its weights are not loaded, and no offloading hook knows where they are",
        hint="Load the weights first (from_pretrained, or load_state_dict(assign=True)).",
    )
