"""One suite over all hosts x variants x formats: what every combination must satisfy.

Hosts, variants, formats and encoders come from the registries, denoisers from `hosts_table`. A new
file in one of those folders is tested here without any change; a new host needs one tiny denoiser
in the table.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import imageprompt as ip
from hosts_table import CASES, HostCase
from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.core.spec import ProjectorOptions
from imageprompt.encoding.encoders import ENCODERS
from imageprompt.hosts import HOSTS, host_of
from imageprompt.variants import (
    VARIANTS,
    has_place,
    projector_shapes,
    site_kinds,
    site_shapes,
)
from peer import diffusers_embeds, diffusers_load
from rigs import difference
from transformers_table import CASES as TRANSFORMERS

CLIP_FEATURES = ("image_embeds", "hidden_states[-2]")
ALL_VARIANTS = [variant.name for variant in VARIANTS]
VARIANT_NAMES = [  # those for UNets, on features of a CLIP encoder
    variant.name
    for variant in VARIANTS
    if "cross" in site_kinds(variant) and str(variant.feature) in CLIP_FEATURES
]
FORMAT_NAMES = [layout.name for layout in FORMATS]
SUFFIXES = (".safetensors", ".bin")
PAIRS = [(host, variant) for host in CASES for variant in VARIANT_NAMES]


@cache
def encoder() -> nn.Module:
    """A tiny image encoder: pooled embedding 20 wide, 17 positions of hidden states 16 wide."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(21)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        projection_dim=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_factor=5.0,
    )
    return CLIPVisionModelWithProjection(config).eval()


def picture(seed: int) -> Image.Image:
    """A small picture of coloured blocks, different for every seed."""
    gen = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 3), generator=gen, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize((40, 40), Image.Resampling.NEAREST)


def make(host: str, variant: str, *, seed: int = 2, **options: Any) -> tuple[HostCase, Any, Any]:
    """A denoiser and a new adapter for it, with weights moved off their initial values."""
    case = CASES[host]
    unet = case.unet()
    torch.manual_seed(seed)
    adapter = ip.Adapter.create(variant, denoiser=unet, encoder=encoder(), **options)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return case, unet, adapter


def tensors(adapter: Any) -> dict[str, Tensor]:
    """The adapter's weights by file name."""
    return {k: v.detach().clone() for k, v in adapter.module.state_dict().items()}


def output(case: HostCase, unet: Any, adapter: Any, prompt: Any, **use: Any) -> Tensor:
    """One guided call with the adapter attached; detached again afterwards."""
    adapter.attach(unet)
    try:
        with adapter.use(prompt, **use):
            return case.read(unet, case.inputs(2))
    finally:
        adapter.detach()


# ── the registries ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("registry", [HOSTS, VARIANTS, FORMATS, ENCODERS])
def test_members_name_and_describe_themselves(registry: Any) -> None:
    members = list(registry)
    assert members
    for member in members:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", member.name)
        assert member.summary
        assert "\n" not in member.summary
        assert registry[member.name] is member


def test_unknown_members_are_named_with_the_nearest() -> None:
    with pytest.raises(ip.ImagePromptError, match="plus"):
        VARIANTS["plsu"]


def test_every_host_has_a_tiny_denoiser() -> None:
    claimed = {host_of(case.unet()).name for case in CASES.values()}
    assert claimed | set(TRANSFORMERS) == {host.name for host in HOSTS}


def test_hosts_describe_the_same_on_the_meta_device() -> None:
    """Sites come from the config, not from weights."""
    for case in CASES.values():
        with torch.device("meta"):
            empty = case.build(**case.config)
        real = case.unet()
        assert host_of(empty).describe(empty) == host_of(real).describe(real), case.name


# ── every host with every variant ────────────────────────────────────────────────────────────────


@pytest.mark.sample(4)
@pytest.mark.parametrize(("host", "variant"), PAIRS)
def test_from_pictures_to_output_and_back(host: str, variant: str) -> None:
    """attach, encode pictures, use, detach: it acts, scale 0 does not, nothing is left behind."""
    case, unet, adapter = make(host, variant)
    inputs = case.inputs(2)
    plain = case.read(unet, inputs)
    processors = dict(unet.attn_processors)
    keys = list(unet.state_dict())

    assert adapter.attach(unet, encoder=encoder()) is adapter
    prompt = adapter.encode([picture(1)])
    assert prompt.tokens.shape == prompt.null_tokens.shape
    assert prompt.tokens.shape[0] == 1
    assert prompt.tokens.shape[-1] == case.cross_dim
    with adapter.use(prompt, scale=1.0) as handle:
        acted = case.read(unet, inputs)
        assert list(unet.state_dict()) == keys
        handle.scale = 0.0
        assert torch.equal(case.read(unet, inputs), plain)
    adapter.detach()

    assert torch.isfinite(acted).all()
    assert difference(acted, plain) > 1e-3
    assert torch.equal(case.read(unet, inputs), plain)
    assert all(unet.attn_processors[name] is one for name, one in processors.items())
    assert list(unet.state_dict()) == keys


