"""Copies and pickles of an attached pipeline, denoiser or adapter work and are not attached."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_faceid import features, inputs, make, read

from imageprompt.core.errors import AttachError
from rigs import difference


def _saved(thing: Any) -> Any:
    stream = io.BytesIO()
    torch.save(thing, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": _saved,
}
MODES = ("live", "merged")


def attached(lora: str) -> tuple[Any, Any, Any]:
    pipe, adapter = make("sd15", "faceid")
    adapter.module.requires_grad_(False)
    adapter.attach(pipe, lora=lora)
    return pipe, adapter, adapter.encode(features=features("faceid"))


def hooks(unet: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def used(adapter: Any, unet: Any, prompt: Any) -> torch.Tensor:
    with adapter.use(prompt):
        return read(unet, inputs("sd15"))


@pytest.mark.sample(2)
@pytest.mark.parametrize("lora", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_denoiser_is_not_attached(way: str, lora: str) -> None:
    pipe, adapter, prompt = attached(lora)
    plain, with_picture = read(pipe.unet, inputs("sd15")), used(adapter, pipe.unet, prompt)
    made = WAYS[way](pipe.unet)
    with adapter.use(prompt):  # the original goes on, and the copy does not hear it
        assert torch.equal(read(made, inputs("sd15")), plain)
        assert torch.equal(read(pipe.unet, inputs("sd15")), with_picture)
    assert hooks(made) == 0  # they went at the first call
    assert not any("imageprompt" in type(p).__module__ for p in made.attn_processors.values())
    theirs = {tensor.data_ptr() for tensor in pipe.unet.state_dict().values()}
    assert theirs.isdisjoint(tensor.data_ptr() for tensor in made.state_dict().values())
    with pytest.raises(AttachError, match="already attached"):
        adapter.attach(made)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_an_adapter_attaches_to_a_copy_of_the_denoiser(way: str) -> None:
    pipe, adapter, prompt = attached("live")
    before = used(adapter, pipe.unet, prompt)
    other, unet = WAYS[way]((adapter, pipe.unet))
    assert not other.attached
    assert adapter.attached
    other.attach(unet)
    assert hooks(unet) == hooks(pipe.unet)  # none is left of those that were copied
    assert torch.equal(used(other, unet, prompt), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(used(adapter, pipe.unet, prompt), before)
    other.detach()
    assert hooks(unet) == 0


def test_a_copy_of_an_adapter_keeps_its_encoder() -> None:
    pipe, adapter = make("sd15", "faceid-plus")
    adapter.attach(pipe, encoder=pipe.image_encoder)
    made = copy.deepcopy(adapter)
    assert made.encoder is not adapter.encoder
    assert made.encoder.fingerprint == adapter.encoder.fingerprint
    assert pickle.loads(pickle.dumps(adapter)).encoder.fingerprint == adapter.encoder.fingerprint


def test_a_copy_of_a_pipeline_is_not_attached() -> None:
    pipe, adapter, prompt = attached("merged")
    plain = read(pipe.unet, inputs("sd15"))
    made = copy.deepcopy(pipe)
    with adapter.use(prompt):
        assert torch.equal(read(made.unet, inputs("sd15")), plain)
        assert difference(read(pipe.unet, inputs("sd15")), plain) > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_no_copy_while_a_lora_is_merged(way: str) -> None:
    pipe, adapter, prompt = attached("merged")
    with adapter.use(prompt) as handle:
        with pytest.raises(AttachError, match=r"merged.*outside use\(\)"):
            WAYS[way](pipe.unet)
        read(pipe.unet, inputs("sd15"))
        handle.scale = 0.0
        read(pipe.unet, inputs("sd15"))
        WAYS[way](pipe.unet)  # the weights are the base's own
    WAYS[way](pipe.unet)


def test_a_class_of_processors_without_arguments_is_diffusers_own() -> None:
    """`unload_ip_adapter()` makes processors of the classes that it finds."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    pipe, adapter, prompt = attached("live")
    plain = read(pipe.unet, inputs("sd15"))
    pipe.unload_ip_adapter()
    assert all(type(p) is AttnProcessor2_0 for p in pipe.unet.attn_processors.values())
    with pytest.raises(AttachError, match=r"detach\(\) and attach\(\)"), adapter.use(prompt):
        pass
    assert torch.equal(read(pipe.unet, inputs("sd15")), plain)
    adapter.attach(pipe)
    assert difference(used(adapter, pipe.unet, prompt), plain) > 1e-4
    adapter.detach()
    assert hooks(pipe.unet) == 0


def test_load_ip_adapter_of_diffusers_on_top_and_below() -> None:
    pipe, adapter, prompt = attached("live")
    parts = ("image_proj", "ip_adapter")
    state = {part: dict(getattr(adapter.module, part).state_dict()) for part in parts}
    pipe.load_ip_adapter(state, subfolder="", weight_name="")
    with pytest.raises(AttachError, match="replaced"), adapter.use(prompt):
        pass
    adapter.detach()
    with pytest.raises(AttachError, match=r"unload_ip_adapter\(\)"):
        adapter.attach(pipe)
    pipe.unload_ip_adapter()
    adapter.attach(pipe)
    adapter.detach()


def test_a_dropped_denoiser_is_freed_though_nobody_detached() -> None:
    """What an adapter leaves at a denoiser keeps neither it nor its pipeline alive."""
    pipe, adapter, prompt = attached("live")
    used(adapter, pipe.unet, prompt)
    dropped = weakref.ref(pipe.unet)
    del pipe, adapter, prompt
    gc.collect()
    assert dropped() is None
