"""Precomputed K', V' are saved with a prompt and used only with the weights that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imageprompt as ip
from hosts_table import CASES
from imageprompt.adapter.attachment import AttachedDenoiser
from rigs import Rig, build, difference


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return build("sd15", "plus", tmp_path)


def saved(rig: Rig, path: Path) -> Any:
    """A prompt with precomputed K', V', saved and loaded again."""
    rig.adapter.attach(rig.unet)
    rig.adapter.precompute_kv(rig.prompt(1)).save(path)
    rig.adapter.detach()
    return ip.ImagePrompt.load(path)


def projections_in(rig: Rig, inputs: Any, prompt: Any) -> int:
    """How often a K' or V' was computed while the prompt was used."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    layers = [m for m in rig.adapter.module.ip_adapter.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    rig.ours(inputs, prompt, guidance="none")
    for hook in hooks:
        hook.remove()
    return calls


def test_a_precomputed_prompt_is_a_look_up(rig: Rig, tmp_path: Path) -> None:
    prompt = saved(rig, tmp_path / "prompt.safetensors")
    sites = len(rig.adapter.module.ip_adapter)
    assert prompt.precomputed_kv is not None
    assert len(prompt.precomputed_kv.key_values) == sites
    inputs = rig.host.inputs(1)
    plain = rig.prompt(1)
    assert torch.equal(
        rig.ours(inputs, prompt, guidance="none"), rig.ours(inputs, plain, guidance="none")
    )
    again = ip.ImagePrompt.load(tmp_path / "prompt.safetensors")
    # only K', V' of the null tokens, which belong to the adapter, are left to compute
    assert projections_in(rig, inputs, rig.prompt(1)) == 4 * sites
    assert projections_in(rig, inputs, again) == 2 * sites


def test_other_weights_compute_their_own(rig: Rig, tmp_path: Path) -> None:
    prompt = saved(rig, tmp_path / "prompt.safetensors")
    inputs = rig.host.inputs(1)
    before = rig.ours(inputs, prompt, guidance="none")
    with torch.no_grad():
        for weight in rig.adapter.module.ip_adapter.parameters():
            weight.mul_(1.5)
    changed = rig.ours(inputs, prompt, guidance="none")
    assert difference(before, changed) > 1e-3
    assert torch.equal(changed, rig.ours(inputs, rig.prompt(1), guidance="none"))


def test_changed_tokens_are_noticed(rig: Rig, tmp_path: Path) -> None:
    prompt = saved(rig, tmp_path / "prompt.safetensors")
    other = rig.prompt(1, seed=6)
    prompt.tokens.copy_(other.tokens)
    inputs = rig.host.inputs(1)
    expected = rig.ours(inputs, other, guidance="none")
    assert torch.equal(rig.ours(inputs, prompt, guidance="none"), expected)
    prompt.save(tmp_path / "stale.safetensors")
    assert ip.ImagePrompt.load(tmp_path / "stale.safetensors").precomputed_kv is None


def kept_in_float32(unet: Any) -> None:
    unet._keep_in_fp32_modules = ["conv_in"]
    unet.to(torch.bfloat16)
    unet.conv_in.float()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda unet: None, torch.float32),
        (lambda unet: unet.to(torch.float16), torch.float16),
        (kept_in_float32, torch.bfloat16),
        (
            lambda unet: unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16),
            torch.bfloat16,
        ),
        (lambda unet: unet.enable_layerwise_casting(torch.float32, torch.float16), torch.float16),
    ],
)
def test_precision_is_that_of_diffusers(change: Any, expected: torch.dtype) -> None:
    unet = CASES["sd15"].unet()
    denoiser = AttachedDenoiser.of(unet)
    change(unet)
    assert denoiser.dtype == unet.dtype == expected


def test_precomputing_needs_a_base(rig: Rig) -> None:
    with pytest.raises(ip.ImagePromptError, match=r"not attached.*attach\(pipe\)"):
        rig.adapter.precompute_kv(rig.prompt(1))


def test_a_file_with_half_a_pair_is_refused(rig: Rig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(rig, tmp_path / "prompt.safetensors")
    tensors = load_file(tmp_path / "prompt.safetensors")
    del tensors[next(name for name in tensors if name.startswith("v."))]
    save_file(tensors, tmp_path / "half.safetensors", {"kind": "image-prompt"})
    with pytest.raises(ip.ImagePromptError, match="not a saved image prompt"):
        ip.ImagePrompt.load(tmp_path / "half.safetensors")