@pytest.mark.sample(4)
@pytest.mark.parametrize(("host", "variant"), PAIRS)
def test_batches_keep_their_references(host: str, variant: str) -> None:
    """[[a], [b]] and [[b], [a]] mirror each other; [a, b] has twice the tokens."""
    case, unet, adapter = make(host, variant)
    adapter.attach(unet, encoder=encoder())
    a, b = picture(1), picture(2)
    one = adapter.encode([a])
    both = adapter.encode([a, b])
    pair = adapter.encode([[a], [b]])
    assert len(one) == len(both) == 1
    assert len(pair) == 2
    assert both.tokens.shape[1] == 2 * one.tokens.shape[1]
    assert torch.allclose(pair.tokens[:1], one.tokens, atol=1e-5)
    assert torch.allclose(both.tokens[:, : one.tokens.shape[1]], one.tokens, atol=1e-5)

    inputs = case.inputs(2)
    for key in ("sample", "encoder_hidden_states"):
        half = len(inputs[key]) // 2
        inputs[key][half:] = inputs[key][:half]  # rows that differ only in their reference
    if case.pooled:
        for value in inputs["added_cond_kwargs"].values():
            value[1] = value[0]
    with adapter.use(pair, guidance="none"):
        first, second = case.read(unet, inputs)
    with adapter.use(adapter.encode([[b], [a]]), guidance="none"):
        mirrored = case.read(unet, inputs)
    assert difference(first, second) > 1e-4
    assert difference(mirrored[0], second) < 1e-4
    assert difference(mirrored[1], first) < 1e-4


@pytest.mark.sample(4)
@pytest.mark.parametrize(("host", "variant"), PAIRS)
def test_gradients_reach_every_weight(host: str, variant: str) -> None:
    """With gradients on, the loss reaches projector, K' and V', and not the frozen base."""
    case, unet, adapter = make(host, variant)
    unet.requires_grad_(False)
    adapter.attach(unet, encoder=encoder())
    feature = adapter.encoder.encode([picture(1)], adapter.spec.feature.image)
    tokens = adapter.project(feature)
    null = adapter.project(feature, null=True)
    with adapter.use(ip.ImagePrompt(tokens, null), scale=1.0):
        unet(**case.inputs(2)).sample.square().mean().backward()
    missing = [
        name
        for name, parameter in adapter.module.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not missing
    assert all(parameter.grad is None for parameter in unet.parameters())


def _gradients(unet: Any, case: HostCase, adapter: Any, *, look_first: bool) -> Tensor:
    adapter.attach(unet, encoder=encoder())
    feature = adapter.encoder.encode([picture(1)], adapter.spec.feature.image)
    prompt = ip.ImagePrompt(adapter.project(feature), adapter.project(feature, null=True))
    with adapter.use(prompt):
        if look_first:
            case.read(unet, case.inputs(2))
        unet(**case.inputs(2)).sample.square().mean().backward()
    adapter.detach()
    found = torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()])
    adapter.module.zero_grad()
    return found


def test_gradients_survive_a_look_at_the_output() -> None:
    """A call without gradients in the same `use`, or checkpointing, does not change them."""
    case, unet, adapter = make("tiny", "base")
    unet.requires_grad_(False)
    wanted = _gradients(unet, case, adapter, look_first=False)
    assert torch.equal(_gradients(unet, case, adapter, look_first=True), wanted)
    unet.enable_gradient_checkpointing()
    unet.train()
    assert difference(_gradients(unet, case, adapter, look_first=False), wanted) < 1e-6


