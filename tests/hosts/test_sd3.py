"""SD3.5: InstantX's adapter against diffusers' own, whose tokens depend on the timestep."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from ops import count
from transformers_table import CASES

CASE = CASES["sd3"]
FEATURES, PATCHES = 24, 9
_PUBLISHED = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_kv": "0.to_kv",
    "attn.to_out.0": "0.to_out",
    "adaln_norm": "1.0",
    "ff.net.0.proj": "1.1",
    "ff.net.2": "1.3",
    "adaln_proj": "2.1",
}
"""diffusers' names in a layer of the projector -> those in files."""


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, dict[str, Tensor]]:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    torch.manual_seed(5)
    projector = IPAdapterTimeImageProjection(
        embed_dim=FEATURES,
        output_dim=32,
        hidden_dim=128,
        heads=2,
        num_queries=6,
        timestep_in_dim=20,
    )
    renamed = {}
    for name, weight in projector.state_dict().items():
        for theirs, published in _PUBLISHED.items():
            name = re.sub(rf"^(layers\.\d+\.){re.escape(theirs)}\.", rf"\g<1>{published}.", name)
        renamed[name] = weight + torch.randn_like(weight) * 0.05
    sites = {}
    for number in (0, 2, 3):  # the second attention of block 0 takes number 1
        processor = SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=32, ip_hidden_states_dim=32, head_dim=16, timesteps_emb_dim=128
        )
        for name, weight in processor.state_dict().items():
            sites[f"{number}.{name}"] = weight + torch.randn_like(weight) * 0.2
    return {"image_proj": renamed, "ip_adapter": sites}


@pytest.fixture
def parts() -> dict[str, dict[str, Tensor]]:
    return weights()


def peer_with(parts: dict[str, dict[str, Tensor]]) -> Any:
    """diffusers' model with the adapter. Its loader also wants the second attention of block 0,
    which no published file has: that one gets the plain processor back."""
    peer = CASE.build()
    whole = copy.deepcopy(parts)
    for name, weight in parts["ip_adapter"].items():
        if name.startswith("0."):
            whole["ip_adapter"][f"1.{name[2:]}"] = weight
    peer._load_ip_adapter_weights(whole)
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    peer.transformer_blocks[0].attn2.set_processor(JointAttnProcessor2_0())
    for block in peer.transformer_blocks:
        block.attn.processor.scale = 0.5
    return peer.eval()


def call(peer: Any, features: Tensor, inputs: Any) -> Tensor:
    kwargs = {"ip_adapter_image_embeds": features}
    with torch.no_grad():
        output: Tensor = peer(**inputs, joint_attention_kwargs=kwargs, return_dict=False)[0]
    return output


def peer_output(parts: dict[str, dict[str, Tensor]], features: Tensor, inputs: Any) -> Tensor:
    """What diffusers makes of it."""
    return call(peer_with(parts), features, inputs)


def attach(parts: dict[str, dict[str, Tensor]], folder: Path, model: Any) -> ip.Adapter:
    tensors = {
        f"{part}.{name}": weight.contiguous()
        for part, found in parts.items()
        for name, weight in found.items()
    }
    save_file(tensors, folder / "a.safetensors")
    adapter = ip.Adapter.load(folder / "a.safetensors")
    assert adapter.spec.variant == "instantx-sd3"
    return adapter.attach(model)


