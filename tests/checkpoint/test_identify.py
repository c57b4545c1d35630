"""Broken, mixed and foreign files are named for what they are; training names become file ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imageprompt as ip
from bases import SD15, SDXL, Base, meta_unet
from hostile import header, write
from hosts_table import CASES
from imageprompt.checkpoint.identify.identify import Identification, identify
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource
from imageprompt.core.spec import HostSpec
from imageprompt.hosts import HOSTS, host_of
from published import LORA_RANK, OTHERS, PUBLISHED, Shapes, mlp, unet_sites

FUZZED = [
    "ip-adapter-plus_sd15",
    "ip-adapter-faceid_sd15",
    "ip-adapter-full-face_sd15",
    "SD3.5-Large-IP-Adapter",
]
PLUS, FACE, XL = "ip-adapter-plus_sd15", "ip-adapter-faceid_sd15", "ip-adapter_sdxl"


def source(shapes: Shapes, **metadata: str) -> TensorSource:
    """A source of these tensors that lie nowhere: identification reads none of them."""
    path = Path("somewhere")
    tensors = {name: StoredTensor("F16", s, path, 0, name) for name, s in shapes.items()}
    return TensorSource(path, (path,), "safetensors", tensors, metadata)


def identify_shapes(shapes: Shapes, **metadata: str) -> Identification:
    return identify(source(shapes, **metadata))


def codes(found: Identification) -> list[str]:
    return [problem.code for problem in found.problems]


def without(shapes: Shapes, *starts: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(starts)}


# ── damaged ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [PLUS, FACE, XL, "ip-adapter-faceid-portrait_sdxl_unnorm"])
def test_any_missing_tensor_is_named(name: str) -> None:
    """Whichever is gone, the rest still tells what the file is, and that this one is missing."""
    file = PUBLISHED[name]
    shapes = file.shapes()
    for gone in [*shapes][:: 1 + len(shapes) // 60]:
        found = identify_shapes(without(shapes, gone))
        assert found.host == file.host
        assert codes(found) == ["missing"]
        assert gone in found.problems[0].message
        assert f"1 of {len(shapes)} tensors is missing" in found.problems[0].message
        # an encoder's width stands in one tensor alone, and nothing else tells the unnormed kind
        assert found.variants == file.variants or "proj_in.weight" in gone


def test_missing_tensors_of_an_unpublished_base() -> None:
    """Half of K' gone: V' still tells the sites; and the rest of a LoRA tells its layers."""
    shapes = {n: tuple(t.shape) for n, t in PUBLISHED[FACE].small("tiny").items()}
    gone = ["ip_adapter.1.to_k_ip.weight", "ip_adapter.5.to_v_ip.weight"]
    gone += ["ip_adapter.0.to_q_lora.up.weight", "ip_adapter.3.to_out_lora.down.weight"]
    found = identify_shapes(without(shapes, *gone))
    assert (found.host, found.variants, codes(found)) == ("unet", ("faceid",), ["missing"])
    assert all(name in found.problems[0].message for name in gone)


def test_the_first_five_and_the_count() -> None:
    found = identify_shapes(without(PUBLISHED[PLUS].shapes(), "ip_adapter.1", "ip_adapter.2"))
    (problem,) = found.problems
    assert problem.code == "missing"
    assert problem.message.startswith("22 of 83 tensors are missing")
    assert problem.message.count("to_") == 5
    assert problem.message.endswith(", ...)")


def test_extra_and_misshapen_tensors() -> None:
    shapes = PUBLISHED[PLUS].shapes()
    shapes |= {"image_proj.more": (3,), "ip_adapter.33.to_k_ip.weight": (320, 768), "note": (1,)}
    shapes |= {"image_proj.layers.2.0.to_q.weight": (767, 768), "ip_adapter.5.to_v_ip.weight": (1,)}
    found = identify_shapes(shapes)
    assert found.variants == ("plus", "plus-face")
    assert codes(found) == ["extra", "extra", "misshapen"]
    unplaced, extra, misshapen = (problem.message for problem in found.problems)
    assert "note" in unplaced
    assert "image_proj.more" in extra
    assert "ip_adapter.33.to_k_ip.weight" in extra
    assert "ip_adapter.5.to_v_ip.weight is [1] instead of [640, 768]" in misshapen
    assert "2 tensors" in misshapen


def test_halves_are_named() -> None:
    shapes = PUBLISHED[PLUS].shapes()
    projector = identify_shapes(without(shapes, "ip_adapter"))
    assert projector.variants == ("plus", "plus-face")
    assert "32 of 83 tensors are missing" in projector.problems[0].message
    sites = identify_shapes(without(shapes, "image_proj"))
    assert (sites.host, codes(sites)) == ("sd15", ["unknown-variant"])
    assert sites.spec is None
    both = without(shapes, "ip_adapter") | without(PUBLISHED[XL].shapes(), "image_proj")
    assert "mismatched" in codes(identify_shapes(both))


def test_lora_lost_to_the_popular_filter() -> None:
    """`"_ip." in key` leaves 32 of 288 tensors: a FaceID adapter without its LoRA."""
    shapes = PUBLISHED[FACE].shapes()
    filtered = {n: s for n, s in shapes.items() if n.startswith("image_proj") or "_ip." in n}
    assert len(shapes) - len(filtered) == 256
    found = identify_shapes(filtered)
    assert found.variants == ("faceid",)
    assert found.host == "sd15"
    assert "256 of 294 tensors are missing: all of its LoRA" in found.problems[0].message
    small = PUBLISHED[FACE].small("tiny")
    filtered = {n: tuple(t.shape) for n, t in small.items() if "_lora." not in n}
    assert "all of its LoRA" in identify_shapes(filtered).problems[0].message


@pytest.mark.parametrize(("base", "name"), [(SD15, "ip-adapter_sd15"), (SDXL, XL)])
def test_ids_counted_over_sorted_names(base: Base, name: str) -> None:
    """Layers numbered in alphabetical order: the shapes of another layer give it away."""
    names = list(denoiser(base.name).attn_processors)
    order = sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in n.split(".")])
    moved = {f"ip_adapter.{names.index(n)}.": f"ip_adapter.{order.index(n)}." for n in names}
    shapes = PUBLISHED[name].shapes()
    counted = {}
    for key, shape in shapes.items():
        start = key[: key.find(".to_") + 1]
        counted[key.replace(start, moved.get(start, start), 1)] = shape
    assert counted.keys() == shapes.keys()
    found = identify_shapes(counted)
    assert found.host == base.name
    assert codes(found) == ["misshapen"]
    assert "numbered by counting" in found.problems[0].message
    assert f"{2 * (3 if base is SD15 else 12)} tensors" in found.problems[0].message


def test_unknown_projectors() -> None:
    shapes = without(PUBLISHED[PLUS].shapes(), "image_proj") | {"image_proj.only.weight": (768, 9)}
    found = identify_shapes(shapes)
    assert found.variants == ()
    assert found.host == "sd15"
    assert codes(found) == ["unknown-variant"]
    assert "only.weight" in found.problems[0].message


# ── metadata and bases ───────────────────────────────────────────────────────────────────────────


def test_metadata_settles_what_tensors_cannot() -> None:
    plus = PUBLISHED["ip-adapter-faceid-plusv2_sd15"].shapes()
    assert identify_shapes(plus, variant="faceid-plus-v2").variants == ("faceid-plus-v2",)
    assert identify_shapes(plus, variant="faceid-plus").variants == ("faceid-plus",)
    assert identify_shapes(PUBLISHED[PLUS].shapes(), variant="plus-face").variants == ("plus-face",)
    xl = PUBLISHED[XL].shapes()
    assert identify_shapes(xl, host="kolors").host == "kolors"
    assert identify_shapes(xl, host="sd15").host == "sdxl"
    assert identify_shapes(xl, variant="nobody's", host="nobody's").problems == ()


def test_metadata_that_lies_is_a_problem() -> None:
    found = identify_shapes(PUBLISHED[XL].shapes(), variant="plus")
    assert found.variants == ("base",)
    assert codes(found) == ["metadata"]
    assert "says plus" in found.problems[0].message


def test_a_wide_face_adapter_of_ours_stays_what_it_is() -> None:
    """A resampler on 512-wide features is a portrait's, unless its metadata says otherwise."""
    shapes = PUBLISHED["ip-adapter-faceid-portrait_sdxl_unnorm"].shapes()
    assert identify_shapes(shapes).variants == ("portrait-unnorm",)
    assert identify_shapes(shapes, variant="plus").variants == ("plus",)