@pytest.mark.sample(4)
@pytest.mark.parametrize(("host", "variant"), PAIRS)
def test_new_adapters(host: str, variant: str) -> None:
    """Copied from the text's K and V, or with V' zero: then it leaves the base as it is."""
    case = CASES[host]
    unet = case.unet()
    zero = ip.Adapter.create(variant, denoiser=unet, encoder=encoder(), init="zero")
    plain = case.read(unet, case.inputs(2))
    zero.attach(unet, encoder=encoder())
    prompt = zero.encode([picture(1)])
    zero.detach()
    assert torch.equal(output(case, unet, zero, prompt), plain)

    copied = ip.Adapter.create(variant, denoiser=unet, encoder=encoder(), init="copy")
    state = tensors(copied)
    for site in host_of(unet).describe(unet).sites:
        layer = unet.get_submodule(site.name)
        for kind in "kv":
            weight = getattr(layer, f"to_{kind}").weight
            key = f"ip_adapter.{site.file_id}.to_{kind}_ip.weight"
            assert torch.equal(state[key], weight)
            assert state[key].data_ptr() != weight.data_ptr()


# ── every host with every variant in every format ────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.sample(5)
@pytest.mark.parametrize(("host", "variant"), PAIRS)
def test_files(host: str, variant: str, suffix: str, tmp_path: Path) -> None:
    """Saved and loaded: the same spec, the same bits, the same output."""
    case, unet, adapter = make(host, variant)
    path = tmp_path / f"adapter{suffix}"
    adapter.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half-written neighbours
    loaded = ip.Adapter.load(path)
    # a pickle has no metadata: there the host can only be guessed from the shapes
    assert loaded.spec == adapter.spec
    before, after = tensors(adapter), tensors(loaded)
    assert list(before) == list(after) or set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(before[key].dtype == after[key].dtype for key in before)

    adapter.attach(unet, encoder=encoder())
    prompt = adapter.encode([picture(1), picture(2)])
    adapter.detach()
    assert torch.equal(output(case, unet, loaded, prompt), output(case, unet, adapter, prompt))


@pytest.mark.parametrize("variant", ALL_VARIANTS)
@pytest.mark.parametrize("layout", FORMAT_NAMES)
def test_formats(layout: str, variant: str) -> None:
    """Every layout that can hold a variant reads back what it wrote; no other claims it."""
    parts = template(variant)
    try:
        written = FORMATS[layout].write(parts)
    except ip.ImagePromptError:
        assert layout != "standard"
        return
    assert FORMATS[layout].writable
    assert [one.name for one in FORMATS if one.claims(written)] == [layout]
    read = FORMATS[layout].read(written)
    assert read.parts == parts
    assert not read.unplaced
    assert not read.ignored


def template(variant: str) -> Parts[tuple[int, ...]]:
    """All tensors of a variant, for the first published base that has a place for it."""
    kind = VARIANTS[variant]
    bases = (spec for one in HOSTS for spec in one.families())
    for base in bases:
        if has_place(kind, base):
            spec = kind.propose(512, base.cross_attention_dim, ProjectorOptions())
            return Parts(projector_shapes(kind, spec), site_shapes(kind, base, spec))
    raise AssertionError(f"no base has a place for {variant}")


# ── templates ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_templates_are_what_is_built(variant: str) -> None:
    """The torch-free template equals the state dict of the module; the spec is read back."""
    kind = VARIANTS[variant]
    for cross_attention_dim in (24, 2048):
        spec = kind.propose(512, cross_attention_dim, ProjectorOptions())
        shapes = projector_shapes(kind, spec)
        with torch.device("meta"):
            module = kind.build(spec)
        assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes
        assert kind.read(shapes) == spec


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_reading_survives_missing_tensors(variant: str) -> None:
    """Without any one tensor, or with one cut short, reading does not fail."""
    kind = VARIANTS[variant]
    shapes = projector_shapes(kind, kind.propose(512, 768, ProjectorOptions()))
    known = 0
    for name in shapes:
        known += kind.read({n: s for n, s in shapes.items() if n != name}) is not None
        kind.read({**shapes, name: shapes[name][:1]})
        kind.read({**shapes, name: ()})
    assert known >= len(shapes) - 2


def test_variants_of_other_bases_say_so() -> None:
    case = CASES["tiny"]
    others = [variant.name for variant in VARIANTS if "cross" not in site_kinds(variant)]
    assert others == ["instantx", "instantx-sd3", "redux", "xlabs"]
    for variant in others:
        with pytest.raises(ip.ImagePromptError, match=f"new {variant} adapter on a"):
            ip.Adapter.create(variant, denoiser=case.unet(), encoder=encoder())


