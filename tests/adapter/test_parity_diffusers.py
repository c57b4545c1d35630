"""Parity: same weights, same inputs, diffusers' own IP-Adapter output to 1e-5 in float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import imageprompt as ip
from bases import SD15, random_unet
from hosts_table import ADAPTERS, CASES, adapter_state
from peer import (
    diffusers_embeds,
    diffusers_load,
    diffusers_unload,
    published_adapter,
    published_features,
    site_ids,
)
from rigs import bare_pipeline, build, difference, write_adapter

TOLERANCE = 1e-5
MATTERS = 1e-2  # a parity test means something only where the adapter changes the output


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("host", CASES)
def test_one_reference_with_guidance(host: str, kind: str, tmp_path: Path) -> None:
    """Batch [negative, positive], as every guided pipeline calls its denoiser."""
    rig = build(host, kind, tmp_path)
    inputs = rig.host.inputs(2)
    expected = rig.theirs(inputs, rig.features(1), scale=0.7)
    found = rig.ours(inputs, rig.prompt(1), scale=0.7)
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, rig.host.read(rig.unet, inputs)) > MATTERS


@pytest.mark.sample(2)
@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 2.0])
def test_every_scale(scale: float, tmp_path: Path) -> None:
    rig = build("sd15", "plus", tmp_path)
    inputs = rig.host.inputs(2)
    expected = rig.theirs(inputs, rig.features(1), scale=scale)
    assert difference(rig.ours(inputs, rig.prompt(1), scale=scale), expected) <= TOLERANCE


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("host", ["sd15", "sdxl", "motion"])
def test_several_references_in_one_prompt(host: str, kind: str, tmp_path: Path) -> None:
    """Three pictures, tokens side by side in one softmax."""
    rig = build(host, kind, tmp_path)
    inputs = rig.host.inputs(2)
    expected = rig.theirs(inputs, rig.features(3))
    found = rig.ours(inputs, rig.prompt(3))
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, rig.ours(inputs, rig.prompt(1))) > MATTERS


@pytest.mark.parametrize("host", ["sd2", "sdxl", "motion"])
def test_without_guidance(host: str, tmp_path: Path) -> None:
    """A batch of the prompts' size is positive."""
    rig = build(host, "base", tmp_path)
    inputs = rig.host.inputs(3)
    features = rig.features(1, 1, 1)
    expected = rig.theirs(inputs, features, guidance=False)
    assert difference(rig.ours(inputs, rig.prompt(1, 1, 1)), expected) <= TOLERANCE


@pytest.mark.parametrize("host", ["sd15", "kolors", "motion"])
def test_one_reference_for_each_prompt(host: str, tmp_path: Path) -> None:
    """Two prompts with two references each and guidance: [n0, n1, p0, p1]."""
    rig = build(host, "plus", tmp_path)
    inputs = rig.host.inputs(4)
    expected = rig.theirs(inputs, rig.features(2, 2))
    assert difference(rig.ours(inputs, rig.prompt(2, 2)), expected) <= TOLERANCE


def test_text_attention_mask(tmp_path: Path) -> None:
    """A mask over the text does not apply to the image tokens."""
    rig = build("sd2", "base", tmp_path)
    inputs = rig.host.inputs(2)
    unmasked = rig.ours(inputs, rig.prompt(1))
    mask = torch.ones(2, 7)
    mask[0, 3:] = 0
    inputs["encoder_attention_mask"] = mask
    expected = rig.theirs(inputs, rig.features(1))
    found = rig.ours(inputs, rig.prompt(1))
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, unmasked) > MATTERS


def test_two_adapters_at_once(tmp_path: Path) -> None:
    """base and Plus together, each with its own scale."""
    base = build("sdxl", "base", tmp_path, seed=3)
    plus = build("sdxl", "plus", tmp_path, seed=13)
    inputs = base.host.inputs(2)
    theirs = diffusers_load(copy.deepcopy(base.unet), base.state, plus.state)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [0.5, 0.8]
    embeds = [diffusers_embeds(rig.features(1), rig.kind.null_features()) for rig in (base, plus)]
    added = {**inputs["added_cond_kwargs"], "image_embeds": embeds}
    expected = base.host.read(theirs, {**inputs, "added_cond_kwargs": added})

    base.adapter.attach(base.unet)
    plus.adapter.attach(base.unet)
    with (
        base.adapter.use(base.prompt(1), scale=0.5),
        plus.adapter.use(plus.prompt(1), scale=0.8),
    ):
        found = base.host.read(base.unet, inputs)
    assert difference(found, expected) <= TOLERANCE


