"""Feature extractors: preprocessing to the pixel, networks beside their originals, refusals.

The numbers come from torchvision's transforms and networks, pytorch-fid, lpips, the code of SSCD
and of CSD, and imagehash, which ran on the same pictures and weights when the tests were written.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import published_networks as networks
from face_finder import embedding, install
from face_finder import picture as faces_picture
from imageprompt.core.errors import EncoderError, NotFoundError
from imageprompt.demo import scenes
from imageprompt.evaluation.extractors import (
    EXTRACTORS,
    Extractor,
    PairBackbone,
    TextExtractor,
    _inception,
    _lpips,
)
from imageprompt.evaluation.extractors._inception import prepared
from imageprompt.evaluation.extractors._tower import TwoTowers, described
from imageprompt.evaluation.extractors._weights import MARK, PREFIX
from imageprompt.evaluation.extractors.dino import dino_processor
from tiny_stack import make_tokenizer

Close = pytest.approx


def textured(height: int, width: int) -> Image.Image:
    """Smooth colours and noise."""
    draw = np.random.default_rng(height)
    few = draw.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    smooth = Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth) + draw.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def blocks() -> list[Any]:
    """Two pictures of 8-pixel squares, [72, 104, 3]."""
    draw = np.random.default_rng(5)
    small = [draw.integers(0, 256, (9, 13, 3), dtype=np.uint8) for _ in range(2)]
    return [one.repeat(8, 0).repeat(8, 1) for one in small]


BLOCKS = blocks()
CACHED: dict[str, dict[str, torch.Tensor]] = {}
PICTURES = [Image.fromarray(one) for one in BLOCKS]
WIDE, TALL = textured(300, 451), textured(400, 240)


def open_role(role: str, source: str | None) -> Any:
    return EXTRACTORS[role].open(source)


# ── preprocessing ───────────────────────────────────────────────────────────────────────────────

PREPROCESSED = [
    (WIDE, "clip", (0.0606719032, 0.0856908113, 0.44933778), (-0.6243884, -1.0617398, -1.4091195)),
    (WIDE, "dino", (-0.0145803653, 0.0763652548, 0.555228055), (-0.713674, -1.6680672, -1.1421349)),
    (TALL, "clip", (0.217985839, 0.0454402752, 0.195978209), (-1.3105145, -1.6320349, -1.3522393)),
    (TALL, "dino", (0.197483182, 0.0908775404, 0.27919957), (-1.4329139, -1.9131652, -0.8981263)),
]


@pytest.mark.parametrize(("picture", "kind", "means", "pixel"), PREPROCESSED)
def test_pixels_of_clip_and_dino_are_torchvisions(
    picture: Image.Image, kind: str, means: Any, pixel: Any
) -> None:
    made = transformers.CLIPImageProcessorPil() if kind == "clip" else dino_processor(518)
    pixels = made(images=[picture], return_tensors="pt").pixel_values[0]
    assert pixels.shape == (3, 224, 224)
    assert pixels.mean((1, 2)).tolist() == Close(means, abs=1e-6)
    assert pixels[:, 100, 60].tolist() == Close(pixel, abs=1e-6)


@pytest.mark.parametrize(
    ("picture", "means", "pixel"),
    [
        (WIDE, (-0.0235328039, -0.0159666851, 0.0318693323), (0.15175998, -0.8512901, 0.6615001)),
        (TALL, (0.0655123539, -0.0524226568, -0.0481392239), (0.16241598, 0.4470701, 0.8155004)),
    ],
)
def test_pixels_of_inception_are_clean_fids(picture: Any, means: Any, pixel: Any) -> None:
    """PIL's bicubic filter on each channel in float; a hundredth of a level apart."""
    pixels = prepared(picture)
    assert pixels.mean((1, 2)).tolist() == Close(means, abs=1e-6)
    assert pixels[:, 100, 60].tolist() == Close(pixel, abs=2e-5)
    assert (pixels.min() >= -1, pixels.max() <= 127 / 128) == (True, True)


def test_a_sharp_edge_is_clamped() -> None:
    edge = np.zeros((600, 600, 3), np.uint8)
    edge[:, 300:] = 255
    assert prepared(Image.fromarray(edge)).aminmax() == (-1, 127 / 128)


