"""Kolors, whose UNet projects its text: Plus in its pipeline, and FaceID-Plus by its equation."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imageprompt as ip
import pipelines_parts
from hosts_table import ADAPTERS, CASES, adapter_state
from peer import StateDict, diffusers_embeds, diffusers_load, random_tensor, site_ids
from pipelines_table import _embeds
from rigs import build, write_adapter

CASE = CASES["kolors"]
TEXT, WIDTH = 56, 40
"""Width of the text's states, and what the UNet projects them to."""
FACE, PATCHES, FEATURES, TOKENS = 512, 5, 24, 6


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def faceid(unet: Any) -> StateDict:
    """Shaped as the published file; heads of 64, so one head."""
    gen = torch.Generator().manual_seed(4)

    def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> dict[str, Tensor]:
        found = {f"{name}.weight": random_tensor(gen, rows, columns)}
        return found | ({f"{name}.bias": random_tensor(gen, rows)} if bias else {})

    def norm(name: str) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 1 + random_tensor(gen, TEXT),
            f"{name}.bias": random_tensor(gen, TEXT),
        }

    projector = linear("proj.0", 2 * FACE, FACE) | linear("proj.2", TOKENS * TEXT, 2 * FACE)
    projector |= norm("norm")
    perceiver = "perceiver_resampler"
    projector |= linear(f"{perceiver}.proj_in", TEXT, FEATURES)
    projector |= linear(f"{perceiver}.proj_out", TEXT, TEXT) | norm(f"{perceiver}.norm_out")
    for i in range(2):
        attention, mlp = f"{perceiver}.layers.{i}.0", f"{perceiver}.layers.{i}.1"
        projector |= norm(f"{attention}.norm1") | norm(f"{attention}.norm2") | norm(f"{mlp}.0")
        projector |= linear(f"{attention}.to_q", 64, TEXT, bias=False)
        projector |= linear(f"{attention}.to_kv", 128, TEXT, bias=False)
        projector |= linear(f"{attention}.to_out", TEXT, 64, bias=False)
        projector |= linear(f"{mlp}.1", 4 * TEXT, TEXT, bias=False)
        projector |= linear(f"{mlp}.3", TEXT, 4 * TEXT, bias=False)
    sites = {
        f"{site}.to_{kind}_ip.weight": 2 * random_tensor(gen, hidden, WIDTH)
        for site, (_, hidden) in site_ids(unet).items()
        for kind in "kv"
    }
    return {"image_proj": projector, "ip_adapter": sites}


def tokens_of(state: StateDict, face: Tensor, patches: Tensor) -> Tensor:
    """The projector of the published code, by hand: identity + perceiver(identity, patches)."""
    weights = state["image_proj"]

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(
            x, (TEXT,), weights[f"{name}.weight"], weights[f"{name}.bias"]
        )

    gelu = torch.nn.functional.gelu
    identity = linear("proj.2", gelu(linear("proj.0", face))).view(-1, TOKENS, TEXT)
    latents = identity = norm("norm", identity)
    perceiver = "perceiver_resampler"
    x = linear(f"{perceiver}.proj_in", patches)
    for i in range(2):
        attention, mlp = f"{perceiver}.layers.{i}.0", f"{perceiver}.layers.{i}.1"
        queries, keys = norm(f"{attention}.norm2", latents), norm(f"{attention}.norm1", x)
        k, v = linear(f"{attention}.to_kv", torch.cat((keys, queries), 1)).chunk(2, -1)
        scores = linear(f"{attention}.to_q", queries) @ k.transpose(1, 2) / math.sqrt(64)
        latents = latents + linear(f"{attention}.to_out", scores.softmax(-1) @ v)
        inner = gelu(linear(f"{mlp}.1", norm(f"{mlp}.0", latents)))
        latents = latents + linear(f"{mlp}.3", inner)
    return identity + norm(f"{perceiver}.norm_out", linear(f"{perceiver}.proj_out", latents))


