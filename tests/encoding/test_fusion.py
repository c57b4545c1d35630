"""Several references, negative pictures, noise, text: the exact inputs of the projector."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import imageprompt as ip
from ids import stable
from imageprompt.core.errors import EncoderError, ImagePromptError, OptionError, PromptError
from imageprompt.encoding import fusion, text_encoder
from imageprompt.encoding.encoders.clip import ClipEncoder
from imageprompt.encoding.images.noise import KINDS, Noise
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.text_encoder import TextTower, open_text_encoder
from rigs import build, difference
from tiny_stack import make_pipeline, make_xl_pipeline

ROWS = ((3.0, -1.0, 0.0, 2.0), (4.0, 1.0, 0.0, -2.0), (0.0, 5.0, 0.0, 3.0))

# Computed by hand from ComfyUI_IPAdapter_plus' formulas: ROWS -> one row.
BY_HAND = {
    "add": (7.0, 5.0, 0.0, 3.0),
    "subtract": (3.0 - 2.0, -1.0 - 3.0, 0.0, 2.0 - 0.5),
    "average": (7 / 3, 5 / 3, 0.0, 1.0),
    "max": (4.0, 5.0, 0.0, 3.0),
    "min": (0.0, -1.0, 0.0, -2.0),
    # each number over sqrt of the sum of squares of its column: 5, sqrt(27), 0, sqrt(17)
    "norm average": (7 / 5 / 3, 5 / math.sqrt(27) / 3, 0.0, 3 / math.sqrt(17) / 3),
}

# The same formulas as in ComfyUI_IPAdapter_plus' combine node, on stacked features.
COMFYUI = {
    "add": lambda x: torch.sum(x, dim=0).unsqueeze(0),
    "subtract": lambda x: (x[0] - torch.mean(x[1:], dim=0)).unsqueeze(0),
    "average": lambda x: torch.mean(x, dim=0).unsqueeze(0),
    "norm average": lambda x: torch.mean(x / torch.norm(x, dim=0, keepdim=True), dim=0).unsqueeze(
        0
    ),
    "max": lambda x: torch.max(x, dim=0).values.unsqueeze(0),
    "min": lambda x: torch.min(x, dim=0).values.unsqueeze(0),
    "concat": lambda x: x,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    return make_pipeline()


@pytest.fixture(scope="module")
def xl() -> Any:
    torch.manual_seed(0)
    return make_xl_pipeline()


def attached(pipe: Any, variant: str = "base") -> Any:
    torch.manual_seed(1)
    options = {"depth": 1, "num_tokens": 4} if variant == "plus" else {}
    adapter = ip.Adapter.create(variant, denoiser=pipe, encoder=pipe.image_encoder, **options)
    for parameter in adapter.parameters():  # otherwise some features map to zero
        parameter.requires_grad_(False).add_(torch.randn_like(parameter) * 0.05)
    return adapter.attach(pipe, encoder=pipe.image_encoder)


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8))


# ── formulas ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BY_HAND)
def test_formulas_by_hand(name: str) -> None:
    found = fusion.fuse(torch.tensor(ROWS, dtype=torch.float64), name)
    assert found.shape == (1, 4)
    assert found[0].tolist() == pytest.approx(BY_HAND[name], abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 24), (2, 7, 16)], ids=["pooled", "patches"])
@pytest.mark.parametrize("name", COMFYUI)
def test_formulas_equal_comfyuis_exactly(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(fusion.fuse(x, name), COMFYUI[name](x))
    weights = torch.tensor([1.5, -0.5, 0.25][: len(x)])
    stretched = torch.stack([part * weight for part, weight in zip(x, weights, strict=True)])
    if name != "concat":
        assert torch.equal(fusion.fuse(x, name, weights), COMFYUI[name](stretched))
    assert torch.equal(fusion.fuse(x[:1], name), x[:1])  # a single reference does not change


def test_weighted_by_hand() -> None:
    x = torch.tensor(ROWS, dtype=torch.float64)
    found = fusion.fuse(x, "weighted", torch.tensor([1.0, 2.0, 1.0]))
    assert found[0].tolist() == pytest.approx([11 / 4, 6 / 4, 0.0, 1 / 4], abs=1e-12)
    equal = fusion.fuse(x, "weighted", torch.tensor([0.2, 0.2, 0.2]))
    assert equal[0].tolist() == pytest.approx(BY_HAND["average"], abs=1e-6)


def test_attention_weights_by_hand() -> None:
    """Cosines of 1, 0.6 and 0 with a text; of three vectors, those that agree weigh more."""
    x = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, -7.0]])
    exponents = [math.exp(s / fusion.TEMPERATURE) for s in (1.0, 0.6, 0.0)]
    expected = [e / sum(exponents) for e in exponents]
    assert fusion.attention_weights(x, torch.tensor([5.0, 0.0])).tolist() == pytest.approx(expected)
    means = ((0.6 + 0.0) / 2, (0.6 - 0.8) / 2, (0.0 - 0.8) / 2)
    exponents = [math.exp(s / fusion.TEMPERATURE) for s in means]
    expected = [e / sum(exponents) for e in exponents]
    assert fusion.attention_weights(x).tolist() == pytest.approx(expected)
    assert fusion.attention_weights(x[:1]).tolist() == [1.0]


# ── what is projected ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_the_fused_features_are_projected(kind: str, tmp_path: Path) -> None:
    rig = build("tiny", kind, tmp_path)
    a, b = rig.features(2, 3)
    null = rig.kind.null_features()
    for name, formula in COMFYUI.items():
        if name == "concat":
            continue
        prompt = rig.adapter.encode(features=[a, b], null_features=null, fusion=name)
        expected = rig.adapter.project(torch.cat([formula(a), formula(b)]))
        assert torch.equal(prompt.tokens, expected), name
        assert torch.equal(prompt.null_tokens, rig.adapter.project(null).expand_as(expected))
        assert prompt.metadata["fusion"] == name
        assert prompt.metadata["references"] == "2, 3"
        assert torch.equal(prompt.features[1], formula(b))
    beside = rig.adapter.encode(features=a, null_features=null)
    assert "fusion" not in beside.metadata
    assert difference(beside.tokens[0].reshape(2, -1), rig.adapter.project(a).flatten(1)) == 0


@pytest.mark.parametrize("name", ["average", "weighted", "attention-weighted"])
def test_a_batch_of_prompts_keeps_every_row(name: str, tmp_path: Path) -> None:
    """One, two and three references in a batch: each prompt equals the prompt made alone."""
    rig = build("tiny", "plus", tmp_path)
    features = rig.features(1, 2, 3)
    options: dict[str, Any] = {"fusion": name, "null_features": rig.kind.null_features()}
    weights = [[1.0], [0.5, 2.0], [3.0, 1.0, 1.0]] if name == "weighted" else None
    together = rig.adapter.encode(features=features, weights=weights, **options)
    precise = copy.deepcopy(rig.adapter)  # float32 rounds batches of other sizes differently
    precise.module.double()
    exact = precise.encode(features=[f.double() for f in features], weights=weights, **options)
    assert difference(together.tokens.double(), exact.tokens) < 1e-4
    for i, feature in enumerate(features):
        row = None if weights is None else weights[i]
        alone = precise.encode(features=feature.double(), weights=row, **options)
        assert difference(exact.tokens[i : i + 1], alone.tokens) < 1e-12
    inputs = rig.host.inputs(6)
    first = rig.ours(inputs, together)
    assert torch.isfinite(first).all()
    with pytest.raises(PromptError, match="fusion='average'"):
        rig.adapter.encode(features=features, null_features=options["null_features"])


def test_weights_of_references_side_by_side(pipe: Any) -> None:
    """They scale the tokens on both sides; one list serves all prompts, tiles share one weight."""
    adapter = attached(pipe)
    try:
        a, b = picture(1), picture(2)
        prompt = adapter.encode([a, b], weights=[1.0, 0.0])
        assert prompt.tokens[0, 4:].abs().max() == prompt.null_tokens[0, 4:].abs().max() == 0
        alone = adapter.encode([a])
        assert difference(prompt.tokens[:, :4], alone.tokens) < 1e-6
        assert difference(prompt.null_tokens[:, :4], alone.null_tokens) < 1e-6
        half = adapter.encode([b, a], weights=[1.0, 0.5])
        assert difference(half.tokens[:, 4:], alone.tokens / 2) < 1e-6
        both = adapter.encode([[a, b], [b, a]], weights=[0.5, 2.0])
        assert difference(both.tokens[1:], adapter.encode([b, a], weights=[0.5, 2.0]).tokens) < 1e-5
        wide = picture(3, 32, 16)
        tiles = adapter.encode([wide, b], framing="tiles", weights=[0.0, 1.0])
        assert tiles.tokens.shape[1] == 4 * (2 + 4)  # a square picture gives four
        assert tiles.tokens[0, :8].abs().max() == 0
        assert tiles.tokens[0, 8:].abs().amax(1).min() > 0.1
    finally:
        adapter.detach()


@pytest.mark.parametrize("variant", ["faceid", "faceid-plus-v2"])
def test_faces(variant: str, pipe: Any) -> None:
    """Both parts of a face are fused alike; formulas on single numbers are refused."""
    encoder = None if variant == "faceid" else pipe.image_encoder
    adapter = ip.Adapter.create(variant, denoiser=pipe, encoder=encoder)
    faces, patches = torch.randn(3, 512), torch.randn(3, 5, 32)
    given = faces if variant == "faceid" else (faces, patches)
    null = None if variant == "faceid" else (torch.zeros(1, 512), torch.zeros(1, 5, 32))
    for name in ("add", "subtract", "average", "norm average"):
        formula = COMFYUI[name]
        mean = formula(faces) if variant == "faceid" else (formula(faces), formula(patches))
        prompt = adapter.encode(features=given, null_features=null, fusion=name)
        assert torch.equal(prompt.tokens, adapter.project(mean))
    for wrong in (
        {"fusion": "max"},
        {"fusion": "attention-weighted", "text": torch.ones(512)},
        {"subtract_text": "a star"},
        {"noise": 0.5},
    ):
        with pytest.raises(OptionError):
            adapter.encode(features=given, null_features=null, **wrong)
    if variant == "faceid":
        with pytest.raises(OptionError, match="reads no picture"):
            adapter.encode(features=given, negative=picture(1))
        return
    adapter.attach(pipe, encoder=pipe.image_encoder)
    strong = adapter.encode(features=given, null_features=null, face_strength=2.5)
    assert torch.equal(strong.tokens[0], adapter.project(given, strength=2.5).flatten(0, 1))
    nulls = adapter.project(null, strength=2.5)[0].repeat(3, 1)
    assert difference(strong.null_tokens[0], nulls) < 1e-6
    prompt = adapter.encode(features=given, negative=[picture(1)])
    patches = adapter.encoder.encode([picture(1)], "hidden_states[-2]").expand(3, -1, -1)
    expected = adapter.project((torch.zeros(3, 512), patches)).reshape(1, 12, -1)
    assert torch.equal(prompt.null_tokens, expected)
    adapter.detach()


# ── the negative side ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_negative_pictures(variant: str, pipe: Any) -> None:
    """Its projected features replace the null tokens, paired with the references."""
    adapter = attached(pipe, variant)
    try:
        a, b, c, bad, worse = map(picture, range(5))

        def tokens(*shown: Image.Image) -> Tensor:
            features = adapter.encoder.encode(list(shown), adapter.spec.feature.image)
            found: Tensor = adapter.project(features)
            return found

        one = adapter.encode([a], negative=bad)
        assert torch.equal(one.null_tokens, tokens(bad))
        assert torch.equal(one.tokens, adapter.encode([a]).tokens)
        assert difference(one.null_tokens, adapter.encode([a]).null_tokens) > 1e-3
        three = adapter.encode([a, b, c], negative=[bad, worse])
        paired = tokens(bad, worse, worse).reshape(1, 12, -1)
        assert difference(three.null_tokens, paired) < 1e-6
        mean = adapter.encoder.encode([bad, worse], adapter.spec.feature.image).mean(
            0, keepdim=True
        )
        mixed = adapter.encode([a, b], fusion="average", negative=[bad, worse])
        assert difference(mixed.null_tokens, adapter.project(mean)) < 1e-6
        own = adapter.encode([[a], [b]], negative=[[bad], [worse]])
        assert difference(own.null_tokens, tokens(bad, worse)) < 1e-6
        with pytest.raises(PromptError, match="3 negative pictures for 2"):
            adapter.encode([a, b], negative=[bad, worse, bad])
        with pytest.raises(PromptError, match="for 3 prompts"):
            adapter.encode([[a], [b]], negative=[[bad], [worse], [bad]])
    finally:
        adapter.detach()


def test_a_negative_picture_reaches_the_negative_row_alone(pipe: Any) -> None:
    """Two prompts with guidance: each negative row equals a run with its picture as reference."""
    adapter = attached(pipe)
    try:
        a, b, bad, worse = map(picture, range(4))
        gen = torch.Generator().manual_seed(3)
        latents = torch.randn(2, 4, 8, 8, generator=gen).repeat(2, 1, 1, 1)
        text = torch.randn(4, 7, 32, generator=gen)

        def run(prompt: Any, rows: slice = slice(None), **use: Any) -> Tensor:
            with torch.no_grad(), adapter.use(prompt, **use):
                found: Tensor = pipe.unet(latents[rows], 5, text[rows]).sample
            return found

        plain = run(adapter.encode([[a], [b]]))
        found = run(adapter.encode([[a], [b]], negative=[[bad], [worse]]))
        assert difference(found[2:], plain[2:]) < 1e-6
        assert difference(found[:2], plain[:2]) > 1e-3
        alone = run(adapter.encode([[bad], [worse]]), slice(0, 2), guidance="none")
        assert difference(found[:2], alone) < 1e-5
    finally:
        adapter.detach()


def test_noise_on_the_negative_side(pipe: Any) -> None:
    adapter = attached(pipe)
    try:
        a, b = picture(1), picture(2)
        plain = adapter.encode([a, b])
        assert torch.equal(adapter.encode([a, b], noise=0.0).null_tokens, plain.null_tokens)
        noisy = adapter.encode([a, b], noise="fade:0.5", noise_seed=3)
        assert torch.equal(noisy.tokens, plain.tokens)
        shown = [Noise.parse(0.5).apply(x, 3 + i) for i, x in enumerate((a, b))]
        assert torch.equal(noisy.null_tokens, adapter.encode(shown).tokens)
        again = adapter.encode([a, b], noise=0.5, noise_seed=4)
        assert difference(again.null_tokens, noisy.null_tokens) > 1e-3
        batch = adapter.encode(
            [[b], [a]], noise=0.5, noise_seed=3
        )  # whatever its place in the batch
        assert difference(batch.null_tokens[1:], noisy.null_tokens[:, :4]) < 1e-6
        other = adapter.encode([b], noise=0.5, noise_seed=3, negative=a)
        assert difference(other.null_tokens, noisy.null_tokens[:, :4]) < 1e-6
        assert noisy.metadata["noise"] == "0.5, seed 3"
    finally:
        adapter.detach()


def test_kinds_of_noise() -> None:
    grey = Image.new("RGB", (64, 64), (51, 102, 204))
    x = np.asarray(grey) / 255
    for kind in KINDS:
        weak, strong = (np.asarray(Noise(kind=kind, strength=s).apply(grey, 1)) / 255
                        for s in (0.1, 0.9))  # fmt: skip
        assert np.abs(weak - x).mean() < np.abs(strong - x).mean(), kind
        assert np.array_equal(np.asarray(Noise(kind=kind).apply(grey, 1)), np.asarray(grey)), kind
        assert str(Noise.parse(f"{kind}:0.25")) == ("0.25" if kind == "fade" else f"{kind}:0.25")
    faded = np.asarray(Noise(strength=0.5).apply(grey, 1)) / 255
    assert np.allclose(faded.mean((0, 1)), x[0, 0] * 0.5 + 0.25, atol=0.01)
    assert np.allclose(faded.std((0, 1)), 0.5 / math.sqrt(12), atol=0.01)
    dissolved = np.asarray(Noise.parse("dissolve:0.3").apply(grey, 1))
    assert (dissolved != np.asarray(grey)).mean() == pytest.approx(0.3, abs=0.02)
    at_one = [np.asarray(Noise(strength=1.0).apply(p, 1)) for p in (grey, picture(1, 64, 64))]
    assert np.array_equal(*at_one)  # nothing of the picture is left


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def test_text_is_subtracted(xl: Any) -> None:
    """InstantStyle: image_embeds - s * text_embeds, not normalised, for every reference."""
    tower = (xl.text_encoder_2, xl.tokenizer_2)
    adapter = attached(xl)
    try:
        a, b = picture(1), picture(2)
        images = adapter.encoder.encode([a, b], "image_embeds")
        words = xl.encode_prompt("a star", num_images_per_prompt=1)[2]  # as InstantStyle reads it
        assert words.shape == (1, 24)
        found = adapter.encode(
            [a, b], subtract_text="a star", subtract_strength=0.4, text_encoder=tower
        )
        expected = adapter.project(images - 0.4 * words).reshape(1, 8, -1)
        assert difference(found.tokens, expected) < 1e-6
        assert torch.equal(found.null_tokens, adapter.encode([a, b]).null_tokens)
        assert found.metadata["subtract_text"] == "a star"
        ready = adapter.encode([a, b], subtract_text=words * 0.4)
        assert difference(ready.tokens, found.tokens) < 1e-6
        blue = TextTower(*tower).embed(["blue"])
        each = adapter.encode(
            [[a], [b]], subtract_text=["a star", "blue"], text_encoder=tower, fusion="average"
        )
        expected = adapter.project(images - torch.cat([words, blue]))
        assert difference(each.tokens, expected) < 1e-5
        near = adapter.encode([a, b], fusion="attention-weighted", text="blue", text_encoder=tower)
        shares = fusion.attention_weights(images, blue[0])
        expected = adapter.project((shares[:, None] * images).sum(0, keepdim=True))
        assert difference(near.tokens, expected) < 1e-6
    finally:
        adapter.detach()


def test_the_text_encoder_of_the_base(xl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used if it is known to share the space; equal widths are not enough."""
    encoder = ClipEncoder(xl.image_encoder, xl.feature_extractor)
    with pytest.raises(EncoderError, match="shares a space"):
        open_text_encoder(xl, encoder)
    trained_together = {(32, 2): ((32, 2), "tiny CLIP")}
    monkeypatch.setattr(text_encoder, "_TRAINED_TOGETHER", trained_together)
    assert open_text_encoder(xl, encoder).model is xl.text_encoder_2
    adapter = attached(xl)
    found = adapter.encode([picture(1)], subtract_text="a star")
    tower = (xl.text_encoder_2, xl.tokenizer_2)
    same = adapter.encode([picture(1)], subtract_text="a star", text_encoder=tower)
    assert torch.equal(found.tokens, same.tokens)
    adapter.detach()
    monkeypatch.setattr(text_encoder, "_TRAINED_TOGETHER", {(32, 2): ((32, 3), "another")})
    with pytest.raises(EncoderError, match="shares a space"):
        open_text_encoder(xl, encoder)