def sd15() -> HostSpec:
    return next(spec for spec in HOSTS["unet"].families() if spec.family == "sd15")


def test_a_wrong_base_is_called_one() -> None:
    """Complete for the base that it was made for; for another, that is all that is wrong."""
    unet = CASES["tiny"].unet()
    sites = unet_sites(unet, lora=False)
    shapes = {f"ip_adapter.{n}": s for n, s in sites.items()}
    shapes |= {f"image_proj.{n}": s for n, s in mlp(12, 24, 32, tokens=16).items()}
    own = host_of(unet).describe(unet)
    assert identify(source(shapes), own).problems == ()
    assert identify(source(shapes)).host == "unet"
    found = identify(source(shapes), sd15())
    assert codes(found) == ["wrong-base"]
    assert found.host == "unet"
    assert found.problems[0].message == (
        f"made for custom UNet ({len(own.sites)} sites, text width 32), "
        "not for sd15 (16 sites, text width 768)"
    )
    # LoRA of the same inner widths does not make it a damaged file of that base
    sd2 = next(spec for spec in HOSTS["unet"].families() if spec.family == "sd2")
    assert codes(identify(source(PUBLISHED[FACE].shapes()), sd2)) == ["wrong-base"]


def test_damage_is_not_taken_for_a_wrong_base() -> None:
    shapes = PUBLISHED[PLUS].shapes()
    gone = without(shapes, "ip_adapter.1.", "ip_adapter.3.")  # K' and V' of two sites
    assert codes(identify(source(gone), sd15())) == ["missing"]
    assert codes(identify(source(without(shapes, "ip_adapter")), sd15())) == ["missing"]
    unet = CASES["tiny"].unet()
    own = host_of(unet).describe(unet)
    sites = {f"ip_adapter.{n}": s for n, s in unet_sites(unet, lora=False).items()}
    tiny = sites | {f"image_proj.{n}": s for n, s in mlp(12, 24, 32, tokens=16).items()}
    first = own.sites[0].file_id
    found = identify(source(without(tiny, f"ip_adapter.{first}.")), own)
    assert codes(found) == ["missing"]
    # damaged and for another base: both are said
    assert codes(identify(source(without(shapes, "ip_adapter.1.to_k")), own)) == [
        "wrong-base",
        "missing",
    ]