def test_it_equals_diffusers(parts: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    model, inputs = CASE.build(), CASE.inputs(2)
    plain = CASE.read(model, inputs)
    features = noise(2, PATCHES, FEATURES, seed=1)
    expected = peer_output(parts, features, inputs)
    adapter = attach(parts, tmp_path, model)
    null = torch.zeros(1, PATCHES, FEATURES)
    prompts = adapter.encode(features=[features[:1], features[1:]], null_features=null)
    with adapter.use(prompts, scale=0.5, guidance="none"):
        found = CASE.read(model, inputs)
    assert (found - expected).abs().max() < 1e-5
    assert (expected - plain).abs().max() > 0.02
    with adapter.use(prompts, scale=0, guidance="none"):
        assert torch.equal(CASE.read(model, inputs), plain)
    features[0] = 0  # zeros stand for no picture
    expected = peer_output(parts, features, inputs)
    with adapter.use(adapter.encode(features=features[1:], null_features=null), scale=0.5) as use:
        use.guidance = "negative-positive"
        assert (CASE.read(model, inputs) - expected).abs().max() < 1e-5


def test_tokens_follow_the_timestep_once_a_step(
    parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    model, inputs = CASE.build(), CASE.inputs(1)
    adapter = attach(parts, tmp_path, model)
    features = noise(1, PATCHES, FEATURES, seed=1)
    null = torch.zeros(1, PATCHES, FEATURES)
    prompt = adapter.encode(features=features, null_features=null)
    calls: list[float] = []
    projector: Any = adapter.module.image_proj
    projector.time_embedding.register_forward_pre_hook(
        lambda module, args: calls.append(float(args[0][0]))
    )
    times = torch.tensor([900.0, 500.0, 100.0])
    with adapter.use(prompt, scale=0.5, guidance="none"):
        for time in times:
            for _ in range(2):  # two calls of one step
                found = CASE.read(model, inputs | {"timestep": time.expand(1)})
                expected = peer_output(parts, features, inputs | {"timestep": time.expand(1)})
                assert (found - expected).abs().max() < 1e-5
    assert calls == [900.0, 500.0, 100.0]


def test_a_style_opens_with_the_adapter_attached(
    parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """There is no K', V' to compute before the timestep is known."""
    adapter = attach(parts, tmp_path, CASE.build())
    library = ip.Library(tmp_path / "styles")
    library.add("one", adapter, features=noise(1, PATCHES, FEATURES, seed=1))
    assert library.open("one", adapter).precomputed_kv is None


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_has_fewer_operations_than_that_of_diffusers(
    guided: bool, parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Null rows are projected where there is a negative side, and nowhere else."""
    model, inputs = CASE.build(), CASE.inputs(2 if guided else 1)
    features, null = noise(1, PATCHES, FEATURES, seed=1), torch.zeros(1, PATCHES, FEATURES)
    peer, both = peer_with(parts), torch.cat((null, features)) if guided else features
    times = torch.tensor([900.0, 500.0, 100.0])

    def later(step: Any) -> int:
        rows = [
            count(lambda time=time: step(inputs | {"timestep": time.expand(1 + guided)}))
            for time in times
        ]
        return sum(rows[-1].values())

    plain = later(lambda inputs: CASE.read(model, inputs))
    theirs = later(lambda inputs: call(peer, both, inputs))
    adapter = attach(parts, tmp_path, model)
    projected: list[int] = []
    adapter.module.image_proj.register_forward_pre_hook(
        lambda module, args: projected.append(len(args[0]))
    )
    prompt = adapter.encode(features=features, null_features=null)
    with adapter.use(prompt, scale=0.5, guidance="negative-positive" if guided else "none"):
        ours = later(lambda inputs: CASE.read(model, inputs))
    assert projected == [1 + guided] * 3
    assert (ours - plain, theirs - plain) == ((169, 221) if guided else (174, 215))


def test_fused_projections_are_not_passed_over(
    parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """They leave `to_k` uncalled, so the adapter would have no effect without a word."""
    model, inputs = CASE.build(), CASE.inputs(1)
    adapter = attach(parts, tmp_path, model)
    null = torch.zeros(1, PATCHES, FEATURES)
    prompt = adapter.encode(features=noise(1, PATCHES, FEATURES, seed=1), null_features=null)
    model.fuse_qkv_projections()
    with (
        pytest.raises(ip.ImagePromptError, match="fused projections"),
        adapter.use(prompt, guidance="none"),
    ):
        CASE.read(model, inputs)


def test_the_extra_pass_of_skip_layer_guidance_is_positive() -> None:
    """Two pictures of one prompt: its two rows are not the two sides of guidance."""
    from diffusers import DiffusionPipeline

    from imageprompt.attention.cfg_layout import LayoutCache
    from imageprompt.attention.witness import find_witness

    class Skipping(DiffusionPipeline):  # type: ignore[misc]
        do_classifier_free_guidance = True

        def __init__(self, transformer: Any) -> None:
            super().__init__()
            self.register_modules(transformer=transformer)

        def __call__(self, text: Tensor) -> Any:
            original_prompt_embeds = text  # noqa: F841 - read from the frame
            witness = find_witness(self.transformer, text)
            return LayoutCache().layout(torch.zeros(2, 4, 8, 8), text, 1, witness=witness)

    assert Skipping(CASE.build())(torch.zeros(2, 5, 32)) == ("positive",)


def test_two_references_stand_side_by_side(
    parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """The tokens of one twice are those of one: attention over a repetition is the same."""
    model, inputs = CASE.build(), CASE.inputs(1)
    adapter = attach(parts, tmp_path, model)
    features = noise(2, PATCHES, FEATURES, seed=1)
    null = torch.zeros(1, PATCHES, FEATURES)
    made = []
    for group in (features, features.flip(0), features[:1]):
        prompt = adapter.encode(features=group, null_features=null)
        with adapter.use(prompt, scale=0.5, guidance="none"):
            made.append(CASE.read(model, inputs))
    assert torch.allclose(made[0], made[1], atol=1e-6)
    assert not torch.allclose(made[0], made[2], atol=1e-5)


@pytest.mark.parametrize("timed", [False, True])
def test_rows_of_the_negative_side_have_a_scale_of_their_own(
    timed: bool, parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Both sides in one call, with a mask or without, are the two sides apart at their scales."""
    model, inputs = CASE.build(), CASE.inputs(2)
    null = torch.zeros(1, PATCHES, FEATURES)
    features = noise(1, PATCHES, FEATURES, seed=1)
    if timed:
        adapter = attach(parts, tmp_path, model)
    else:
        adapter = ip.Adapter.create("base", denoiser=model, encoder=_Pooled(), num_tokens=3)
        for weight in adapter.parameters():
            weight.data = noise(*weight.shape, seed=weight.numel())
        adapter.attach(model)
        features, null = features[:, 0], null[:, 0] + 1
    prompt = adapter.encode(features=features, null_features=null)
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    for masked in (None, mask.numpy()):
        with adapter.use(
            prompt, 0.9, "negative-positive", negative_scale=0.2, mask=masked, schedule="0-1"
        ):
            found = CASE.read(model, inputs)
        sides = []
        for number, (side, scale) in enumerate((("negative", 0.2), ("positive", 0.9))):
            row = {name: value[number : number + 1] for name, value in inputs.items()}
            with adapter.use(prompt, scale, side, mask=masked):
                sides.append(CASE.read(model, row))
        assert torch.allclose(found, torch.cat(sides), atol=1e-5)
        assert (sides[0] - CASE.read(model, inputs)[:1]).abs().max() > 1e-4


class _Pooled:
    fingerprint, image_size = "none", 8

    def width(self, feature: object) -> int:
        return FEATURES

    def encode(self, pictures: Any, feature: Any) -> Tensor:
        raise NotImplementedError

    def encode_null(self, feature: Any) -> Tensor:
        raise NotImplementedError
