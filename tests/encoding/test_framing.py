"""Framing: the encoder receives exactly the pixels that a framing promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import imageprompt as ip
from ids import stable
from imageprompt.core.errors import EncoderError, ImagePromptError, OptionError
from imageprompt.encoding.encoders.clip import ClipEncoder
from imageprompt.encoding.images.framing import Framing, sharpen, tiled
from imageprompt.encoding.images.open_image import open_picture
from imageprompt.encoding.references import References
from tiny_stack import SIDE, make_pipeline

RED, GREEN, BLUE = (200, 10, 20), (10, 180, 30), (20, 30, 220)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def stripes(width: int = 96, height: int = 32, *, upright: bool = False) -> Image.Image:
    """Three bars side by side, red, green, blue; one below the other when upright."""
    x = np.zeros((height, width, 3), np.uint8)
    for i, colour in enumerate((RED, GREEN, BLUE)):
        x[:, i * width // 3 : (i + 1) * width // 3] = colour
    return Image.fromarray(x.transpose(1, 0, 2) if upright else x)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


class Spied:
    """An adapter on a tiny pipeline that records the last pixels its encoder's model received."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        pipe = make_pipeline()
        self.adapter = ip.Adapter.create("base", denoiser=pipe, encoder=pipe.image_encoder)
        encoder = ClipEncoder(pipe.image_encoder, pipe.feature_extractor)
        self.adapter.attach(pipe, encoder=encoder)
        self.normalised = torch.empty(0)
        encoder.model.register_forward_pre_hook(self._keep)

    def _keep(self, _: Any, pixels: tuple[Tensor, ...]) -> None:
        (self.normalised,) = pixels

    def pixels(self, pictures: Any, **options: Any) -> np.ndarray:
        """The pixels that the model reads, scaled back to 0..255: [n, S, S, 3]."""
        self.adapter.encode(pictures, **options)
        shown = self.normalised.permute(0, 2, 3, 1).double().numpy()
        return (shown * STD + MEAN) * 255


@pytest.fixture(scope="module")
def spied() -> Spied:
    return Spied()


# ── parsing ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("squash", Framing(how="squash")),
        ("crop", Framing()),
        ("crop:top", Framing(position=(0.5, 0.0))),
        ("crop:right", Framing(position=(1.0, 0.5))),
        ("crop:0.2,0.7", Framing(position=(0.2, 0.7))),
        ("pad", Framing(how="pad")),
        ("pad:white", Framing(how="pad", colour="white")),
        ("pad:#102030+lanczos", Framing(how="pad", colour="#102030", filter="lanczos")),
        ("tiles+sharpen:0.3", Framing(how="tiles", sharpen=0.3)),
        (
            "squash+sharpen:0.3+box+detail:2",
            Framing(how="squash", sharpen=0.3, filter="box", detail=2),
        ),
        ("crop:0.123456789,1.0", Framing(position=(0.123456789, 1.0))),
    ],
)
def test_parse_and_str_are_inverses(text: str, made: Framing) -> None:
    assert Framing.parse(text) == made
    assert str(made) == text
    assert Framing.parse(f" {text.upper()} ") == made


