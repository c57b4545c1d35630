"""Every transformer host under caches, fused projections and offloading; gradients."""

from __future__ import annotations

import pytest
import torch
from test_transformers import Rig

import imageprompt as ip
from transformers_table import CASES

CACHED = [("flux", "FirstBlockCacheConfig"), ("qwen-image", "FirstBlockCacheConfig")]
CACHED += [("cogview4", "FirstBlockCacheConfig"), ("wan", "FirstBlockCacheConfig")]
CACHED += [("flux2", "TaylorSeerCacheConfig"), ("chroma", "TaylorSeerCacheConfig")]


@pytest.fixture(params=CASES)
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(CASES[request.param])


@pytest.mark.parametrize(("host", "cache"), CACHED)
def test_step_caches_forget_when_the_image_prompt_changes(host: str, cache: str) -> None:
    import diffusers

    rig = Rig(CASES[host])
    prompt, other = rig.prompt(1), rig.prompt(2)
    whole, second = rig.run(prompt), rig.run(other)
    rig.model.enable_cache(getattr(diffusers, cache)())
    with rig.adapter.use(prompt, scale=1.0, guidance="none") as handle:
        for scale, expected in ((1.0, whole), (0.0, rig.plain), (1.0, whole)):
            handle.scale = scale
            with rig.model.cache_context("cond"):
                assert torch.equal(rig.case.read(rig.model, rig.inputs()), expected)
    with (
        rig.adapter.use(other, scale=1.0, guidance="none"),
        rig.model.cache_context("cond"),
    ):
        assert torch.equal(rig.case.read(rig.model, rig.inputs()), second)


def test_step_caches_serve_both_sides_of_guidance() -> None:
    """Each has a cache context of its own; what they add differs, and none is computed again."""
    import diffusers

    rig = Rig(CASES["wan"])
    prompt = rig.prompt(1)
    rig.model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    computed: list[str] = []
    rig.model.blocks[-1].attn2.register_forward_pre_hook(lambda *_: computed.append("last"))
    made: dict[str, list[torch.Tensor]] = {"cond": [], "uncond": []}
    with rig.adapter.use(prompt, scale=1.0):
        for _ in range(4):
            for side, pictures in made.items():
                with rig.model.cache_context(side):
                    pictures.append(rig.case.read(rig.model, rig.inputs()))
    assert len(computed) == 3  # the reset for the negative side was for both
    for pictures in made.values():
        for one in pictures:  # a cache adds what the blocks added to the first
            assert torch.allclose(pictures[0], one, atol=1e-5)
    assert not torch.equal(made["cond"][0], made["uncond"][0])


@pytest.mark.sample(3)
def test_fused_projections(rig: Rig) -> None:
    """They change nothing, or are refused with the remedy (SD3's skip the norm that is heard)."""
    if not hasattr(rig.model, "fuse_qkv_projections") or rig.case.host == "bria":
        pytest.skip("diffusers does not fuse them")
    prompt = rig.prompt(1)
    whole = rig.run(prompt)
    rig.model.fuse_qkv_projections()
    if rig.case.host == "sd3":
        with pytest.raises(ip.ImagePromptError, match="unfuse_qkv_projections"):
            rig.run(prompt)
    else:
        assert torch.allclose(rig.run(prompt), whole, atol=1e-5)
    rig.model.unfuse_qkv_projections()
    assert torch.equal(rig.run(prompt), whole)


@pytest.mark.sample(3)
def test_weights_that_are_offloaded(rig: Rig) -> None:
    """Layer by layer, before an adapter is attached and after."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    if rig.case.host == "hunyuan-dit":
        pytest.skip(
            "its pooling reads weights of a layer that it does not call: it runs nowhere so"
        )
    prompt = rig.prompt(1)
    whole = rig.run(prompt)
    cpu_offload(rig.model, torch.device("cpu"))
    assert torch.equal(rig.run(prompt), whole)
    rig.adapter.detach()
    rig.adapter.attach(rig.model)
    assert torch.equal(rig.run(prompt), whole)
    rig.adapter.detach()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    remove_hook_from_submodules(rig.model)


@pytest.mark.sample(3)
def test_every_tensor_of_the_adapter_gets_a_gradient(rig: Rig) -> None:
    rig.model.requires_grad_(False)
    for weight in rig.adapter.parameters():
        weight.requires_grad_(True)
    with rig.adapter.use(rig.prompt(1), scale=1.0, guidance="none"):
        made = rig.model(**rig.inputs(), return_dict=False)[0]
        output = torch.stack(list(made)) if isinstance(made, list) else made
        output.square().sum().backward()
    for name, weight in rig.adapter.module.ip_adapter.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all()
        assert weight.grad.any(), name


def test_presets_use_the_roles_that_a_base_states() -> None:
    rig = Rig(CASES["flux"])
    prompt = rig.prompt(1)
    with pytest.raises(ip.ImagePromptError):
        rig.run(prompt, preset="style transfer")
    rig.adapter.detach()
    rig.model.register_to_config(_imageprompt_roles={"style": ["transformer_blocks.1"]})
    rig.adapter.attach(rig.model)
    alone = rig.run(prompt, scale={"transformer_blocks.1": 1.0})
    assert torch.equal(rig.run(prompt, preset="style transfer"), alone)
    rig.adapter.detach()
    rig.model.register_to_config(_imageprompt_roles={"style": ["no.such"]})
    with pytest.raises(ip.ImagePromptError, match="no site is named"):
        rig.adapter.attach(rig.model)