def test_the_published_families() -> None:
    """SDXL's second text encoder goes with bigG, not with ViT-H; shapes as published."""
    big = SimpleNamespace(config=SimpleNamespace(hidden_size=1664, num_hidden_layers=48))
    huge = SimpleNamespace(config=SimpleNamespace(hidden_size=1280, num_hidden_layers=32))
    second = SimpleNamespace(config=SimpleNamespace(hidden_size=1280, num_hidden_layers=32))
    tower = TextTower(second, None)
    assert text_encoder._family(tower, SimpleNamespace(model=big)) == "CLIP bigG"
    assert text_encoder._family(tower, SimpleNamespace(model=huge)) == ""


def test_a_stored_text_encoder(xl: Any, tmp_path: Path) -> None:
    xl.text_encoder_2.save_pretrained(tmp_path)
    xl.tokenizer_2.save_pretrained(tmp_path)
    encoder = ClipEncoder(xl.image_encoder)
    stored = open_text_encoder(tmp_path, encoder).embed(["a red star", "blue"])
    assert torch.equal(stored, TextTower(xl.text_encoder_2, xl.tokenizer_2).embed(
        ["a red star", "blue"]))  # fmt: skip
    with pytest.warns(UserWarning, match="truncated to 16"):
        TextTower(xl.text_encoder_2, xl.tokenizer_2).embed(["a red star " * 9])


