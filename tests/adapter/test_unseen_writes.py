"""Writes through `.data`, which no version counts, are noticed at the next use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_faceid import inputs, read

import imageprompt as ip
from imageprompt.core.errors import PromptError
from imageprompt.core.fingerprint import ContentWatch
from rigs import difference
from tiny_stack import make_pipeline


def made() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.unet.requires_grad_(False)
    adapter = ip.Adapter.create("base", denoiser=pipe, encoder=pipe.image_encoder)
    adapter.module.requires_grad_(False)
    adapter.attach(pipe)
    return pipe, adapter, adapter.encode(features=torch.randn(1, 24))


def used(adapter: Any, pipe: Any, prompt: Any) -> torch.Tensor:
    with adapter.use(prompt):
        return read(pipe.unet, inputs("sd15"))


def test_the_average_of_weights_of_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    pipe, adapter, prompt = made()
    weights = list(adapter.module.ip_adapter.parameters())
    ema = EMAModel(weights, decay=0.5)
    first = used(adapter, pipe, prompt)
    for weight in weights:
        weight.data.mul_(-2)
    plain = used(adapter, pipe, prompt)
    assert difference(plain, first) > 1e-4
    ema.store(weights)
    ema.copy_to(weights)
    assert torch.equal(used(adapter, pipe, prompt), first)
    ema.restore(weights)
    assert torch.equal(used(adapter, pipe, prompt), plain)


def test_the_base_and_the_tokens() -> None:
    pipe, adapter, prompt = made()
    adapter.precompute_kv(prompt)
    first = used(adapter, pipe, prompt)
    prompt.tokens.data[0, 1, 3] += 1  # one number
    changed = used(adapter, pipe, prompt)
    assert difference(changed, first) > 1e-6
    prompt.tokens.data[0, 1, 3] -= 1
    layer = pipe.unet.get_submodule(adapter._attachment.denoiser.spec.sites[0].name)
    before = layer.to_v.weight.data.clone()
    layer.to_v.weight.data.mul_(2)
    assert difference(used(adapter, pipe, prompt), first) > 1e-5
    layer.to_v.weight.data.copy_(before)


def test_the_projector() -> None:
    _, adapter, prompt = made()
    for weight in adapter.module.image_proj.parameters():
        weight.data.add_(0.5)
    with pytest.raises(PromptError, match="another projector"), adapter.use(prompt):
        pass


def test_what_the_watch_notices() -> None:
    tensors = [torch.zeros(40, 50), torch.zeros(7), torch.zeros(3, 3).half(), torch.zeros(64).t()]
    watch = ContentWatch()
    state = watch.state(tensors)
    assert watch.state(tensors) == state
    for tensor in tensors:
        tensor.data.add_(1)
        assert watch.state(tensors) != state
        state = watch.state(tensors)
    tensors[1].data[3] = float("nan")  # all of a small one
    assert watch.state(tensors) != state
    state = watch.state(tensors)
    assert watch.state(tensors) == state  # equal NaNs are equal
    tensors[0].data = tensors[0].clone()
    assert watch.state(tensors) != state


def test_key_values_of_autocast_stay_there() -> None:
    pipe, adapter, prompt = made()
    first = used(adapter, pipe, prompt)
    with torch.autocast("cpu", torch.bfloat16):
        inside = adapter._attachment.kv_cache.key_values(prompt)
        name = adapter.made_by()
    outside = adapter._attachment.kv_cache.key_values(prompt)
    assert difference(inside[0][0].float(), outside[0][0]) > 0
    assert name != adapter.made_by()
    assert torch.equal(used(adapter, pipe, prompt), first)
    with torch.autocast("cpu", torch.bfloat16):
        again = adapter._attachment.kv_cache.key_values(prompt)
    assert torch.equal(again[0][0], inside[0][0])
