"""Region masks: equal to those of diffusers, and everything that counts as a mask."""

from __future__ import annotations

import copy
import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ids import stable
from imageprompt.attention.batched_kv import level_sizes, resize_mask
from imageprompt.core.errors import GuidanceError, ImagePromptError
from imageprompt.encoding.masks import open_mask, open_masks
from peer import diffusers_embeds, diffusers_load
from rigs import Rig, build, difference

TOLERANCE = 1e-5
SIZES = [(8, 8), (8, 12), (16, 8), (7, 9), (5, 13)]
"""Sizes of latents; the last ones have levels that are rounded up."""


def left(height: int, width: int) -> Tensor:
    """1 on the left, 0 on the right, with an edge that is on no level's grid."""
    mask = torch.zeros(height, width)
    mask[:, : width * 5 // 9] = 1
    return mask


def prepared(mask: Tensor) -> Tensor:
    """In the form of diffusers: by its own processor, which does not change this size."""
    from diffusers.image_processor import IPAdapterMaskProcessor

    picture = Image.fromarray((mask.numpy() * 255).astype("uint8"))
    made: Tensor = IPAdapterMaskProcessor(vae_scale_factor=1).preprocess(picture)
    return made  # [1, 1, H, W]


def inputs_of(rig: Rig, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    inputs = rig.host.inputs(batch)
    gen = torch.Generator().manual_seed(2)
    half = torch.randn(batch // 2, rig.host.channels, *size, generator=gen)
    inputs["sample"] = half.repeat(2, 1, 1, 1)  # as guidance stacks them
    return inputs


def theirs(
    rig: Rig, inputs: dict[str, Any], adapters: list[Rig], embeds: list[Tensor], masks: list[Tensor]
) -> Tensor:
    """The output of diffusers: one mask [1, pictures, H, W] for each adapter."""
    unet = diffusers_load(copy.deepcopy(rig.unet), *(each.state for each in adapters))
    added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": embeds}
    return rig.host.read(
        unet,
        {**inputs, "added_cond_kwargs": added},
        cross_attention_kwargs={"ip_adapter_masks": masks},
    )


def ours(rig: Rig, inputs: dict[str, Any], uses: list[tuple[Rig, Any, dict[str, Any]]]) -> Tensor:
    """Several references with controls of their own, at scale 1, on the first rig's denoiser."""
    adapters = {id(each): each.adapter for each, _, _ in uses}
    for adapter in adapters.values():
        adapter.attach(rig.unet)
    try:
        with ExitStack() as stack:
            for each, prompt, use in uses:
                stack.enter_context(each.adapter.use(prompt, **{"scale": 1.0, **use}))
            return rig.host.read(rig.unet, inputs)
    finally:
        for adapter in adapters.values():
            adapter.detach()


# ── against diffusers ───────────────────────────────────────────────────────────────────────────


@pytest.mark.sample(5)
@pytest.mark.parametrize("size", SIZES[:4], ids=stable)
@pytest.mark.parametrize("host", ["sd15", "sdxl"])
def test_one_mask(host: str, size: tuple[int, int], tmp_path: Path) -> None:
    rig = build(host, "plus", tmp_path)
    inputs = inputs_of(rig, 2, size)
    mask = left(8 * size[0], 8 * size[1])
    embeds = diffusers_embeds(rig.features(1), rig.kind.null_features())
    expected = theirs(rig, inputs, [rig], [embeds], [prepared(mask)])
    found = ours(rig, inputs, [(rig, rig.prompt(1), {"mask": mask})])
    assert difference(found, expected) <= TOLERANCE
    unmasked = ours(rig, inputs, [(rig, rig.prompt(1), {})])
    assert difference(found, unmasked) > 1e-2


def test_several_pictures_with_their_own_masks(tmp_path: Path) -> None:
    """Two pictures of one adapter, left and right: two uses here, a picture axis there."""
    rig = build("sd15", "base", tmp_path)
    inputs = inputs_of(rig, 2, (8, 12))
    mask = left(64, 96)
    masks = [mask, 1 - mask]
    both = rig.features(2)
    embeds = diffusers_embeds(both, rig.kind.null_features())
    expected = theirs(
        rig, inputs, [rig], [embeds], [torch.cat([prepared(m) for m in masks], dim=1)]
    )
    prompts = [
        rig.adapter.encode(features=[both[0][i : i + 1]], null_features=rig.kind.null_features())
        for i in range(2)
    ]
    uses = [(rig, p, {"mask": m}) for p, m in zip(prompts, masks, strict=True)]
    assert difference(ours(rig, inputs, uses), expected) <= TOLERANCE


def test_several_adapters_with_their_own_masks(tmp_path: Path) -> None:
    one = build("sd15", "plus", tmp_path)
    two = build("sd15", "base", tmp_path, seed=13)
    inputs = inputs_of(one, 2, (8, 8))
    mask = left(64, 64)
    embeds = [diffusers_embeds(r.features(1), r.kind.null_features()) for r in (one, two)]
    expected = theirs(one, inputs, [one, two], embeds, [prepared(mask), prepared(1 - mask)])
    uses: list[tuple[Rig, Any, dict[str, Any]]] = [
        (one, one.prompt(1), {"mask": mask}),
        (two, two.prompt(1), {"mask": 1 - mask}),
    ]
    assert difference(ours(one, inputs, uses), expected) <= TOLERANCE


# ── the whole picture, and none of it ───────────────────────────────────────────────────────────


def test_white_is_no_mask_and_black_is_the_base(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    white = ours(rig, inputs, [(rig, rig.prompt(1), {"mask": np.ones((64, 64))})])
    assert difference(white, ours(rig, inputs, [(rig, rig.prompt(1), {})])) <= TOLERANCE
    with pytest.warns(UserWarning, match="its reference has no effect"):
        black = ours(rig, inputs, [(rig, rig.prompt(1), {"mask": np.zeros((64, 64))})])
    assert torch.equal(black, rig.host.read(rig.unet, inputs))


@pytest.mark.parametrize("size", SIZES, ids=stable)
def test_sizes_are_the_latents_own(size: tuple[int, int]) -> None:
    """Every level gets its own rows and columns, whatever the aspect of the mask."""
    mask = torch.rand(1, 1, 40, 40)
    for height, width in level_sizes(*size):
        found = resize_mask(mask, size, height * width)
        expected = F.interpolate(mask, size=(height, width), mode="bicubic")
        assert torch.equal(found, expected.reshape(1, 1, height * width, 1))
    with pytest.raises(GuidanceError, match="no level"):
        resize_mask(mask, size, 7777)


def test_the_levels_of_real_denoisers(tmp_path: Path) -> None:
    """Queries at every site are those of a level, for odd latents too."""
    for host, size in (("sd15", (5, 13)), ("sdxl", (9, 7)), ("motion", (5, 7))):
        rig = build(host, "base", tmp_path)
        inputs = rig.host.inputs(2)
        shape = (*inputs["sample"].shape[:-2], *size)
        inputs["sample"] = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        found = ours(rig, inputs, [(rig, rig.prompt(1), {"mask": left(50, 70)})])
        assert difference(found, ours(rig, inputs, [(rig, rig.prompt(1), {})])) > 1e-3


@pytest.mark.parametrize("host", ["sd15", "motion"])
def test_one_mask_for_each_prompt(host: str, tmp_path: Path) -> None:
    """A batch of two prompts, two pictures each: every row equals its own run."""
    rig = build(host, "base", tmp_path)
    masks = [left(64, 64), 1 - left(96, 96)]
    inputs = rig.host.inputs(8)
    found = ours(
        rig,
        inputs,
        [(rig, rig.prompt(1, 1), {"mask": masks, "guidance": "negative-positive"})],
    )
    prompts = [
        rig.adapter.encode(features=[f], null_features=rig.kind.null_features())
        for f in rig.features(1, 1)
    ]
    frames = max(rig.host.frames, 1)
    for row, which in ((0, 0), (3, 1), (4, 0), (7, 1)):
        alone = dict(inputs)
        pair = [row % 4, 4 + row % 4]
        alone["sample"] = inputs["sample"][pair]
        text = inputs["encoder_hidden_states"].unflatten(0, (8, frames))
        alone["encoder_hidden_states"] = text[pair].flatten(0, 1)
        expected = ours(rig, alone, [(rig, prompts[which], {"mask": masks[which]})])
        assert difference(found[[row]], expected[[0 if row < 4 else 1]]) <= TOLERANCE


def test_resized_once_for_each_resolution(tmp_path: Path) -> None:
    """Masks [1, 1, Q, 1] are resized in the first call and looked up in later ones."""
    from ops import count

    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(2)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), mask=left(64, 64)) as handle:
        first = count(lambda: rig.host.read(rig.unet, inputs))
        second = count(lambda: rig.host.read(rig.unet, inputs))
        cached = {q: tuple(mask.shape) for q, mask in handle._batch._resized_masks.items()}
    assert cached == {q: (1, 1, q, 1) for q in (64, 16, 4, 1)}
    resized = [sum(n for name, n in c.items() if "bicubic" in str(name)) for c in (first, second)]
    assert resized == [4, 0]


# ── what counts as a mask ───────────────────────────────────────────────────────────────────────


def test_open_mask(tmp_path: Path) -> None:
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    expected = half / np.float32(255)
    grey = Image.fromarray(half)
    painted = Image.merge("RGBA", [Image.new("L", (16, 16), 90)] * 3 + [grey])
    opaque = grey.convert("RGBA")  # as many programs save a black and white picture
    path = tmp_path / "mask.png"
    painted.save(path)
    stream = io.BytesIO()
    grey.save(stream, "PNG")
    sources: list[Any] = [grey, painted, opaque, grey.convert("1"), path, str(path)]
    sources += [
        stream.getvalue(),
        half,
        half > 0,
        expected,
        torch.tensor(expected),
        expected.tolist(),
    ]
    sources += [half[None], half[:, :, None], torch.tensor(half)[None], (half > 0).astype(np.uint8)]
    for source in sources:
        found = open_mask(source)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected), type(source)
    assert open_mask(Image.new("L", (8, 8), 51))[0, 0] == np.float32(0.2)
    deep = Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))  # 16-bit grey
    assert open_mask(deep)[0, 0] == np.float32(0.2)
    assert np.array_equal(open_mask(painted.convert("LA").convert("La")), expected)


