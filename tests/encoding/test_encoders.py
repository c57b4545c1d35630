"""Every family of image encoders against transformers' own models and image processors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import imageprompt as ip
from imageprompt.core.errors import EncoderError
from imageprompt.encoding.encoders import Encoder, open_encoder
from imageprompt.encoding.encoders._folder import processor_of
from imageprompt.encoding.encoders.contract import PixelEncoder, VisionEncoder, pooled_feature

SIDE, WIDTH = 32, 24
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**SHAPE, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8}
TEXT = {**SHAPE, "intermediate_size": 32, "vocab_size": 40, "max_position_embeddings": 8}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
STAGES = {"hidden_sizes": [8, 8, 16, 20], "depths": [1, 1, 1, 1], "image_size": SIDE}
BLOCKS = {name: value for name, value in VISION.items() if name != "intermediate_size"}
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "siglip": (
        "SiglipVision", VISION, "Siglip", {"size": {"height": SIDE, "width": SIDE}, "resample": 3}
    ),
    "dinov2": (
        "Dinov2",
        {**BLOCKS, "mlp_ratio": 1, "image_size": 48},  # as published: trained larger than it reads
        "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "dinov2_with_registers": (
        "Dinov2WithRegisters",
        {**BLOCKS, "mlp_ratio": 1},
        "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "dinov3_vit": ("DINOv3ViT", VISION, "", {"size": {"height": SIDE, "width": SIDE}}),
    "vit": ("ViT", VISION, "ViT", {"size": {"height": SIDE, "width": SIDE}, "resample": 2}),
    "convnext": ("ConvNext", STAGES, "ConvNext", {"size": {"shortest_edge": SIDE}}),
    "convnextv2": ("ConvNextV2", STAGES, "ConvNext", {"size": {"shortest_edge": SIDE}}),
    "dinov3_convnext": ("DINOv3ConvNext", STAGES, "", {"size": {"height": SIDE, "width": SIDE}}),
    "clip": (
        "CLIPVision",
        {**VISION, "projection_dim": 12},
        "CLIP",
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
}  # fmt: skip


def make(family: str, folder: Path) -> Path:
    """A tiny random model of a family with its preprocessor_config.json, in a folder."""
    name, config, processor, settings = FAMILIES[family]
    torch.manual_seed(3)
    config_class = getattr(transformers, f"{name}Config")
    model_name = "CLIPVisionModelWithProjection" if family == "clip" else f"{name}Model"
    getattr(transformers, model_name)(config_class(**config)).save_pretrained(folder)
    if processor:
        getattr(transformers, f"{processor}ImageProcessorPil")(**settings).save_pretrained(folder)
    else:
        stated = {"image_processor_type": "DINOv3ViTImageProcessorFast", **settings}
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("encoders")
    return lambda family: root / family if (root / family).is_dir() else make(family, root / family)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(5)
    shapes = ((50, 41, 3), (33, 64, 3))
    return [Image.fromarray(random.integers(0, 255, shape, np.uint8)) for shape in shapes]


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_and_features_are_those_of_transformers(
    family: str, folders: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    folder = folders(family)
    encoder = open_encoder(folder)
    assert isinstance(encoder, VisionEncoder)
    assert isinstance(encoder, PixelEncoder)
    name, _, processor, settings = FAMILIES[family]
    kind = "CLIPVisionModelWithProjection" if family == "clip" else f"{name}Model"
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    theirs = getattr(transformers, f"{processor or 'ViT'}ImageProcessorPil")
    if processor:
        own = theirs.from_pretrained(folder)
    else:  # of transformers only with torchvision: ImageNet's mean and deviation
        own = theirs(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225), **settings)
    pixels = own(images=pictures, return_tensors="pt").pixel_values
    assert torch.equal(encoder.preprocess(pictures), pixels)
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert encoder.image_size == SIDE
    with torch.no_grad():
        made = model(pixels, output_hidden_states=True)
    expected = {"last_hidden_state": made.last_hidden_state}
    expected["hidden_states[-2]"] = made.hidden_states[-2]
    if family == "clip":
        expected["image_embeds"] = made.image_embeds
        made = model.vision_model(pixels)
    expected["pooler_output"] = made.pooler_output
    assert set(encoder.widths) == set(expected)
    for feature, value in expected.items():
        rows = value.flatten(2).transpose(1, 2) if value.ndim == 4 else value
        found = encoder.encode(pictures, feature)
        assert torch.equal(found, rows), feature
        assert found.shape[-1] == encoder.width(feature)
        assert not found.requires_grad
        null = encoder.encode_null(feature)
        assert null.shape == (1, *found.shape[1:])
    pooled = "image_embeds" if family == "clip" else "pooler_output"
    assert pooled_feature(encoder) == pooled


@pytest.mark.parametrize("family", ["siglip", "vit", "dinov2", "dinov3_vit"])
def test_the_last_state_but_one_is_what_the_last_layer_reads(
    family: str, folders: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    encoder = open_encoder(folders(family))
    assert isinstance(encoder, VisionEncoder)
    found: list[torch.Tensor] = []
    lists = [part for part in encoder.model.modules() if isinstance(part, torch.nn.ModuleList)]
    last = next(part for part in lists if len(part) == SHAPE["num_hidden_layers"])[-1]
    hook = last.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    features = encoder.encode(pictures, "hidden_states[-2]")
    hook.remove()
    assert torch.equal(features, found[0])
    assert not torch.equal(features, encoder.encode(pictures, "last_hidden_state"))


def test_of_two_towers_the_vision_part_is_read(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        text_config={**TEXT, "projection_size": WIDTH}, vision_config=VISION
    )
    whole = transformers.SiglipModel(config).eval()
    whole.save_pretrained(tmp_path / "siglip")
    encoder = open_encoder(tmp_path / "siglip")  # without a stored processor: the published one
    assert isinstance(encoder, VisionEncoder)
    assert not any("text" in name for name in encoder.model.state_dict())
    with torch.no_grad():
        expected = whole.get_image_features(pixel_values=encoder.preprocess(pictures))
    expected = getattr(expected, "pooler_output", expected)
    assert torch.equal(encoder.encode(pictures, "pooler_output"), expected)
    assert torch.equal(open_encoder(whole).encode(pictures, "pooler_output"), expected)

    both = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
    clip = transformers.CLIPModel(both).eval()
    clip.save_pretrained(tmp_path / "clip")
    encoder = open_encoder(tmp_path / "clip")
    assert isinstance(encoder, VisionEncoder)
    with torch.no_grad():
        vision = clip.vision_model(encoder.preprocess(pictures)).pooler_output
        embeds = clip.visual_projection(vision)
    assert torch.equal(encoder.encode(pictures, "image_embeds"), embeds)


def test_a_classifiers_vit_has_no_pooler(tmp_path: Path, pictures: list[Image.Image]) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))
    model.save_pretrained(tmp_path)
    encoder = open_encoder(tmp_path)
    assert encoder.encode(pictures, "last_hidden_state").shape == (2, 17, WIDTH)
    assert pooled_feature(encoder) is None
    with pytest.raises(EncoderError, match=r"makes hidden_states.*, last_hidden_state, not pooler"):
        encoder.width("pooler_output")


def test_a_lacking_feature_names_those_that_there_are(folders: Callable[[str], Path]) -> None:
    encoder: Encoder = open_encoder(folders("siglip"))
    text = r"SigLIP .*makes pooler_output, hidden_states\[-2\], last_hidden_state, not image_embeds"
    with pytest.raises(EncoderError, match=text):
        encoder.width("image_embeds")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"do_reduce_labels": True, "pan_and_scan": 2}, "unknown settings: do_reduce_labels, pan"),
        ({"image_processor_type": "DPTImageProcessor"}, "'DPTImageProcessor' is not a known"),
        ({"do_center_crop": False}, "make no squares"),
        ({"size": {"tallest": 3}, "crop_size": {"wide": 2}}, "."),
        ({"resample": "sideways"}, "resample 'sideways' is none of PIL's"),
        ({"size": {"shortest_edge": 10**9}}, "the limit is 4096"),
        ({"crop_pct": 0.9}, "unknown settings: crop_pct"),
    ],
)
def test_unknown_preprocessing_is_refused(stated: dict[str, Any], message: str) -> None:
    usual = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}}
    usual |= {"crop_size": {"height": SIDE, "width": SIDE}}
    assert processor_of({**usual, "do_pad": None, "feature_extractor_type": "x"}, "usual")
    with pytest.raises(EncoderError, match=message):
        processor_of({**usual, **stated}, "a config")


def test_other_models_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "siglip2_vision_model"}')
    with pytest.raises(EncoderError, match=r"NaFlex gives every picture .* fixed resolution"):
        open_encoder(tmp_path)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(EncoderError, match=r"says bert: not an image encoder.*Dinov2Model"):
        open_encoder(tmp_path)
    with pytest.raises(EncoderError, match=r"'Linear'.* not an image encoder"):
        open_encoder(torch.nn.Linear(1, 1))
    config.write_text('{"model_type": "vit"')
    with pytest.raises(EncoderError, match=r"config\.json"):
        open_encoder(tmp_path)
    config.write_text('{"model_type": "dinov2"}')
    with pytest.raises(EncoderError, match=r"not a DINO model .*Dinov2Model"):
        open_encoder(tmp_path)


def test_the_pipelines_own_encoder_comes_with_its_processor() -> None:
    """It may prepare pictures otherwise than the encoders of its family do."""
    from tiny_stack import make_pipeline

    pipe = make_pipeline()
    assert pipe.feature_extractor is not None
    adapter = ip.Adapter.create("base", denoiser=pipe, encoder=pipe.image_encoder)
    adapter.attach(pipe, encoder=pipe.image_encoder)
    encoder: Any = adapter.encoder
    assert encoder.processor is pipe.feature_extractor
    adapter.detach()