def test_halves_of_two_adapters_are_only_named_where_they_are() -> None:
    plus, xl = PUBLISHED[PLUS].shapes(), PUBLISHED[XL].shapes()
    both = without(plus, "ip_adapter") | without(xl, "image_proj")
    sdxl = next(spec for spec in HOSTS["unet"].families() if spec.family == "sdxl")
    for base in (None, sdxl, sd15()):
        messages = [problem.message for problem in identify(source(both), base).problems]
        assert any("tokens 768 wide, but K' and V' read 2048" in message for message in messages)
        assert any("halves of two adapters" in message for message in messages)
    for base in (sdxl, sd15(), host_of(CASES["tiny"].unet()).describe(CASES["tiny"].unet())):
        for shapes in (plus, xl):
            messages = [problem.message for problem in identify(source(shapes), base).problems]
            assert not any("halves" in message for message in messages)


def test_a_base_of_ones_own_with_published_numbers() -> None:
    """16 sites of text width 768, but narrow: not a damaged SD1.5 adapter."""
    shapes = {
        name: (shape[0] // 4, *shape[1:]) if name.startswith("ip_adapter") else shape
        for name, shape in PUBLISHED["ip-adapter_sd15"].shapes().items()
    }
    for metadata in ({}, {"host": "unet"}):
        found = identify_shapes(shapes, **metadata)
        assert (found.host, found.problems) == ("unet", ())


# ── training checkpoints ─────────────────────────────────────────────────────────────────────────


@cache
def denoiser(base: str) -> Any:
    """A published base without weights, or a tiny one."""
    full = {"sd15": SD15, "sdxl": SDXL}
    return meta_unet(full[base]) if base in full else CASES[base].unet()


def trained(base: str, *, lora: bool, unet: bool = True) -> tuple[Shapes, Shapes, Shapes]:
    """(projector, processors by layer name, frozen UNet) of a wrapper, and the ids they get."""
    model = denoiser(base)
    names = [n.removesuffix(".processor") for n in model.attn_processors]
    named = {}
    for key, shape in unet_sites(model, lora=lora, rank=4).items():
        i, _, rest = key.partition(".")
        named[f"unet.{names[int(i)]}.processor.{rest}"] = shape
    width = next(s[1] for n, s in named.items() if "_ip." in n)
    projector = {f"image_proj_model.{n}": s for n, s in mlp(12, 24, width).items()}
    frozen = {f"unet.{n}": tuple(t.shape) for n, t in model.state_dict().items()} if unet else {}
    return projector, named, frozen


def canonical(base: str, *, lora: bool) -> Shapes:
    return unet_sites(denoiser(base), lora=lora, rank=4)


@pytest.mark.parametrize("unet", [True, False])
@pytest.mark.parametrize("base", ["sd15", "sdxl", "tiny", "sd2", "kolors"])
def test_layer_names_become_ids(base: str, unet: bool) -> None:
    """By the frozen UNet in the file, or by the published base of these layers."""
    projector, named, frozen = trained(base, lora=True, unet=unet)
    found = identify_shapes(projector | named | frozen)
    assert found.format == "training"
    if base in ("tiny", "kolors") and not unet:  # of no published structure
        assert "unknown-layers" in codes(found)
        spec = host_of(denoiser(base)).describe(denoiser(base))
        found = identify(source(projector | named), spec)
    assert found.problems == ()
    assert found.variants == ("faceid",)
    assert found.lora_rank == 4
    assert {n: t.shape for n, t in found.parts.sites.items()} == canonical(base, lora=True)
    assert found.host == (base if base in ("sd15", "sdxl") else "unet")
    assert len(found.ignored) == len(frozen)
    assert not found.copies


@pytest.mark.parametrize(
    "gone",
    [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        "up_blocks.2.attentions.1.transformer_blocks.0.attn2",
        "down_blocks.1.attentions.0",
        "attn1",
        "attn2",
        "transformer_blocks",
    ],
)
def test_a_frozen_base_with_holes_shifts_no_numbers(gone: str) -> None:
    """Ids come from a whole list of layers, else from the published base's."""
    projector, named, frozen = trained("sd15", lora=True)
    holed = {name: shape for name, shape in frozen.items() if gone not in name}
    assert len(holed) < len(frozen)
    found = identify_shapes(projector | named | holed)
    assert {n: t.shape for n, t in found.parts.sites.items()} == canonical("sd15", lora=True)
    assert (found.host, found.problems) == ("sd15", ())


WRAPPED: dict[str, Callable[[str], str]] = {
    "DDP": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled UNet": lambda name: name.replace("unet.", "unet._orig_mod."),
    "compiled, then DDP": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: name.replace("unet.", "unet._fsdp_wrapped_module."),
    "inside an app state": lambda name: f"app.model.{name}",
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_leave_no_trace(wrap: Callable[[str], str]) -> None:
    projector, named, frozen = trained("sd15", lora=False)
    found = identify_shapes(
        {wrap(name): shape for name, shape in (projector | named | frozen).items()}
    )
    assert (found.host, found.variants) == ("sd15", ("faceid",))
    assert {n: t.shape for n, t in found.parts.sites.items()} == canonical("sd15", lora=False)
    assert "all of its LoRA" in found.problems[0].message  # 4 tokens of a face need it


def test_optimiser_state_is_left_out() -> None:
    projector, named, frozen = trained("sd15", lora=True)
    state = {f"optimizer.state.{name}.exp_avg": s for name, s in (projector | named).items()}
    model = {f"model.{name}": s for name, s in (projector | named | frozen).items()}
    for both in (state | model, model | state):
        found = identify_shapes(both)
        assert found.problems == ()
        assert len(found.ignored) == len(state) + len(frozen)


def test_both_copies_are_paired() -> None:
    """`adapter_modules` and `unet` processors: every pair is handed on to be compared."""
    projector, named, frozen = trained("sdxl", lora=True)
    ids = canonical("sdxl", lora=True)
    modules = {f"adapter_modules.{name}": shape for name, shape in ids.items()}
    found = identify_shapes(projector | modules | named | frozen)
    assert found.problems == ()
    assert {name for name, _, _ in found.copies} == {f"ip_adapter.{name}" for name in ids}
    names = {value: key for key, value in _layer_of("sdxl").items()}
    for name, first, other in found.copies:
        _, i, rest = name.split(".", 2)
        assert first.storage == f"adapter_modules.{i}.{rest}"
        assert other.storage == f"unet.{names[int(i)]}.processor.{rest}"
        assert first.shape == other.shape


def _layer_of(base: str) -> dict[str, int]:
    names = denoiser(base).attn_processors
    return {name.removesuffix(".processor"): i for i, name in enumerate(names)}


def test_a_name_twice_is_said() -> None:
    projector, named, _ = trained("sd15", lora=True)
    twice = {f"module.{name}": shape for name, shape in projector.items()}
    found = identify_shapes(projector | named | twice)
    assert found.problems == ()
    pairs = {(one.storage, other.storage) for _, one, other in found.copies}
    assert pairs == {(name, f"module.{name}") for name in projector}


def test_a_training_checkpoint_is_loaded_as_it_is(tmp_path: Path) -> None:
    """Adapter.load takes it like a standard file; copies that differ are refused."""
    import torch
    from safetensors.torch import save_file

    case = CASES["tiny"]
    unet, gen = case.unet(), torch.Generator().manual_seed(1)
    ids = {n: torch.randn(s, generator=gen) for n, s in unet_sites(unet, lora=False).items()}
    names = [n.removesuffix(".processor") for n in unet.attn_processors]
    state = {f"unet.{n}": t for n, t in unet.state_dict().items()}
    for name, tensor in ids.items():
        i, _, rest = name.partition(".")
        state[f"unet.{names[int(i)]}.processor.{rest}"] = tensor
    for name, shape in (("proj.weight", (4 * 32, 20)), ("proj.bias", (4 * 32,)),
                        ("norm.weight", (32,)), ("norm.bias", (32,))):  # fmt: skip
        state[f"image_proj_model.{name}"] = torch.randn(shape, generator=gen)
    save_file(state, tmp_path / "model.safetensors")
    adapter = ip.Adapter.load(tmp_path / "model.safetensors").attach(unet)
    found = adapter.module.ip_adapter.state_dict()
    assert found.keys() == ids.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in ids.items())

    state |= {f"adapter_modules.{name}": tensor + 1 for name, tensor in ids.items()}
    save_file(state, tmp_path / "both.safetensors")
    with pytest.raises(ip.ImagePromptError, match="copies"):
        ip.Adapter.load(tmp_path / "both.safetensors")


# ── no adapters at all ───────────────────────────────────────────────────────────────────────────

STRANGERS = {
    "a LoRA": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "a LoRA ": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight",
    "a LoRA  ": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    ".to_q_lora.down.weight",
    "a LyCORIS adapter": "te.text_model.encoder.layers.0.mlp.fc1.hada_w1_a",
    "a ControlNet": "controlnet_cond_embedding.conv_in.weight",
    "a ControlNet ": "control_model.input_hint_block.0.weight",
    "a T2I-Adapter": "body.0.in_conv.weight",
    "a full checkpoint": "model.diffusion_model.input_blocks.0.0.weight",
    "a denoiser": "down_blocks.0.resnets.0.conv1.weight",
    "a denoiser ": "transformer_blocks.0.attn.to_q.weight",
    "a denoiser with an adapter loaded into it": "down_blocks.0.attentions.0.transformer_blocks.0"
    ".attn2.processor.to_k_ip.0.weight",
    "a motion module": "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
    "an image encoder": "vision_model.embeddings.class_embedding",
    "a text encoder": "text_model.embeddings.token_embedding.weight",
    "a VAE": "decoder.conv_in.weight",
    "a textual inversion": "emb_params",
    "an image prompt": "tokens",
    "the state of an optimiser": "state.0.exp_avg",
}


@pytest.mark.parametrize("what", STRANGERS)
def test_other_models_are_named(what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", header({STRANGERS[what]: (2, 2), "other": (1,)}))
    with pytest.raises(ip.ImagePromptError, match=f"this is {what.strip()}") as caught:
        identify(open_source(path))
    assert "\n" not in str(caught.value)


def test_nothing_that_is_known(tmp_path: Path) -> None:
    for shapes in ({}, {"something.else": (1,)}):
        path = write(tmp_path / "x.safetensors", header(shapes))
        with pytest.raises(ip.ImagePromptError, match=r"something\.else|no tensors"):
            identify(open_source(path))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_names_and_shapes_are_judged(data: st.DataObject) -> None:
    """Tensors taken away, renumbered and reshaped at random: a diagnosis, never a crash."""
    shapes = (PUBLISHED | OTHERS)[data.draw(st.sampled_from(FUZZED))].shapes()
    names = data.draw(st.lists(st.sampled_from(sorted(shapes)), max_size=12, unique=True))
    numbers = st.sampled_from(["0", "7", "99999999999", "-1", "x", "\u0663", ""])
    sizes = st.lists(st.sampled_from([0, 1, 3, 64, 768, 2**40]), max_size=4)
    if data.draw(st.booleans()):
        shapes = {name: shapes[name] for name in names}
    for name in names:
        shape = shapes.pop(name)
        parts = [data.draw(numbers) if part.isdecimal() else part for part in name.split(".")]
        shapes[".".join(parts)] = tuple(data.draw(st.just(shape) | sizes.map(tuple)))
    try:
        found = identify_shapes(shapes)
    except ip.ImagePromptError:
        return
    assert all("\n" not in problem.message for problem in found.problems)
    assert (found.spec is None) == (found.variants == ())


def test_the_published_rank() -> None:
    assert identify_shapes(PUBLISHED[FACE].shapes()).lora_rank == LORA_RANK
    shapes = PUBLISHED[FACE].small("tiny")
    odd = {name: tuple(tensor.shape) for name, tensor in shapes.items()}
    odd["ip_adapter.0.to_q_lora.down.weight"] = (2, odd["ip_adapter.0.to_q_lora.down.weight"][1])
    found = identify_shapes(odd)
    assert found.lora_rank == 3
    assert codes(found) == ["misshapen"]