def test_open_masks() -> None:
    one, two = np.ones((8, 8)), np.ones((9, 9))
    assert [m.shape for m in open_masks(one, 3)] == [(8, 8)]
    assert [m.shape for m in open_masks([one, two], 2)] == [(8, 8), (9, 9)]
    assert [m.shape for m in open_masks([[0, 1], [1, 0]], 5)] == [(2, 2)]


WRONG: list[tuple[Any, str]] = [
    ([], "empty"),
    ([np.ones((8, 8))] * 3, "3 masks for 1 prompt(s)"),
    (np.ones((2, 8, 8)), "[height, width]"),
    (np.ones((0, 8)), "[height, width]"),
    (np.full((8, 8), np.nan), "0 to 1, or 0 to 255"),
    (np.full((8, 8), -0.1), "0 to 1, or 0 to 255"),
    (np.full((8, 8), 300), "0 to 1, or 0 to 255"),
    ([[1, 2], [3]], "array of numbers"),
    ("nowhere.png", "no such file"),
    (b"no picture", "cannot be read"),
    (3, "[height, width]"),
    (object(), "array of numbers"),
]


@pytest.mark.parametrize(("mask", "says"), WRONG, ids=stable)
def test_bad_input(mask: Any, says: str, tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    with pytest.raises(ImagePromptError) as caught, rig.adapter.use(rig.prompt(1), mask=mask):
        pass
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_where_queries_match_no_level(tmp_path: Path) -> None:
    """Refused, with the numbers."""
    rig = build("tiny", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), mask=left(64, 64)) as handle:
        rig.host.read(rig.unet, rig.host.inputs(2))
        with pytest.raises(GuidanceError, match="no level of latents of 8x8"):
            handle.term(0, torch.zeros(2, 4, 63, 8))


def test_an_opened_mask_warns_where_it_is_used_alone(recwarn: pytest.WarningsRecorder) -> None:
    none = open_mask(np.zeros((2, 2)))
    assert not recwarn
    with pytest.warns(UserWarning, match="black all over: nothing changes"):
        open_mask(none, if_black="nothing changes")
