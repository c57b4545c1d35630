"""Where a pipeline computes: what diffusers says, found without its search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks.group_offloading import _get_top_level_group_offload_hook

from hosts_table import CASES
from imageprompt.loading.pipeline import device_of
from rigs import bare_pipeline

CPU, META = torch.device("cpu"), torch.device("meta")


def nothing(pipe: Any) -> None:
    pass


def elsewhere(pipe: Any) -> None:
    for part in (pipe.vae, pipe.unet):
        part.to(META)


def model(pipe: Any) -> None:
    for part in (pipe.vae, pipe.unet):
        cpu_offload_with_hook(part, META)


def sequential(pipe: Any) -> None:
    for part in (pipe.vae, pipe.unet):
        cpu_offload(part, META)


def group(pipe: Any) -> None:
    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    _get_top_level_group_offload_hook(pipe.unet).config.onload_device = META


def hook_removed(pipe: Any) -> None:
    model(pipe)
    for part in (pipe.vae, pipe.unet):
        remove_hook_from_module(part, recurse=True)


EXPECTED: dict[Callable[[Any], None], torch.device] = {
    nothing: CPU,
    elsewhere: META,
    model: META,
    sequential: META,
    group: META,
    hook_removed: CPU,
}


@pytest.mark.parametrize("move", EXPECTED)
def test_device_of_is_that_of_diffusers(move: Callable[[Any], None]) -> None:
    pipe = bare_pipeline(CASES["sd15"].unet())
    move(pipe)
    assert device_of(pipe) == EXPECTED[move] == pipe._execution_device


def test_a_part_on_another_device_says_where() -> None:
    """diffusers prefers what is not on the CPU; here it is a device that only has a name."""
    pipe = bare_pipeline(CASES["sd15"].unet())

    class There(torch.nn.Module):
        device, dtype = torch.device("xla"), torch.float32

        def parameters(self, recurse: bool = True) -> Any:
            return iter([self])

    pipe.register_modules(unet=There())
    assert device_of(pipe) == There.device == pipe.device


def test_without_hooks_diffusers_is_not_asked() -> None:
    """Its search takes longer than a small denoiser's call."""
    pipe = bare_pipeline(CASES["sd15"].unet())

    class Asked(type(pipe)):  # type: ignore[misc]
        @property
        def _execution_device(self) -> torch.device:
            raise AssertionError("asked")

        device = _execution_device

    pipe.__class__ = Asked
    assert device_of(pipe) == CPU


def test_an_object_that_is_no_pipeline_of_diffusers() -> None:
    class Plain:
        components: dict[str, Any] = {}  # noqa: RUF012
        device = META

    assert device_of(Plain()) == META