@pytest.mark.parametrize(
    "text",
    [
        *("", "stretch", "crop:middle", "crop:0.5", "crop:0.5,1.5", "crop:nan,0", "squash:left"),
        *("pad:plaid", "crop+sharpen", "crop+sharpen:2", "crop+sharpen:x", "crop+cubic", "tiles:4"),
        *("crop+detail", "crop+detail:5", "crop+detail:0", "crop+detail:x"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Framing.parse(text)
    assert "\n" not in str(caught.value)


# ── pixels ───────────────────────────────────────────────────────────────────────────────

CROPS = {"crop:left": RED, "crop": GREEN, "crop:right": BLUE, "crop:0.0,0.5": RED}


@pytest.mark.parametrize("filter_", ["", "+lanczos", "+nearest"])
@pytest.mark.parametrize("words", CROPS)
def test_crops(words: str, filter_: str, spied: Spied) -> None:
    """A square of the height: exactly one bar, to the last pixel of its edges."""
    shown = spied.pixels([stripes()], framing=words + filter_)
    assert shown.shape == (1, SIDE, SIDE, 3)
    assert np.abs(shown - CROPS[words]).max() < 1e-3
    upright = words.replace("left", "top").replace("right", "bottom").replace("0.0,0.5", "0.5,0.0")
    shown = spied.pixels([stripes(upright=True)], framing=upright + filter_)
    assert np.abs(shown - CROPS[words]).max() < 1e-3


def test_any_position(spied: Spied) -> None:
    """A quarter of the way from the left: half of red, half of green."""
    shown = spied.pixels([stripes()], framing="crop:0.25,0.5+nearest")[0]
    assert np.abs(shown[:, : SIDE // 2] - RED).max() < 1e-3
    assert np.abs(shown[:, SIDE // 2 :] - GREEN).max() < 1e-3


def test_squash_keeps_the_whole_picture(spied: Spied) -> None:
    """The author's advice: a plain resize to the encoder's square."""
    wide = noise(61, 24)
    shown = spied.pixels([wide], framing="squash")[0]
    plain = np.asarray(wide.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    assert np.abs(shown - plain).max() < 1e-3


@pytest.mark.parametrize(("words", "bars"), [("pad", (0, 0, 0)), ("pad:#ffcc00", (255, 204, 0))])
def test_pad_keeps_the_whole_picture_undistorted(words: str, bars: Any, spied: Spied) -> None:
    shown = spied.pixels([stripes(48, 24)], framing=words + "+box")[0]
    quarter = SIDE // 4
    assert np.abs(shown[:quarter] - bars).max() < 1e-3
    assert np.abs(shown[-quarter:] - bars).max() < 1e-3
    middle = shown[quarter:-quarter]
    assert np.abs(middle[:, :5] - RED).max() < 1e-3
    assert np.abs(middle[:, -5:] - BLUE).max() < 1e-3


def test_without_framing_the_encoder_preprocesses(spied: Spied) -> None:
    """CLIP's own processor to the bit; "crop" is the same square, apart from rounding."""
    for picture in (noise(40, 23), noise(16, 16), noise(31, 50)):
        own = spied.adapter.encoder.preprocess([picture])
        spied.adapter.encode([picture])
        assert torch.equal(spied.normalised, own)
    smooth = noise(9, 3).resize((960, 320), Image.Resampling.BICUBIC)
    shown = [spied.pixels([smooth], **options) for options in ({}, {"framing": "crop"})]
    assert np.abs(shown[0] - shown[1]).max() < 3


# Boxes of ComfyUI_IPAdapter_plus' tiled node, which it cuts from a picture scaled to tiles of 256
# pixels; here as shares of the short side: (width, height) -> left and top of each tile.
TILES = {
    (512, 512): ([0, 0.5, 0, 0.5], [0, 0, 0.5, 0.5]),
    (600, 512): ([44 / 512, 0.5 + 44 / 512] * 2, [0, 0, 0.5, 0.5]),
    (1024, 512): ([0, 1], [0, 0]),
    (1280, 512): ([0, 0.75, 1.5], [0, 0, 0]),
    (512, 1792): ([0] * 4, [0, 2.5 / 3, 5 / 3, 2.5]),
    (3072, 512): ([1, 2, 3, 4], [0] * 4),  # longer than 1:4: its ends are cut off
}


@pytest.mark.parametrize("size", TILES, ids=stable)
def test_tiles(size: tuple[int, int]) -> None:
    boxes = Framing(how="tiles").boxes(*size)
    short = min(size)
    lefts, tops = TILES[size]
    assert [box[0] / short for box in boxes] == pytest.approx(lefts, abs=1 / short)
    assert [box[1] / short for box in boxes] == pytest.approx(tops, abs=1 / short)
    side = 0.5 if max(size) < 1.33 * short else 1.0
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == pytest.approx((side * short, side * short))
        assert left >= 0
        assert top >= 0
        assert right <= size[0]
        assert bottom <= size[1]


def test_tiles_are_references(spied: Spied) -> None:
    shown = spied.pixels([stripes()], framing="tiles")
    for pixels, colour in zip(shown, (RED, GREEN, BLUE), strict=True):
        assert np.abs(pixels - colour).max() < 1e-3
    prompt = spied.adapter.encode([stripes(), stripes(64, 32)], framing="tiles")
    assert prompt.tokens.shape[1] == 4 * (3 + 2)
    one = spied.adapter.encode([[stripes()], [stripes(64, 32)]], framing="tiles", fusion="average")
    assert one.tokens.shape[:2] == (2, 4)


def test_tiles_with_masks_of_their_places() -> None:
    """Pasted back to their masks, the tiles are the picture."""
    for size in ((90, 30), (75, 30), (30, 90), (64, 60)):
        picture = noise(*size)
        pairs = tiled(picture)
        whole = Image.new("RGB", pairs[0][1].size)
        for tile, mask in pairs:
            assert mask.getbbox() is not None
            assert tile.size == (mask.getbbox()[2] - mask.getbbox()[0],) * 2
            whole.paste(tile, mask.getbbox())
            assert set(mask.get_flattened_data()) <= {0, 255}
        shown = picture.crop((2, 0, 62, 60)) if size == (64, 60) else picture
        assert np.array_equal(np.asarray(whole), np.asarray(shown))


def test_detail_is_a_second_reference(spied: Spied) -> None:
    """The whole, and its quarters: each encoded alone, assembled, and pooled to the size of one.

    As ComfyUI_IPAdapter_plus' enhancer merges hidden states, number by number.
    """
    encoder, picture = spied.adapter.encoder, noise(2 * SIDE, 2 * SIDE)
    references = References.open([picture], encoder, Framing.parse("crop+detail:2"))
    assert [square.size for square in references.pictures[0]] == [(SIDE, SIDE)] * 5
    quarters = [picture.crop((x, y, x + SIDE, y + SIDE)) for y in (0, SIDE) for x in (0, SIDE)]
    features = encoder.encode(quarters, "hidden_states[-2]")
    whole, parts = references.encode(encoder, "hidden_states[-2]")[0]
    own = encoder.encode(
        [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)], "hidden_states[-2]"
    )
    assert torch.allclose(whole, own[0], atol=1e-5)
    assert torch.allclose(parts[0], features[:, 0].mean(0), atol=1e-5)
    g = 2  # patches a side
    for y in range(g):
        for x in range(g):  # patch (y, x) of one picture covers 2 x 2 patches of the quarters
            covered = [(2 * y + i, 2 * x + j) for i in range(2) for j in range(2)]
            mean = sum(
                features[(row // g) * 2 + column // g, 1 + (row % g) * g + column % g]
                for row, column in covered
            )
            assert torch.allclose(parts[1 + y * g + x], mean / 4, atol=1e-5)
    embeddings = encoder.encode(quarters, "image_embeds").mean(0)
    assert torch.allclose(references.encode(encoder, "image_embeds")[0][1], embeddings, atol=1e-5)
    prompt = spied.adapter.encode([picture, stripes()], framing="tiles+detail:2", weights=[1, 0])
    assert prompt.tokens.shape[1] == 4 * 2 * (4 + 3)  # tiles, each whole and in detail
    assert prompt.tokens[0, 32:].abs().max() == 0
    one = spied.adapter.encode([picture], framing="crop+detail:2", fusion="average", noise=0.2)
    assert one.tokens.shape == one.null_tokens.shape == (1, 4, 32)


def test_an_upright_picture_is_framed_upright(spied: Spied) -> None:
    """EXIF orientation is applied before the crop."""
    lying = stripes()
    exif = Image.Exif()
    exif[274] = 6  # turned 90 degrees clockwise: red moves to the top
    lying.info["exif"] = exif.tobytes()
    lying.getexif()[274] = 6
    assert open_picture(lying).size == (32, 96)
    shown = spied.pixels([lying], framing="crop:top")
    assert np.abs(shown - RED).max() < 1e-3


# ── sharpening ──────────────────────────────────────────────────────────────────────────────────


def by_hand(x: np.ndarray, amount: float) -> np.ndarray:
    """Contrast-adaptive sharpening, pixel by pixel, as ComfyUI_IPAdapter_plus defines it."""
    rows, columns = x.shape[:2]
    out = np.zeros_like(x)

    def at(i: int, j: int, c: int) -> float:
        return float(x[i, j, c]) if 0 <= i < rows and 0 <= j < columns else 0.0

    for i in range(rows):
        for j in range(columns):
            for c in range(3):
                around = [at(i - 1, j, c), at(i, j - 1, c), at(i, j + 1, c), at(i + 1, j, c)]
                corner = [at(i + a, j + b, c) for a in (-1, 1) for b in (-1, 1)]
                low = min(*around, at(i, j, c)) + min(corner)
                high = max(*around, at(i, j, c)) + max(corner)
                if high == 0:
                    continue
                w = -math.sqrt(min(low, 2 - high) / high) * (amount * (1 / 5 - 1 / 8) + 1 / 8)
                out[i, j, c] = min(max((sum(around) * w + at(i, j, c)) / (1 + 4 * w), 0.0), 1.0)
    return out


@pytest.mark.parametrize("amount", [0.05, 0.5, 1.0])
def test_sharpening(amount: float) -> None:
    soft = noise(6, 5).resize((12, 9), Image.Resampling.BICUBIC)
    found = np.asarray(sharpen(soft, amount)).astype(int)
    expected = np.round(by_hand(np.asarray(soft) / 255, amount) * 255)
    # single precision sometimes rounds the other way
    assert (found != expected).mean() < 0.01
    assert np.abs(found - expected).max() <= 1
    flat = np.asarray(sharpen(Image.new("RGB", (8, 8), GREEN), amount))
    assert (flat[1:-1, 1:-1] == GREEN).all()
    assert not np.asarray(sharpen(Image.new("RGB", (8, 8)), amount)).any()


def test_sharpening_reaches_the_encoder(spied: Spied) -> None:
    soft = noise(8, 8).resize((64, 64), Image.Resampling.BICUBIC)
    plain, sharp = (spied.pixels([soft], framing=w)[0] for w in ("crop", "crop+sharpen:1"))
    assert np.abs(np.diff(sharp, axis=0)).mean() > 1.1 * np.abs(np.diff(plain, axis=0)).mean()


# ── masks on references ─────────────────────────────────────────────────────────────────────────


def test_black_parts_of_a_mask_are_hidden(spied: Spied) -> None:
    """Normalised pixels times the mask: hidden parts have the mean colour, as in ComfyUI."""
    picture = noise(SIDE, SIDE)
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[:, : SIDE // 2] = 1
    shown = spied.pixels([picture], reference_mask=mask)[0]
    assert np.abs(shown[:, : SIDE // 2] - np.asarray(picture)[:, : SIDE // 2]).max() < 1e-3
    assert np.abs(shown[:, SIDE // 2 :] - MEAN * 255).max() < 1e-3
    grey = Image.fromarray(np.full((SIDE, SIDE), 51, np.uint8))
    shown = spied.pixels([picture], reference_mask=grey)[0]
    assert np.abs(shown - (np.asarray(picture) * 0.2 + MEAN * 255 * 0.8)).max() < 1e-3


def test_a_white_mask_changes_nothing(spied: Spied) -> None:
    picture = noise(40, 24)
    plain = spied.adapter.encode([picture])
    white = spied.adapter.encode([picture], reference_mask=np.ones((24, 40)))
    assert torch.equal(plain.tokens, white.tokens)
    assert white.metadata["reference_mask"] == "yes"


@pytest.mark.parametrize("words", ["crop:left", "squash", "pad", "tiles"])
def test_a_mask_is_framed_like_its_picture(words: str, spied: Spied) -> None:
    """It hides the green bar wherever the framing puts it."""
    hidden = np.asarray(stripes()).argmax(-1) != 1
    painted = Image.fromarray(np.dstack([np.asarray(stripes()), hidden * np.uint8(255)]))
    for mask in (hidden.astype(np.float32), painted):
        shown = spied.pixels([stripes()], framing=words + "+nearest", reference_mask=mask)
        plain = spied.pixels([stripes()], framing=words + "+nearest")
        green = np.abs(plain - GREEN).max(-1) < 1
        assert np.abs(shown[green] - MEAN * 255).max(initial=0) < 1e-3
        bars = np.abs(plain).max(-1) < 1  # of pad
        assert np.abs(shown[bars] - MEAN * 255).max(initial=0) < 1e-3
        rest = ~green & ~bars
        assert np.abs(shown[rest] - plain[rest]).max() < 1e-3
        assert green.any() == (words != "crop:left")


def test_masks_that_do_not_fit(spied: Spied) -> None:
    a, b = noise(40, 24), noise(24, 24)
    good = [np.ones((24, 40)), np.ones((12, 12))]  # a smaller mask of the same shape is scaled
    assert len(spied.pixels([a, b], reference_mask=good)) == 2
    assert len(spied.pixels([[a], [b]], reference_mask=[[good[0]], [good[1]]])) == 2
    same = [spied.pixels([b, b], reference_mask=mask) for mask in (good[1], good[1:])]
    assert np.array_equal(*same)
    for wrong in (good[:1], [*good, good[0]], good[::-1], [[good[0]]], np.ones((24, 24)), "none"):
        with pytest.raises(ImagePromptError) as caught:
            spied.adapter.encode([a, b], reference_mask=wrong)
        assert "\n" not in str(caught.value)


def test_an_encoder_that_hides_its_pixels(spied: Spied) -> None:
    class Closed:
        """The Encoder protocol and nothing more."""

        image_size, fingerprint = SIDE, "none"

        def width(self, _: str) -> int:
            return 24

        def encode(self, pictures: Any, _: str) -> Tensor:
            return torch.ones(len(pictures), 24)

        def encode_null(self, _: str) -> Tensor:
            return torch.zeros(1, 24)

    pipe = make_pipeline()
    adapter = ip.Adapter.create("base", denoiser=pipe, encoder=Closed()).attach(pipe, Closed())
    assert adapter.encode([noise(40, 24)], framing="squash").tokens.shape[1] == 4
    with pytest.raises(EncoderError, match="gives no access to its pixels"):
        adapter.encode([noise(40, 24)], reference_mask=np.ones((24, 40)))