# ── bad input ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "blend"},
        {"fusion": None},
        {"fusion": "weighted"},
        {"fusion": "attention-weighted", "weights": [1.0, 1.0]},
        {"weights": [1.0]},
        {"weights": [[1.0, 1.0], [1.0, 1.0]]},
        {"weights": [1.0, math.nan]},
        {"weights": [1.0, "2"]},
        {"weights": []},
        {"weights": 0.5},
        {"fusion": "weighted", "weights": [1.0, -1.0]},
        {"noise": 1.5},
        {"noise": math.nan},
        {"noise": "snow:0.5"},
        {"noise": 0.5, "noise_seed": -1},
        {"face_strength": 2.0},
        {"face_strength": math.nan},
        {"noise": 0.5, "null_features": torch.zeros(1, 24)},
        {"negative": []},
        {"negative": [picture(1)], "null_features": torch.zeros(1, 24)},
        {"negative": [picture(i) for i in range(3)]},
        {"framing": "stretch"},
        {"framing": 3},
        {"text": "a star"},
        {"subtract_text": "a star"},
        {"subtract_text": "a star", "subtract_strength": math.inf},
        {"subtract_text": "a star", "text_encoder": "nowhere"},
        {"subtract_text": "a star", "text_encoder": (1, 2)},
        {"subtract_text": torch.zeros(3, 24)},
        {"subtract_text": torch.zeros(25)},
    ],
    ids=stable,
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], pipe: Any) -> None:
    adapter = attached(pipe)
    try:
        with pytest.raises(ImagePromptError) as caught:
            adapter.encode([picture(1), picture(2)], **options)
        assert "\n" not in str(caught.value)
    finally:
        adapter.detach()


def test_options_that_need_pictures(tmp_path: Path) -> None:
    rig = build("tiny", "plus", tmp_path)
    (feature,) = rig.features(2)
    null = rig.kind.null_features()
    for options in (
        {"framing": "squash"},
        {"reference_mask": np.ones((8, 8))},
        {"fusion": "attention-weighted", "text": "a star"},
        {"fusion": "attention-weighted", "text": torch.ones(24)},
        {"subtract_text": "a star"},
    ):
        with pytest.raises(ImagePromptError) as caught:
            rig.adapter.encode(features=feature, null_features=null, **options)
        assert "\n" not in str(caught.value)


def test_options_as_metadata() -> None:
    options = EncodeOptions.of(
        fusion="norm-average", weights=[1, 0.25], framing="crop:top+sharpen:0.3", noise=0.4
    )
    assert options.as_metadata() == {
        "fusion": "norm average",
        "weights": "1, 0.25",
        "framing": "crop:top+sharpen:0.3",
        "noise": "0.4, seed 0",
    }
    assert EncodeOptions.of().as_metadata() == {}
