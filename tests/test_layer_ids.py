"""Site tables of the published bases, and the size of the published files, on the meta device."""

from __future__ import annotations

import pytest
import torch

from bases import SD15, SDXL, Base, meta_unet
from hosts_table import CASES
from imageprompt.hosts import host_of
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