class _Attention:
    """The published processor: the last tokens of what the UNet has projected are the face's."""

    def __init__(self, key: Tensor, value: Tensor, scale: float) -> None:
        self.key, self.value, self.scale = key, value, scale

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        text, face = encoder_hidden_states.split(
            (encoder_hidden_states.shape[1] - TOKENS, TOKENS), dim=1
        )

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def attend(k: Tensor, v: Tensor) -> Tensor:
            scores = heads(attn.to_q(x)) @ heads(k).transpose(-1, -2) * attn.scale
            return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)

        found = attend(attn.to_k(text), attn.to_v(text))
        found = found + self.scale * attend(face @ self.key.T, face @ self.value.T)
        return attn.to_out[1](attn.to_out[0](found)) / attn.rescale_output_factor


def theirs(unet: Any, state: StateDict, tokens: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The published pipeline: tokens behind the text, on both sides of guidance."""
    model = copy.deepcopy(unet)
    processors = dict(model.attn_processors)
    for site, (name, _) in site_ids(model).items():
        weights = (state["ip_adapter"][f"{site}.to_{kind}_ip.weight"] for kind in "kv")
        processors[name] = _Attention(*weights, scale=0.7)
    model.set_attn_processor(processors)
    text = torch.cat((inputs["encoder_hidden_states"], tokens), dim=1)
    return CASE.read(model, {**inputs, "encoder_hidden_states": text})


@pytest.mark.parametrize("nested", ["ip_adapter", "adapter_modules"])
def test_faceid_plus_is_projected_like_the_text(nested: str, tmp_path: Path) -> None:
    """Raw embeddings; zeros stand for no face; the base's own projection comes before K' and V'."""
    rig = build("kolors", "base", tmp_path)
    unet, state = rig.unet, faceid(rig.unet)
    torch.save({"image_proj": state["image_proj"], nested: state["ip_adapter"]}, tmp_path / "f.bin")
    adapter = ip.Adapter.load(tmp_path / "f.bin")
    assert adapter.spec.variant == "faceid-plus-kolors"
    assert adapter.spec.tokens == TOKENS
    face, patches = noise(1, FACE, seed=1) * 9, noise(1, PATCHES, FEATURES, seed=2)
    zeros = (torch.zeros_like(face), torch.zeros_like(patches))
    inputs = CASE.inputs(2)
    tokens = torch.cat((tokens_of(state, *zeros), tokens_of(state, face, patches)))
    expected = theirs(unet, state, tokens, inputs)
    plain = CASE.read(unet, inputs)
    adapter.attach(unet)
    prompt = adapter.encode(features=(face, patches), null_features=zeros)
    with adapter.use(prompt, scale=0.7, guidance="negative-positive"):
        found = CASE.read(unet, inputs)
    assert (found - expected).abs().max() < 1e-5
    assert (expected - plain).abs().max() > 0.01
    with adapter.use(prompt, scale=0, guidance="negative-positive"):
        assert torch.equal(CASE.read(unet, inputs), plain)
    adapter.detach()
    with pytest.raises(ip.ImagePromptError, match="does not project its text"):
        adapter.attach(build("sdxl", "base", tmp_path).unet)


def test_plus_in_the_pipeline_equals_diffusers(tmp_path: Path) -> None:
    """From its file to a picture, with guidance and two references."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, inside diffusers
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    pipe = pipelines_parts.make(KolorsPipeline, "kolors", {}, own_unet=True)
    call = {**_embeds(32, pooled=32), "num_inference_steps": 2, "output_type": "latent"}
    call |= {"height": 32, "width": 32}

    def run(**more: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        made: Tensor = pipe(**call, **more, generator=generator).images
        return made

    kind = ADAPTERS["plus"]
    state = adapter_state(pipe.unet, kind, 64)
    plain = run()
    adapter = ip.Adapter.load(write_adapter(state, tmp_path / "plus.safetensors"))
    adapter.attach(pipe)
    features, null = kind.features(2, seed=5), kind.null_features()
    with adapter.use(adapter.encode(features=features, null_features=null), scale=0.7):
        found = run()
    adapter.detach()
    assert torch.equal(run(), plain)
    diffusers_load(pipe.unet, state, scale=0.7)
    embeds = diffusers_embeds([features], null)
    expected = run(ip_adapter_image_embeds=[embeds])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (expected - plain).abs().max() > 0.01