def test_preprocessing_in_words() -> None:
    assert described(dino_processor(518)) == (
        "shorter side 256, bicubic with antialiasing, clamped and rounded to 8 bits; centre crop "
        "224x224; mean 0.485 0.456 0.406, standard deviation 0.229 0.224 0.225"
    )
    squashed = transformers.SiglipImageProcessorPil(size={"height": 384, "width": 384})
    assert described(squashed).startswith("384x384, aspect ratio not kept, bicubic")
    assert described(dino_processor(32)).split("; ")[1] == "centre crop 32x32"


# ── networks of published files ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("role", "file", "shapes", "start", "mean", "deviation"),
    [
        ("inception", "inception.pth", networks.inception,
         (0.66509432, 0.10907229, 1.4021486), 0.55445081, 0.777125),
        ("inception-logits", "inception.pth", networks.inception,
         (-0.87326634, -0.72658193, -1.439806), 0.01674104, 1.35749269),
        ("copy", "sscd.pt", networks.sscd,
         (-0.18862396, 0.38012666, 0.22468764), 0.07640538, 0.19128826),
        ("csd", "csd.bin", networks.csd,
         (-0.80924416, 0.1413573, 0.48036584), -0.08855557, 2.44586444),
    ],
)  # fmt: skip
def test_networks_beside_their_originals(
    role: str, file: str, shapes: Any, start: Any, mean: float, deviation: float, tmp_path: Path
) -> None:
    extractor = open_role(role, PREFIX + networks.save(tmp_path, file, shapes()))
    rows = torch.from_numpy(extractor.encode(PICTURES))
    assert rows.shape == (2, extractor.width)
    assert rows[0, :3].tolist() == Close(start, rel=2e-5)
    assert (float(rows.mean()), float(rows.std())) == Close((mean, deviation), rel=2e-5, abs=1e-6)
    alone = torch.from_numpy(extractor.encode(PICTURES[1:]))
    torch.testing.assert_close(alone, rows[1:], rtol=1e-4, atol=1e-5)
    assert isinstance(extractor, Extractor)


@pytest.mark.parametrize(
    ("kind", "expected"), [("alex", 0.415114611), ("vgg", 0.594392598), ("squeeze", 0.372440815)]
)
def test_lpips_of_each_trunk(kind: str, expected: float, tmp_path: Path) -> None:
    lpips = open_role("lpips", PREFIX + networks.save_lpips(tmp_path, kind))
    assert lpips.distance(*BLOCKS) == Close(expected, rel=1e-5)
    assert lpips.distance(BLOCKS[0], BLOCKS[0]) == 0
    assert isinstance(lpips, PairBackbone)
    folder = open_role("lpips", PREFIX + str(tmp_path))
    assert folder.fingerprint == lpips.fingerprint


def test_a_perceptual_hash_is_imagehashs() -> None:
    """d bits apart is a cosine of 1 - 2d/64."""
    rows = open_role("copy", None).encode([WIDE, TALL, WIDE.resize((226, 150))])
    assert [np.packbits(row > 0).tobytes().hex() for row in rows[:2]] == [
        "a9da8bd2f026d649",
        "9a1c087aacecfa71",
    ]
    apart = (rows[0] != rows[1]).sum()
    assert rows[0] @ rows[1] / 64 == 1 - 2 * apart / 64
    assert (rows[0] != rows[2]).sum() <= 2


# ── vision towers of transformers ───────────────────────────────────────────────────────────────

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def trained(model: Any) -> Any:
    """With normalisation layers that have moved."""
    draw = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    return model.eval()


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders clip (both towers), dinov2, vit, siglip, and clip-untrained."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(1)
    part = {**SHAPE, "hidden_size": 16, "intermediate_size": 16}
    tokenizer = make_tokenizer()
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 1}
    text = {**part, **words}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=part, text_config=text, projection_dim=12)
    )
    for name in ("clip-untrained", "clip"):
        clip.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        trained(clip)
    dino = transformers.Dinov2Config(**SHAPE, hidden_size=16, mlp_ratio=1)
    trained(transformers.Dinov2Model(dino)).save_pretrained(folder / "dinov2")
    vit = transformers.ViTConfig(**part)
    trained(transformers.ViTModel(vit)).save_pretrained(folder / "vit")
    siglip = transformers.SiglipVisionConfig(**part)
    trained(transformers.SiglipVisionModel(siglip)).save_pretrained(folder / "siglip")
    return folder


