"""Site tables of the published bases on the meta device, and the same without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from bases import SD15, SDXL, Base, meta_unet
from hosts_table import CASES
from imageprompt.core.errors import ImagePromptError
from imageprompt.core.spec import HostSpec
from imageprompt.hosts import HOSTS, host_of
from imageprompt.hosts._unet_layers import from_config
from imageprompt.hosts.unet import FAMILIES
from peer import site_ids

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
    ("base", "blocks", "widths", "cross_attention_dim"),
    [(SD15, SD15_BLOCKS, SD15_WIDTHS, 768), (SDXL, SDXL_BLOCKS, SDXL_WIDTHS, 2048)],
    ids=["sd15", "sdxl"],
)
def test_site_table(
    base: Base,
    blocks: dict[str, tuple[int, int]],
    widths: dict[int, set[int]],
    cross_attention_dim: int,
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
        assert file_id in widths[site.inner_dim], file_id
        assert site.cross_attention_dim == cross_attention_dim
        assert site.inner_dim % site.heads == 0
    heads = {site.inner_dim // site.heads for site in spec.sites}
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
        assert {int(s.file_id): (s.name, s.inner_dim) for s in spec.sites} == expected, case.name
        assert {s.cross_attention_dim for s in spec.sites} == {case.cross_dim}
        for site in spec.sites:
            assert unet.get_submodule(site.name).heads == site.heads


@pytest.mark.parametrize(
    ("base", "wrong", "wrong_shape"), [(SD15, 10, 3), (SDXL, 46, 12)], ids=["sd15", "sdxl"]
)
def test_counting_sorted_keys_would_be_wrong(base: Base, wrong: int, wrong_shape: int) -> None:
    """What goes wrong when ids are counted over sorted names, and that ours are not."""
    unet = meta_unet(base)
    sites = host_of(unet).describe(unet).sites
    right = {site.name: (int(site.file_id), site.inner_dim) for site in sites}
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
    expected = host_of(plain).describe(plain)
    found = host_of(motion).describe(motion)
    assert found.shapes() == expected.shapes()
    assert [s.file_id for s in found.sites] == [s.file_id for s in expected.sites]


# ── without torch ────────────────────────────────────────────────────────────────────────────────

ODD: dict[str, dict[str, Any]] = {
    "depths": {"transformer_layers_per_block": (1, 2, 3, 4)},
    "layers": {"layers_per_block": (1, 2, 3, 1)},
    "heads and texts": {
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": (64, 128, 32, 32),
    },
    "depth of each": {
        "transformer_layers_per_block": ((1, 2), (2, 1), (1, 1), (1, 1)),
        "reverse_transformer_layers_per_block": ((1, 1, 1), (1, 2, 3), (3, 2, 1), (1, 1, 2)),
    },
    "no middle": {"mid_block_type": None},
    "middle without attention": {"mid_block_type": "UNetMidBlock2D"},
    "heads that do not divide": {"attention_head_dim": 6},
    "text alone": {"only_cross_attention": True},
    "gated": {"attention_type": "gated"},
    "self-attention blocks": {"down_block_types": ("AttnDownBlock2D",) * 4},
}
DERIVED = set(ODD) - {"text alone", "gated", "self-attention blocks"}


def _without_heads(spec: HostSpec) -> HostSpec:
    return replace(spec, sites=tuple(replace(site, heads=0) for site in spec.sites))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_what_diffusers_makes_of_their_configs(family: str) -> None:
    """Sites and attention layers, from the config and from the tensors, are the model's own."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**FAMILIES[family])
    expected = host_of(unet).describe(unet)
    host = HOSTS["unet"]
    assert expected.family == family
    assert next(s for s in host.families() if s.family == family) == expected
    seen = host.from_weights(_shapes(unet))
    assert seen == _without_heads(expected)
    assert len(expected.layers) == len(unet.attn_processors)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [*ODD, *CASES])
def test_any_config(name: str) -> None:
    """Odd and tiny configs: derived, or built on the meta device where they are not described."""
    with torch.device("meta"):
        if name in CASES:
            unet = CASES[name].build(**CASES[name].config)
        else:
            from diffusers import UNet2DConditionModel

            unet = UNet2DConditionModel(**{"cross_attention_dim": 768, **ODD[name]})
    host = HOSTS["unet"]
    expected = host_of(unet).describe(unet)
    assert host.from_config({**unet.config, "_class_name": type(unet).__name__}) == expected
    assert (from_config(unet.config) is not None) == (name in {*DERIVED, *CASES} - {"motion"})
    seen = host.from_weights(_shapes(unet))
    assert seen in (None, _without_heads(expected))
    assert (seen is None) == (name in ("gated", "self-attention blocks"))


def test_configs_that_make_no_model() -> None:
    for config in (
        {"block_out_channels": "wide"},
        {"attention_head_dim": 0},
        {"down_block_types": ()},
    ):
        with pytest.raises(ImagePromptError, match=r"config\.json"):
            HOSTS["unet"].from_config(config)
    with pytest.raises(ImagePromptError, match=r"config\.json"):
        HOSTS["flux"].from_config({"_class_name": "FluxTransformer2DModel", "num_layers": "many"})
    assert HOSTS["unet"].from_config({"_class_name": "AutoencoderKL"}) is None
    assert HOSTS["unet"].from_weights({"vision_model.embeddings.weight": (4, 4)}) is None


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("flux", "FluxTransformer2DModel", {}),
        ("flux", "FluxTransformer2DModel", {"num_layers": 2, "num_single_layers": 3,
         "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 24}),
        ("sd3", "SD3Transformer2DModel", {"num_layers": 38, "num_attention_heads": 38,
         "caption_projection_dim": 2432}),
        ("sd3", "SD3Transformer2DModel", {"num_layers": 4, "num_attention_heads": 2,
         "caption_projection_dim": 128, "dual_attention_layers": (0, 1)}),
    ],
)  # fmt: skip
def test_transformers(name: str, kind: str, config: dict[str, Any]) -> None:
    """FLUX and SD3: names, ids and widths are those of the model's own attention layers."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    host = HOSTS[name]
    spec = host.from_config({**config, "_class_name": kind})
    assert spec is not None
    names = [processor.removesuffix(".processor") for processor in model.attn_processors]
    assert [site.name for site in spec.sites] == [n for n in names if not n.endswith(".attn2")]
    for site in spec.sites:
        layer = model.get_submodule(site.name)
        assert names[int(site.file_id)] == site.name
        assert (site.inner_dim, site.heads) == (layer.to_q.out_features, layer.heads)
    context = model.context_embedder
    assert spec.cross_attention_dim == (
        context.in_features if name == "flux" else context.out_features
    )
    assert host_of(model) is host


def test_sites_need_no_torch() -> None:
    """The published bases are described by a process that never loads torch."""
    code = (
        "import sys; from imageprompt.hosts import HOSTS; "
        "n = sum(len(s.sites) for h in HOSTS for s in h.families()); "
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules or n != 679)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
