"""What workflows do to pixels: masks from backgrounds, composites, lightness, seams."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.demo import scenes
from imageprompt.evaluation.probing.measures import to_lab
from imageprompt.workflows import _pixels

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def disc(width: int, height: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return (np.hypot(x - width / 2, y - height / 2) < radius).astype(np.float32)


def test_the_object_before_a_plain_or_gradient_background_is_found() -> None:
    overlaps = []
    for scene in islice(scenes.stream("test", seed=3), 40):
        found = _pixels.object_on_plain_background(scenes.draw(scene), cut_holes=True) >= 0.5
        drawn = scenes.mask(scene)
        overlaps.append((found & drawn).sum() / (found | drawn).sum())
    assert np.mean(overlaps) > 0.93  # edge pixels are mixed with the background
    assert min(overlaps) > 0.8


def test_a_hole_is_kept_unless_it_is_cut() -> None:
    ring = next(s for s in scenes.stream("test") if s.shape == "ring" and s.style == "plain")
    picture = scenes.draw(ring)
    x, y = round(ring.x), round(ring.y)
    assert _pixels.object_on_plain_background(picture)[y, x] == 1
    assert _pixels.object_on_plain_background(picture, cut_holes=True)[y, x] == 0


def test_flood_fill_goes_round_corners_and_not_through_diagonals() -> None:
    free = np.ones((9, 9), bool)
    free[2, 1:8] = free[2:8, 7] = free[7, 2:8] = False  # a wall that is open on the left
    joined = _pixels._joined_to_border(free)
    assert joined[4, 4]
    free[2:8, 1] = False  # closed
    assert not _pixels._joined_to_border(free)[4, 4]
    free[2, 1] = True  # a gap that only a diagonal step passes
    assert not _pixels._joined_to_border(free)[4, 4]


@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_what_has_no_plain_background_is_refused(kind: str) -> None:
    pixels = NOISE if kind == "noise" else np.full((40, 56, 3), 90, np.uint8)
    with pytest.raises(PictureError, match="--mask PIC"):
        _pixels.object_on_plain_background(Image.fromarray(pixels))


@pytest.mark.parametrize(("value", "words"), [(0, "nothing in it is white"), (1, "everything")])
def test_empty_and_full_masks_are_refused(value: int, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        _pixels.mask_of(np.full((40, 56), value, np.float32), Image.fromarray(NOISE), "--mask")


def test_masks_grow_and_shrink_by_pixels() -> None:
    mask = np.zeros((20, 20), np.float32)
    mask[8:12, 9:12] = 1
    grown = _pixels.grown(mask, 3)
    assert grown.sum() == (4 + 6) * (3 + 6)
    assert np.array_equal(_pixels.grown(grown, -3), mask)
    assert _pixels.box_of(mask) == (9, 8, 12, 12)


def test_what_is_pasted_is_exact_and_fades_outside() -> None:
    top, below = Image.fromarray(NOISE), Image.new("RGB", (56, 40), (0, 0, 0))
    mask = disc(56, 40, 10)
    result = _pixels.pasted(top, below, mask, feather=2)
    assert _pixels.largest_difference(result, top, mask) == 0
    far = 1 - (_pixels.grown(mask, 3) >= 0.5)
    assert _pixels.largest_difference(result, below, far) == 0
    ring = (_pixels.grown(mask, 1) >= 0.5) & (mask < 0.5)
    assert _pixels.pixels(result)[ring].mean() > 20
    hard = _pixels.pasted(top, below, mask, feather=0)
    assert _pixels.largest_difference(hard, below, 1 - mask) == 0


def test_the_ghost_of_an_object_is_removed_and_the_rest_stays() -> None:
    red, blue = (200, 30, 30), (30, 30, 200)
    ghost = np.full((64, 64, 3), blue, np.uint8)
    ghost[disc(64, 64, 22) >= 0.5] = red  # generated a little larger
    ghost[2:4, 2:4] = (0, 200, 0)
    top = np.full((64, 64, 3), 255, np.uint8)
    mask = disc(64, 64, 18)
    top[mask >= 0.5] = red
    below, over = Image.fromarray(ghost), Image.fromarray(top)
    clean = _pixels.pixels(_pixels.without_ghost(below, over, mask, 8))
    outside = mask < 0.5
    assert np.abs(clean[outside].astype(int) - blue).max(1)[5:].max() < 201  # the green dot stays
    assert (clean[2:4, 2:4] == (0, 200, 0)).all()
    left_over = np.square(clean[outside].astype(int) - red).sum(1) < 1000
    assert not left_over.any()


def test_a_seam_is_a_jump_at_the_edge() -> None:
    smooth = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    mask = disc(64, 64, 15)
    assert 0.5 < _pixels.seam(Image.fromarray(smooth), mask) < 1.5
    cut = smooth.copy()
    cut[mask >= 0.5] = np.clip(cut[mask >= 0.5].astype(int) + 60, 0, 255)
    assert _pixels.seam(Image.fromarray(cut), mask) > 4


def test_lightness_is_kept_whatever_the_colours() -> None:
    other = RNG.integers(0, 256, NOISE.shape, dtype=np.uint8)
    lightness = _pixels.lightness(Image.fromarray(NOISE))
    picture = _pixels.with_lightness(lightness, to_lab(other)[..., 1:])
    assert np.abs(_pixels.lightness(picture) - lightness).max() < 0.5
    assert _pixels.colourfulness(picture) > 20
    own = _pixels.with_lightness(lightness, to_lab(NOISE)[..., 1:])
    assert _pixels.largest_difference(own, Image.fromarray(NOISE), np.ones((40, 56))) <= 1


def test_lab_comes_back() -> None:
    assert np.abs(_pixels.from_lab(to_lab(NOISE)) - NOISE).max() < 1e-3


def test_matched_colours_have_the_statistics_of_the_style() -> None:
    soft = Image.fromarray((NOISE // 4 + 96).astype(np.uint8))
    style = Image.fromarray((NOISE[::-1] // 3 + np.array([80, 40, 10])).astype(np.uint8))
    before = _pixels.colour_distance(soft, style)
    assert _pixels.colour_distance(_pixels.matched_colours(soft, style), style) < before / 20


def test_chroma_follows_the_edges_of_the_guide() -> None:
    guide = np.zeros((64, 64, 3), np.uint8)
    guide[:, :32], guide[:, 32:] = 60, 190
    small = Image.new("RGB", (8, 8), (150, 60, 60))
    small.paste((60, 60, 150), (4, 0, 8, 8))
    blurred = small.resize((64, 64), Image.Resampling.BICUBIC)
    chroma = _pixels.fitted_chroma(blurred, Image.fromarray(guide), 16)
    plain = to_lab(_pixels.pixels(blurred))[..., 1:]
    step = np.abs(chroma[:, 32] - chroma[:, 31]).sum(-1).mean()
    assert step > 3 * np.abs(plain[:, 32] - plain[:, 31]).sum(-1).mean()