def test_scale_by_site(tmp_path: Path) -> None:
    """A mapping of scales reaches the sites it names."""
    rig = build("sdxl", "base", tmp_path)
    inputs = rig.host.inputs(2)
    wanted = {"down_blocks": 0.2, "mid_block": 0.0, "up_blocks": 0.9, "up_blocks.1": 1.5}
    theirs = diffusers_load(copy.deepcopy(rig.unet), rig.state)
    for name, _ in site_ids(rig.unet).values():
        prefix = max((k for k in wanted if name.startswith(k + ".")), key=len)
        theirs.attn_processors[name].scale = [wanted[prefix]]
    embeds = diffusers_embeds(rig.features(1), rig.kind.null_features())
    added = {**inputs["added_cond_kwargs"], "image_embeds": [embeds]}
    expected = rig.host.read(theirs, {**inputs, "added_cond_kwargs": added})
    assert difference(rig.ours(inputs, rig.prompt(1), scale=wanted), expected) <= TOLERANCE


# ── through a whole pipeline ─────────────────────────────────────────────────────────────────────


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("prompts", "pictures", "guidance"), [(1, 1, 4.0), (1, 3, 4.0), (2, 2, 4.0), (1, 1, 1.0)]
)
def test_the_pipeline_of_diffusers(
    prompts: int, pictures: int, guidance: float, tmp_path: Path
) -> None:
    """Latents after four steps; each prompt keeps its reference, several pictures of each."""
    rig = build("sd15", "base", tmp_path)
    texts = rig.host.inputs(2 * prompts)["encoder_hidden_states"]
    gen = torch.Generator().manual_seed(8)
    call: dict[str, Any] = {
        "prompt_embeds": texts[:prompts],
        "negative_prompt_embeds": texts[prompts:],
        "latents": torch.randn(prompts * pictures, 4, 8, 8, generator=gen),
        "num_images_per_prompt": pictures,
        "guidance_scale": guidance,
        "num_inference_steps": 4,
        "output_type": "latent",
    }
    features = rig.features(*[1] * prompts)
    theirs = bare_pipeline(diffusers_load(copy.deepcopy(rig.unet), rig.state, scale=0.8))
    null = rig.kind.null_features() if guidance > 1 else None
    # the pipeline repeats embeddings picture by picture, which mixes up several prompts;
    # the reference is therefore one run of the pipeline for each prompt
    expected = torch.cat(
        [
            theirs(
                **{
                    **call,
                    "prompt_embeds": texts[i : i + 1],
                    "negative_prompt_embeds": texts[prompts + i : prompts + i + 1],
                    "latents": call["latents"][i * pictures : (i + 1) * pictures],
                },
                ip_adapter_image_embeds=[diffusers_embeds([features[i]], null)],
            ).images
            for i in range(prompts)
        ]
    )
    pipe = bare_pipeline(rig.unet)
    rig.adapter.attach(pipe)
    with rig.adapter.use(rig.prompt(*[1] * prompts), scale=0.8):
        found = pipe(**call).images
    size = expected.abs().max().item()  # random weights blow the latents up to about 30
    assert difference(found, expected) <= TOLERANCE * size
    rig.adapter.detach()
    assert difference(found, pipe(**call).images) > MATTERS


# ── once at full size ────────────────────────────────────────────────────────────────────────────


PART = replace(
    SD15,
    config={
        **SD15.config,
        "block_out_channels": (320, 640),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
    },
)
"""Its first two levels: a tenth of the weights."""


def test_full_size_sd15(tmp_path: Path, whole: bool) -> None:
    """The published SD1.5 config, or a part; published base and Plus shapes, 8x8 latents."""
    unet = random_unet(SD15 if whole else PART, torch.float32)
    inputs = SD15.inputs(2, latent=8, dtype=torch.float32)
    before = unet.attn_processors
    with torch.no_grad():
        plain = unet(**inputs).sample
    for variant in ("base", "plus") if whole else ("plus",):
        state = published_adapter(unet, variant, 768, dtype=torch.float32)
        features = published_features(variant, torch.float32)
        null = torch.zeros_like(features)
        adapter = ip.Adapter.load(write_adapter(state, tmp_path / f"{variant}.safetensors"))
        adapter.attach(unet)
        prompt = adapter.encode(features=features, null_features=null)
        with torch.no_grad(), adapter.use(prompt, scale=1.0):
            found = unet(**inputs).sample
        adapter.detach()
        assert unet.attn_processors == before

        diffusers_load(unet, state)
        embeds = [diffusers_embeds([features], null)]
        with torch.no_grad():
            expected = unet(**inputs, added_cond_kwargs={"image_embeds": embeds}).sample
        diffusers_unload(unet, before)
        assert difference(found, expected) <= TOLERANCE
        assert difference(found, plain) > MATTERS


def test_the_rig_itself() -> None:
    """The sites counted by hand in the table are those found."""
    for case in CASES.values():
        unet = case.unet()
        assert len(site_ids(unet)) == case.sites, case.name
        state = adapter_state(unet, ADAPTERS["base"], case.cross_dim)
        assert len(state["ip_adapter"]) == 2 * case.sites