def test_clip_pictures_and_texts(towers: Path) -> None:
    extractor = open_role("clip", str(towers / "clip"))
    assert isinstance(extractor, TwoTowers) and isinstance(extractor, TextExtractor)  # noqa: PT018
    whole = transformers.CLIPModel.from_pretrained(towers / "clip").eval()
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(images=PICTURES, return_tensors="pt").pixel_values
    texts = ["a red star", "ring"]
    ids = make_tokenizer()(texts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        theirs = whole(pixel_values=pixels, input_ids=ids.input_ids)
    cosines = transformers_cosines(theirs)
    ours, said = extractor.encode(PICTURES), extractor.encode_text(texts)
    assert ours.shape == (2, 12) == said.shape
    made = ours @ said.T / np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(said, axis=1))
    np.testing.assert_allclose(made, cosines, atol=1e-5)


def transformers_cosines(output: Any) -> Any:
    return (output.image_embeds @ output.text_embeds.T).numpy()


def test_a_long_text_is_told(towers: Path) -> None:
    extractor = open_role("clip", str(towers / "clip"))
    with pytest.warns(UserWarning, match="truncated to 16"):
        extractor.encode_text(["red " * 30])


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_dino_reads_the_class_token_of_its_own_crop(kind: str, towers: Path) -> None:
    """Whatever processor the folder has; a ViT's pooler, which DINO lacks, is not used."""
    extractor = open_role("dino", str(towers / kind))
    name = {"dinov2": "Dinov2Model", "vit": "ViTModel"}[kind]
    model = getattr(transformers, name).from_pretrained(towers / kind).eval()
    pixels = dino_processor(32)(images=PICTURES, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(extractor.encode(PICTURES), expected.numpy(), atol=1e-6)
    assert extractor.preprocessing.startswith("shorter side 36, bicubic")


def test_other_encoders_by_what_they_pool(towers: Path) -> None:
    for role in ("clip", "dino"):
        extractor = open_role(role, str(towers / "siglip"))
        assert extractor.encode(PICTURES).shape == (2, 16)
        assert not isinstance(extractor, TextExtractor)
    pooled, projected = (
        open_role("dino", str(towers / "clip")),
        open_role("clip", str(towers / "clip")),
    )
    assert (pooled.width, projected.width) == (16, 12)
    assert pooled.fingerprint != projected.fingerprint


def test_defaults_are_the_own_encoder() -> None:
    found = {role: open_role(role, None) for role in ("clip", "inception", "dino")}
    assert {one.name for one in found.values()} == {"own encoder"}
    assert found["clip"].fingerprint == found["inception"].fingerprint != found["dino"].fingerprint
    assert not isinstance(found["clip"], TextExtractor)
    rows = found["clip"].encode(PICTURES)
    assert (rows.shape, rows.dtype) == ((2, found["clip"].width), np.float32)


# ── the judge, and faces ────────────────────────────────────────────────────────────────────────


def test_the_judge_reads_drawn_scenes_and_their_texts() -> None:
    judge, drawn = open_role("judge", None), [*islice(scenes.stream("test"), 8)]
    read = judge.encode([scenes.draw(scene) for scene in drawn])
    assert (read == judge.encode_text([scenes.caption(scene) for scene in drawn])).mean() > 0.9
    row = judge.encode_text(["Red on a blue background, a star", "an animal"])
    shape, colour = scenes.SHAPES.index("star"), scenes.COLOURS.index("red")
    assert row.tolist() == [
        [shape, colour, -1, scenes.COLOURS.index("blue"), -1],
        [-1] * 5,
    ]
    with pytest.raises(EncoderError, match="there is one only"):
        open_role("judge", "mine.safetensors")


def test_faces_and_pictures_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    (tmp_path / "recogniser.onnx").touch()
    extractor = open_role("face", str(tmp_path))
    assert extractor.name == str(tmp_path)
    largest = faces_picture(red=(10, 10, 30, 30), blue=(40, 10, 80, 60))
    rows = extractor.encode([largest, faces_picture()])
    np.testing.assert_array_equal(rows[0], embedding("blue"))
    assert np.isnan(rows[1]).all()


# ── weights ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["csd", "face", "lpips", "inception-logits"])
def test_roles_without_a_default_say_what_to_give(role: str) -> None:
    with pytest.raises(EncoderError, match=f"not part of this package.*--extractor {role}="):
        open_role(role, None)


def test_weights_that_nobody_published_need_a_word(tmp_path: Path) -> None:
    source = networks.save(tmp_path, "inception.pth", networks.inception())
    with pytest.raises(EncoderError, match=r"SHA-256 [0-9a-f]{8} is not .* inception=unverified:"):
        open_role("inception", source)
    assert open_role("inception", PREFIX + source).name == source + MARK
    with pytest.raises(EncoderError, match="no published hash is known"):
        open_role("copy", networks.save(tmp_path, "sscd.pt", networks.sscd()))


def test_published_weights_are_known_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = networks.save(tmp_path, "inception.pth", networks.inception())
    start = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(_inception, "PUBLISHED", start)
    assert open_role("inception", source).name == source
    pair = networks.save_lpips(tmp_path, "alex")
    heads = hashlib.sha256((tmp_path / "alex.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(_lpips, "PUBLISHED", heads)
    with pytest.raises(EncoderError, match="is not that of a published file"):
        open_role("lpips", pair)  # the trunk is unknown


def test_a_model_that_was_never_trained_needs_a_word(towers: Path) -> None:
    place = str(towers / "clip-untrained")
    for role in ("clip", "dino"):
        with pytest.raises(EncoderError, match=f"never trained.*{role}=unverified:"):
            open_role(role, place)
        assert open_role(role, PREFIX + place).name == place + MARK
    assert open_role("clip", str(towers / "clip")).name == str(towers / "clip")


@pytest.mark.parametrize("role", ["inception", "copy", "csd"])
def test_weights_of_another_network(role: str, tmp_path: Path) -> None:
    source = networks.save(tmp_path, "vgg.pth", networks.trunk("vgg"))
    with pytest.raises(EncoderError, match=r"not the weights of its network \(.* is missing\)"):
        open_role(role, PREFIX + source)
    short = networks.inception() | {"Mixed_7c.branch_pool.conv.weight": (24, 9, 1, 1)}
    if role == "inception":
        with pytest.raises(EncoderError, match="not the weights of its network"):
            open_role(role, PREFIX + networks.save(tmp_path, "short.pth", short))


@pytest.mark.sample(3)
@pytest.mark.parametrize("shape", [(), (7, 2), (0, 3, 3, 3)])
@pytest.mark.parametrize(
    ("role", "shapes", "names"),
    [
        ("inception", networks.inception, ("Conv2d_1a_3x3.conv.weight",
                                           "Mixed_7c.branch1x1.bn.bias")),
        ("copy", networks.sscd, ("backbone.conv1.weight", "backbone.layer4.0.bn3.bias")),
        ("csd", networks.csd, ("backbone.conv1.weight", "backbone.positional_embedding",
                               "last_layer_style")),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(
    role: str, shapes: Any, names: tuple[str, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = CACHED.setdefault(role, networks.weights(shapes()))
    for name in names:
        changed = f"module.{name}" if role == "csd" else name
        torch.save(tensors | {changed: torch.zeros(shape)}, tmp_path / "odd.pth")
        with pytest.raises(EncoderError, match="not the weights of its network"):
            open_role(role, f"{PREFIX}{tmp_path / 'odd.pth'}")


def test_lpips_needs_both_files(tmp_path: Path) -> None:
    trunk, heads = networks.save_lpips(tmp_path, "alex").split(",")
    for source in (trunk, f"{trunk},{trunk}", f"{heads},{heads}"):
        with pytest.raises(EncoderError, match="not one of each"):
            open_role("lpips", PREFIX + source)
    shutil.copy(heads, tmp_path / "more.pth")
    with pytest.raises(EncoderError, match="not one of each"):
        open_role("lpips", PREFIX + str(tmp_path))
    with pytest.raises(NotFoundError):
        open_role("lpips", PREFIX + f"{trunk},{tmp_path / 'none.pth'}")
    networks.save_lpips(tmp_path, "squeeze")
    with pytest.raises(EncoderError, match="not the weights of its network"):
        open_role("lpips", f"{PREFIX}{trunk},{tmp_path / 'squeeze.pth'}")


def test_programs_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "sscd.torchscript.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("sscd/data.pkl", b"\x80\x02N.")
        archive.writestr("sscd/constants.pkl", b"\x80\x02N.")
    with pytest.raises(EncoderError, match="TorchScript program"):
        open_role("copy", PREFIX + str(file))
