"""The FaceID family at run time: LoRA on every attention layer, and image tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from imageprompt.core.errors import AdapterFileError, AttachError, EncoderError, OptionError
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training.memory import activation_checkpointing
from peer import flat, site_ids
from rigs import difference
from tiny_stack import make_pipeline, make_xl_pipeline

PIPES = {"sd15": make_pipeline, "sdxl": make_xl_pipeline}
SMALL = {"one layer": partial(make_pipeline, one_layer=True)}
"""For what compiles the denoiser."""
VARIANTS = ("faceid", "faceid-plus", "faceid-plus-v2")
PLUS = [v for v in VARIANTS if v != "faceid"]


def make(host: str, variant: str, seed: int = 0) -> tuple[Any, Any]:
    """A tiny pipeline, and an adapter whose weights all have an effect."""
    torch.manual_seed(seed)
    pipe = (PIPES | SMALL)[host]()
    pipe.unet.eval().requires_grad_(False)
    encoder = None if variant == "faceid" else pipe.image_encoder
    adapter = ip.Adapter.create(variant, denoiser=pipe.unet, encoder=encoder)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return pipe, adapter


def features(variant: str, count: int = 1, seed: int = 5) -> Any:
    gen = torch.Generator().manual_seed(seed)
    faces = torch.nn.functional.normalize(torch.randn(count, 512, generator=gen), dim=-1)
    if variant == "faceid":
        return faces
    return faces, torch.randn(count, 5, 32, generator=gen)


def null(variant: str) -> Any:
    made = features(variant, seed=6)
    return torch.zeros_like(made) if variant == "faceid" else (torch.zeros(1, 512), made[1])


def inputs(host: str, batch: int = 2) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(9)
    width = {"sd15": 32, "sdxl": 64}[host]
    made: dict[str, Any] = {
        "sample": torch.randn(batch // 2 or 1, 4, 8, 8, generator=gen).repeat(
            min(batch, 2), 1, 1, 1
        ),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": torch.randn(batch, 7, width, generator=gen),
        "added_cond_kwargs": {},
    }
    if host == "sdxl":
        made["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 24, generator=gen),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1),
        }
    return made


def read(unet: Any, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return unet(**given).sample


def ours(
    pipe: Any, adapter: Any, host: str, variant: str, mode: str = "live", **use: Any
) -> Tensor:
    adapter.attach(pipe, lora=mode)
    prompt = adapter.encode(features=features(variant), null_features=null(variant))
    with adapter.use(prompt, **use):
        out = read(pipe.unet, inputs(host))
    adapter.detach()
    return out


def state_of(adapter: Any) -> dict[str, dict[str, Tensor]]:
    parts = ("image_proj", "ip_adapter")
    return {part: dict(getattr(adapter.module, part).state_dict()) for part in parts}


@pytest.mark.sample(4)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("host", PIPES)
def test_it_is_diffusers_own_faceid(host: str, variant: str) -> None:
    pipe, adapter = make(host, variant)
    adapter.module.requires_grad_(False)
    mine = [ours(pipe, adapter, host, variant, mode, scale=0.7) for mode in ("live", "merged")]
    pipe.load_ip_adapter(state_of(adapter), subfolder="", weight_name="")
    pipe.set_ip_adapter_scale(0.7)
    faces, nothing = features(variant), null(variant)
    given = inputs(host)
    if variant != "faceid":
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        layer.clip_embeds = torch.stack([nothing[1], faces[1]])
        layer.shortcut = variant == "faceid-plus-v2"
        faces, nothing = faces[0], nothing[0]
    given["added_cond_kwargs"]["image_embeds"] = [torch.stack([nothing, faces])]
    theirs = read(pipe.unet, given)
    for one in mine:
        assert difference(one, theirs) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_have_the_published_layout(variant: str, tmp_path: Path) -> None:
    pipe, adapter = make("sd15", variant)
    path = tmp_path / "face.safetensors"
    adapter.save(path)
    names = set(flat(state_of(adapter)))
    expected = set()
    for number, name in enumerate(pipe.unet.attn_processors):
        kinds = [
            f"to_{kind}_lora.{part}" for kind in ("q", "k", "v", "out") for part in ("down", "up")
        ]
        kinds += ["to_k_ip", "to_v_ip"] if ".attn2." in name else []
        expected |= {f"ip_adapter.{number}.{kind}.weight" for kind in kinds}
    assert {name for name in names if name.startswith("ip_adapter.")} == expected
    assert len(site_ids(pipe.unet)) * 2 == len([n for n in expected if "_ip." in n])
    found = ip.inspect(path)
    assert found.as_dict()["lora_rank"] == 128
    loaded = ip.Adapter.load(path)
    assert loaded.spec == adapter.spec
    assert torch.equal(ours(pipe, loaded, "sd15", variant), ours(pipe, adapter, "sd15", variant))


def test_a_new_adapters_lora_changes_nothing() -> None:
    torch.manual_seed(0)
    pipe = make_pipeline()
    adapter = ip.Adapter.create("faceid", denoiser=pipe.unet, encoder=None, init="zero")
    before = read(pipe.unet, inputs("sd15"))
    assert torch.equal(ours(pipe, adapter, "sd15", "faceid"), before)


def test_strength_is_live_and_scale_0_is_the_base() -> None:
    pipe, adapter = make("sd15", "faceid")
    before, given = read(pipe.unet, inputs("sd15")), inputs("sd15")
    adapter.attach(pipe)
    prompt = adapter.encode(features=features("faceid"))
    assert torch.equal(read(pipe.unet, given), before)  # attached, but not in use
    with adapter.use(prompt, scale=1.0) as handle:
        full = read(pipe.unet, given)
        handle.lora = 0.0
        tokens_only = read(pipe.unet, given)
        handle.lora = 0.5
        half = read(pipe.unet, given)
        handle.scale = 0.0
        assert torch.equal(read(pipe.unet, given), before)
        handle.scale, handle.lora = 1.0, 1.0
        assert torch.equal(read(pipe.unet, given), full)
    assert difference(full, tokens_only) > 1e-3
    assert difference(half, full) > 1e-4
    assert difference(half, tokens_only) > 1e-4
    assert torch.equal(read(pipe.unet, given), before)
    adapter.detach()


def test_detach_is_exact() -> None:
    pipe, adapter = make("sd15", "faceid-plus")
    before, weights = read(pipe.unet, inputs("sd15")), dict(pipe.unet.state_dict())
    processors = dict(pipe.unet.attn_processors)
    ours(pipe, adapter, "sd15", "faceid-plus")
    assert pipe.unet.state_dict().keys() == weights.keys()
    assert dict(pipe.unet.attn_processors) == processors
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    assert torch.equal(read(pipe.unet, inputs("sd15")), before)


@pytest.mark.parametrize("loaded_first", [True, False])
def test_the_users_own_lora_stays(loaded_first: bool) -> None:
    from peft import LoraConfig

    def load() -> None:
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        torch.manual_seed(7)
        pipe.unet.add_adapter(config, adapter_name="mine")

    pipe, adapter = make("sd15", "faceid")
    given = inputs("sd15")
    plain = read(pipe.unet, given)
    if loaded_first:
        load()
    adapter.attach(pipe)
    prompt = adapter.encode(features=features("faceid"))
    if not loaded_first:
        load()
    with_mine = read(pipe.unet, given)
    assert difference(with_mine, plain) > 1e-3
    with adapter.use(prompt) as handle:
        both = read(pipe.unet, given)
        pipe.unet.disable_adapters()
        face_only = read(pipe.unet, given)
        pipe.unet.enable_adapters()
        handle.scale = 0.0
        assert torch.equal(read(pipe.unet, given), with_mine)
    assert difference(both, face_only) > 1e-3
    adapter.detach()
    assert torch.equal(read(pipe.unet, given), with_mine)
    pipe.unet.delete_adapters("mine")
    assert torch.equal(read(pipe.unet, given), plain)


def test_two_faces_of_one_adapter_have_lora_once() -> None:
    pipe, adapter = make("sd15", "faceid")
    adapter.attach(pipe)
    prompts = [adapter.encode(features=features("faceid", seed=seed)) for seed in (1, 2)]
    joined = adapter.encode(features=torch.cat([features("faceid", seed=seed) for seed in (1, 2)]))
    given = inputs("sd15")
    with adapter.use(prompts[0]), adapter.use(joined, scale=0.0):
        one = read(pipe.unet, given)
    with adapter.use(prompts[0]):
        assert torch.equal(read(pipe.unet, given), one)
    with adapter.use(prompts[0], lora=0.3), adapter.use(prompts[0], lora=1.0, scale=0.5):
        strong = read(pipe.unet, given)
    with adapter.use(prompts[0], lora=1.0), adapter.use(prompts[0], lora=0.3, scale=0.5):
        assert difference(read(pipe.unet, given), strong) <= 1e-6
    adapter.detach()


def test_gradients_reach_every_tensor_with_and_without_recomputation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activation_checkpointing, "MIN_POSITIONS", 1)
    pipe, adapter = make("sdxl", "faceid-plus-v2")
    adapter.attach(pipe)
    found = []
    for _ in range(2):
        adapter.module.zero_grad()
        tokens = adapter.project(features("faceid-plus-v2", count=2))
        with adapter.use(ImagePrompt(tokens), guidance="none"):
            pipe.unet(**inputs("sdxl")).sample.square().mean().backward()
        found.append({n: p.grad.clone() for n, p in adapter.module.named_parameters()})
        activation_checkpointing.enable_selective_checkpointing(pipe.unet)
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-9)
    adapter.detach()


def test_the_picture_beside_the_face_can_be_left_out() -> None:
    _, adapter = make("sd15", "faceid-plus-v2")
    faces, hidden = features("faceid-plus-v2", count=2)
    kept = torch.tensor([1.0, 0.0]).reshape(-1, 1, 1)
    tokens = adapter.project((faces, hidden), strength=kept)
    other = adapter.project((faces, hidden + 1), strength=kept)
    assert difference(tokens[0], other[0]) > 1e-3
    assert torch.equal(tokens[1], other[1])
    torch.testing.assert_close(tokens[0], adapter.project((faces, hidden))[0])


def test_misfits_are_refused() -> None:
    pipe, adapter = make("sd15", "faceid-plus")
    with pytest.raises(EncoderError, match="512"):
        adapter.encode(features=features("faceid"))
    with pytest.raises(EncoderError, match="face recogniser"):
        adapter.encode(["face.png"])
    other, _ = make("sdxl", "faceid")
    with pytest.raises(ip.ImagePromptError, match="tensors do not fit"):
        adapter.attach(other)
    pipe.fuse_qkv_projections()
    with pytest.raises(AttachError, match="fuse"):
        adapter.attach(pipe)
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_the_two_plus_variants_are_never_guessed(tmp_path: Path) -> None:
    pipe, two = make("sd15", "faceid-plus-v2")
    named, plain = tmp_path / "faceid-plusv2.safetensors", tmp_path / "faceid-plusv2.bin"
    two.save(named)
    two.save(plain)  # pickles have no metadata, and file names do not count
    assert ip.Adapter.load(named).spec == two.spec
    with pytest.raises(AdapterFileError, match=r"variant=.*--variant.*convert") as caught:
        ip.Adapter.load(plain)
    assert "faceid-plus or faceid-plus-v2" in str(caught.value)
    assert ip.inspect(plain).variants == ("faceid-plus", "faceid-plus-v2")
    found = {}
    for variant in PLUS:
        loaded = ip.Adapter.load(plain, variant=variant)
        assert loaded.spec.variant == variant
        found[variant] = ours(pipe, loaded, "sd15", variant)
    assert torch.equal(found["faceid-plus-v2"], ours(pipe, two, "sd15", "faceid-plus-v2"))
    assert difference(*found.values()) > 1e-3
    for path, variant in ((named, "faceid-plus"), (plain, "faceid"), (plain, "v2")):
        with pytest.raises(OptionError, match="the file is of variant faceid-plus"):
            ip.Adapter.load(path, variant=variant)


def test_a_shortcut_in_metadata_tells_them_apart(tmp_path: Path) -> None:
    """Other programs may write only this key."""
    _, adapter = make("sd15", "faceid-plus")
    for shortcut, variant in (("true", "faceid-plus-v2"), ("False", "faceid-plus")):
        path = tmp_path / f"{shortcut}.safetensors"
        save_file(flat(state_of(adapter)), path, {"shortcut": shortcut})
        assert ip.Adapter.load(path).spec.variant == variant
