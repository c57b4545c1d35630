"""Site tables of the published bases, and the size of the published files, on the meta device."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bases import SD15, SDXL, Base, meta_unet
from hosts_table import CASES
from imageprompt.hosts import HOSTS, host_of
from imageprompt.variants import VARIANTS
from peer import resampler_state, site_ids

# file ids of the cross-attention sites by block (odd ones of these ranges), and widths
SD15_BLOCKS = {
    "down_blocks.0": (0, 3),
    "down_blocks.1": (4, 7),
    "down_blocks.2": (8, 11),
    "up_blocks.1": (12, 17),
    "up_blocks.2": (18, 23),
    "up_blocks.3": (24, 29),
    "mid_block": (30, 31),
}
SD15_WIDTHS = {
    320: {1, 3, 25, 27, 29},
    640: {5, 7, 19, 21, 23},
    1280: {9, 11, 13, 15, 17, 31},
}
SDXL_BLOCKS = {
    "down_blocks.1": (0, 7),
    "down_blocks.2": (8, 47),
    "up_blocks.0": (48, 107),
    "up_blocks.1": (108, 119),
    "mid_block": (120, 139),
}
SDXL_WIDTHS = {
    640: {*range(1, 8, 2), *range(109, 120, 2)},
    1280: {*range(9, 108, 2), *range(121, 140, 2)},
}


@pytest.mark.parametrize(
    ("base", "blocks", "widths", "text_width"),
    [(SD15, SD15_BLOCKS, SD15_WIDTHS, 768), (SDXL, SDXL_BLOCKS, SDXL_WIDTHS, 2048)],
    ids=["sd15", "sdxl"],
)
def test_site_table(
    base: Base, blocks: dict[str, tuple[int, int]], widths: dict[int, set[int]], text_width: int
) -> None:
    unet = meta_unet(base)
    spec = host_of(unet).describe(unet)
    assert spec.family == base.name
    expected = {
        i: prefix for prefix, (low, high) in blocks.items() for i in range(low, high + 1) if i % 2
    }
    found = {int(site.file_id): site for site in spec.sites}
    assert len(found) == len(spec.sites)
    assert set(found) == set(expected)
    for file_id, prefix in expected.items():
        site = found[file_id]
        assert site.name.startswith(prefix + "."), file_id
        assert file_id in widths[site.width], file_id
        assert site.text_width == text_width
        assert site.width % site.heads == 0
    heads = {site.width // site.heads for site in spec.sites}
    assert heads == ({40, 80, 160} if base is SD15 else {64})


@pytest.mark.parametrize(
    ("base", "style", "layout"),
    [
        (SD15, ("up_blocks.1.",), ("down_blocks.2.", "mid_block.")),
        (SDXL, ("up_blocks.0.attentions.1.",), ("down_blocks.2.attentions.1.",)),
    ],
    ids=["sd15", "sdxl"],
)
def test_roles(base: Base, style: tuple[str, ...], layout: tuple[str, ...]) -> None:
    """The style and layout layers that InstantStyle names."""
    unet = meta_unet(base)
    for site in host_of(unet).describe(unet).sites:
        is_style, is_layout = site.name.startswith(style), site.name.startswith(layout)
        assert site.role == ("style" if is_style else "layout" if is_layout else "other")


def test_names_match_the_denoiser() -> None:
    """Every site is a layer of that name, at the position that the format counts."""
    for case in CASES.values():
        unet = case.unet()
        spec = host_of(unet).describe(unet)
        expected = {i: (n.removesuffix(".processor"), w) for i, (n, w) in site_ids(unet).items()}
        assert {int(s.file_id): (s.name, s.width) for s in spec.sites} == expected, case.name
        assert {s.text_width for s in spec.sites} == {case.cross_dim}
        for site in spec.sites:
            assert unet.get_submodule(site.name).heads == site.heads


@pytest.mark.parametrize(
    ("base", "wrong", "wrong_shape"), [(SD15, 10, 3), (SDXL, 46, 12)], ids=["sd15", "sdxl"]
)
def test_counting_sorted_keys_would_be_wrong(base: Base, wrong: int, wrong_shape: int) -> None:
    """What goes wrong when ids are counted over sorted names, and that ours are not."""
    unet = meta_unet(base)
    sites = host_of(unet).describe(unet).sites
    right = {site.name: (int(site.file_id), site.width) for site in sites}
    counted = {
        name.removesuffix(".processor"): position
        for position, name in enumerate(sorted(unet.attn_processors, key=_sorted_as_stored))
    }
    width = dict(right.values())
    bad = [name for name, (file_id, _) in right.items() if counted[name] != file_id]
    assert len(bad) == wrong
    assert sum(width[counted[name]] != right[name][1] for name in bad) == wrong_shape


def _sorted_as_stored(name: str) -> tuple[object, ...]:
    """down, mid, up, numbers in their order."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split("."))