@pytest.mark.parametrize(("host", "variant"), [("sd15", "base"), ("sdxl", "plus"), ("sd2", "full")])
def test_diffusers_reads_what_we_write(host: str, variant: str, tmp_path: Path) -> None:
    """The file that `save` writes, through diffusers' own loader, gives our output."""
    from safetensors import safe_open

    options = {"depth": 4} if variant == "plus" else {}
    case, unet, adapter = make(host, variant, **options)
    path = tmp_path / "mine.safetensors"
    adapter.save(path)
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118
            part, _, name = key.partition(".")
            state[part][name] = file.get_tensor(key)
    assert metadata["variant"] == variant
    assert metadata["null_rule"] == VARIANTS[variant].null_rule

    adapter.attach(unet, encoder=encoder())
    prompt = adapter.encode([picture(1)])
    feature = adapter.encoder.encode([picture(1)], adapter.spec.feature.image)
    zero = VARIANTS[variant].null_rule == "zero features"
    null = (
        torch.zeros_like(feature)
        if zero
        else adapter.encoder.encode_null(adapter.spec.feature.image)
    )
    adapter.detach()
    theirs = diffusers_load(copy.deepcopy(unet), state)
    inputs = case.inputs(2)
    added = {
        **inputs.get("added_cond_kwargs", {}),
        "image_embeds": [diffusers_embeds([feature], null)],
    }
    expected = case.read(theirs, {**inputs, "added_cond_kwargs": added})
    assert difference(output(case, unet, adapter, prompt, scale=1.0), expected) <= 1e-5


# ── image prompts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_image_prompts_can_be_saved(variant: str, tmp_path: Path) -> None:
    """A saved prompt needs no encoder and no pictures, and other projectors refuse it."""
    case, unet, adapter = make("tiny", variant)
    adapter.attach(unet, encoder=encoder())
    prompt = adapter.encode([[picture(1)], [picture(2)]])
    adapter.detach()
    path = tmp_path / "prompt.safetensors"
    prompt.save(path)
    loaded = ip.ImagePrompt.load(path)
    assert torch.equal(loaded.tokens, prompt.tokens)
    assert torch.equal(loaded.null_tokens, prompt.null_tokens)
    assert loaded.metadata == prompt.metadata

    adapter.save(tmp_path / "adapter.safetensors")
    bare = ip.Adapter.load(tmp_path / "adapter.safetensors")
    assert torch.equal(
        output(case, unet, bare, loaded, guidance="none"),
        output(case, unet, adapter, prompt, guidance="none"),
    )
    _, _, other = make("tiny", variant, seed=8)
    other.attach(unet)
    with pytest.raises(ip.ImagePromptError) as caught, other.use(loaded):
        pass
    assert "\n" not in str(caught.value)


# ── faces: ready-made features ───────────────────────────────────────────────────────────────


class FaceEncoder:
    """As wide as ArcFace; encodes nothing."""

    image_size, fingerprint = 112, "0" * 16

    def width(self, feature: str) -> int:
        return 512

    def encode(self, pictures: list[Image.Image], feature: str) -> Tensor:
        raise NotImplementedError

    encode_null = encode


@pytest.mark.parametrize(
    ("variant", "shape"), [("portrait", (1, 512)), ("portrait-unnorm", (1, 3, 512))]
)
def test_faces_from_ready_made_features(
    variant: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Without a face encoder: created, saved, loaded, and equal to diffusers."""
    case = CASES["sd15"]
    unet = case.unet()
    adapter = ip.Adapter.create(variant, denoiser=unet, encoder=FaceEncoder())
    adapter.save(tmp_path / "face.safetensors")
    loaded = ip.Adapter.load(tmp_path / "face.safetensors")
    assert loaded.spec == adapter.spec
    features = torch.randn(shape)
    prompt = loaded.encode(features=features)
    assert prompt.tokens.shape == (1, 16, case.cross_dim)

    state = {
        part: getattr(adapter.module, part).state_dict() for part in ("image_proj", "ip_adapter")
    }
    theirs = diffusers_load(copy.deepcopy(unet), state)
    embeds = diffusers_embeds([features], torch.zeros(shape))
    inputs = case.inputs(2)
    expected = case.read(theirs, {**inputs, "added_cond_kwargs": {"image_embeds": [embeds]}})
    assert difference(output(case, unet, loaded, prompt, scale=1.0), expected) <= 1e-5
    with pytest.raises(ip.ImagePromptError, match="face_embeds"):
        ip.Adapter.create(variant, denoiser=unet, encoder=encoder())
