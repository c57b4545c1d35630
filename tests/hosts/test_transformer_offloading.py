"""Whole-model and group offloading, and other people's LoRA, on transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_transformers import Rig

from transformers_table import CASES

CPU = torch.device("cpu")


def model(denoiser: Any) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(denoiser, CPU)


def group_by_leaf(denoiser: Any) -> None:
    denoiser.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def group_by_block(denoiser: Any) -> None:
    denoiser.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )


OFFLOADS: dict[str, Callable[[Any], None]] = {
    each.__name__: each for each in (model, group_by_leaf, group_by_block)
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("host", ["flux", "sd3", "pixart"])
def test_offloading_before_and_after_attach(host: str, offload: str) -> None:
    rig = Rig(CASES[host])
    prompt = rig.prompt(1)
    whole = rig.run(prompt)
    OFFLOADS[offload](rig.model)
    assert torch.equal(rig.run(prompt), whole)
    rig.adapter.detach()
    rig.adapter.attach(rig.model)
    assert torch.equal(rig.run(prompt), whole)
    assert torch.equal(rig.run(prompt, scale=0.0), rig.plain)
    rig.adapter.detach()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)


def _load_lora(denoiser: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(4)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    denoiser.add_adapter(config)


@pytest.mark.parametrize("host", ["flux", "sana", "z-image"])
def test_lora_on_the_base_loaded_before_and_after(host: str) -> None:
    """The same either way; scale 0 is the base with LoRA, which may go again."""
    rig = Rig(CASES[host])
    prompt = rig.prompt(1)
    alone = rig.run(prompt)
    _load_lora(rig.model)
    after = rig.run(prompt)
    rig.adapter.detach()
    base = rig.case.read(rig.model, rig.inputs())
    assert not torch.equal(base, rig.plain)
    rig.adapter.attach(rig.model)
    assert torch.equal(rig.run(prompt), after)
    assert torch.equal(rig.run(prompt, scale=0.0), base)
    assert not torch.equal(after, alone)
    rig.model.unload_lora()
    assert torch.equal(rig.run(prompt), alone)
    rig.adapter.detach()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