def test_motion_modules_are_not_counted() -> None:
    """A motion UNet has the sites and ids of the plain UNet that it was grown from."""
    from diffusers import UNetMotionModel

    with torch.device("meta"):
        motion = UNetMotionModel(cross_attention_dim=768, num_attention_heads=8)
    plain = meta_unet(SD15)
    wanted = host_of(plain).describe(plain)
    found = host_of(motion).describe(motion)
    assert found.shapes() == wanted.shapes()
    assert [s.file_id for s in found.sites] == [s.file_id for s in wanted.sites]


# ── published files ──────────────────────────────────────────────────────────────────────────────

Shapes = dict[str, tuple[int, ...]]


def _linear(out: int, feature: int) -> Shapes:
    return {
        "proj.weight": (4 * out, feature),
        "proj.bias": (4 * out,),
        "norm.weight": (out,),
        "norm.bias": (out,),
    }


def _resampler(width: int, heads: int, out: int) -> Shapes:
    gen = torch.Generator().manual_seed(0)
    small = resampler_state(gen, feature=7, width=3, heads=1, depth=4, tokens=16, out=5, dim_head=2)
    real = {7: 1280, 3: width, 1: 1, 16: 16, 5: out, 2: 64 * heads, 4: 128 * heads, 12: 4 * width}
    return {key: tuple(real[n] for n in value.shape) for key, value in small.items()}


def _mlp() -> Shapes:
    return {
        "proj.0.weight": (1280, 1280),
        "proj.0.bias": (1280,),
        "proj.2.weight": (768, 1280),
        "proj.2.bias": (768,),
        "proj.3.weight": (768,),
        "proj.3.bias": (768,),
    }


# name: (base, variant, projector shapes, projector keys, projector parameters, all parameters,
#        tokens, depth, heads)
PUBLISHED = {
    "ip-adapter_sd15": (
        "sd15", "base", _linear(768, 1024), 4, 3_150_336, 22_319_616, 4, 0, 0,
    ),
    "ip-adapter_sd15_vit-G": (
        "sd15", "base", _linear(768, 1280), 4, 3_936_768, 23_106_048, 4, 0, 0,
    ),
    "ip-adapter-plus_sd15": (
        "sd15", "plus", _resampler(768, 12, 768), 51, 29_918_208, 49_087_488, 16, 4, 12,
    ),
    "ip-adapter-full-face_sd15": (
        "sd15", "full", _mlp(), 6, 2_625_024, 21_794_304, None, 0, 0,
    ),
    "ip-adapter_sdxl": (
        "sdxl", "base", _linear(2048, 1280), 4, 10_498_048, 351_285_248, 4, 0, 0,
    ),
    "ip-adapter_sdxl_vit-h": (
        "sdxl", "base", _linear(2048, 1024), 4, 8_400_896, 349_188_096, 4, 0, 0,
    ),
    "ip-adapter-plus_sdxl_vit-h": (
        "sdxl", "plus", _resampler(1280, 20, 2048), 51, 82_961_664, 423_748_864, 16, 4, 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name: str) -> None:
    """Variant, tokens, depth and heads read off the shapes; our module has the same tensors."""
    base, variant, shapes, keys, projector, total, tokens, depth, heads = PUBLISHED[name]
    assert len(shapes) == keys
    assert sum(math.prod(s) for s in shapes.values()) == projector

    readers = {v.name: v.read(shapes) for v in VARIANTS}
    spec = readers[variant]
    assert spec is not None
    assert (spec.tokens, spec.depth, spec.heads) == (tokens, depth, heads)

    with torch.device("meta"):
        module = VARIANTS[variant].build(spec)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == shapes

    unet = meta_unet(SD15 if base == "sd15" else SDXL)
    sites = HOSTS["unet"].describe(unet).shapes()
    assert len(sites) == (32 if base == "sd15" else 140)
    assert projector + sum(math.prod(s) for s in sites.values()) == total


@pytest.mark.parametrize("name", ["ip-adapter_sd15", "ip-adapter-plus_sd15"])
def test_published_shapes_load_and_attach(name: str, tmp_path: Path) -> None:
    """A file of the published shapes is recognised as SD1.5's and attaches to its denoiser."""
    from safetensors.torch import save_file

    import imageprompt as ip

    base, variant, shapes, *_ = PUBLISHED[name]
    unet = meta_unet(SD15)
    tensors = {f"image_proj.{k}": torch.zeros(s, dtype=torch.float16) for k, s in shapes.items()}
    for key, shape in HOSTS["unet"].describe(unet).shapes().items():
        tensors[f"ip_adapter.{key}"] = torch.zeros(shape, dtype=torch.float16)
    path = tmp_path / "renamed-by-somebody.safetensors"
    save_file(tensors, path)
    adapter = ip.Adapter.load(path)
    assert adapter.spec.variant == variant
    assert adapter.spec.host == base
    assert set(adapter.module.state_dict()) == set(tensors)
