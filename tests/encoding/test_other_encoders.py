"""New adapters on other encoders than CLIP: trained, saved, loaded and generated with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import imageprompt as ip
from guides import DOCS, blocks
from imageprompt import cli
from imageprompt.core.errors import EncoderError, OptionError
from imageprompt.loading import load_base
from imageprompt.training.cache.build import build_cache_for
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.feature_extractors import feature_to_read
from imageprompt.training.estimate import estimate_run

SIDE = 32
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders dinov2 and siglip, 32 and 20 wide; the tiny stack's CLIP is 32 wide as well."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(1)
    dino = transformers.Dinov2Config(**SHAPE, hidden_size=32, mlp_ratio=1)
    transformers.Dinov2Model(dino).save_pretrained(folder / "dinov2")
    siglip = transformers.SiglipVisionConfig(**SHAPE, hidden_size=20, intermediate_size=16)
    transformers.SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    from PIL import Image

    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (36, 32), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"something {colour}")
    return folder


@pytest.fixture
def keys(tiny_folder: Path, pictures: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def made(**more: Any) -> dict[str, Any]:
        return {
            "base": str(tiny_folder),
            "data": str(pictures),
            "output": str(tmp_path / "run"),
            "resolution": SIDE,
            "steps": 2,
            "batch_size": 2,
            "learning_rate": 1e-2,
            "trackers": [],
        } | more

    return made


@pytest.mark.parametrize(
    ("variant", "name", "feature", "shape"),
    [
        ("plus", "dinov2", "last_hidden_state", (1, 17, 32)),
        ("base", "siglip", "pooler_output", (1, 20)),
    ],
)
def test_train_save_load_generate(
    variant: str,
    name: str,
    feature: str,
    shape: tuple[int, ...],
    keys: Callable[..., dict[str, Any]],
    encoders: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    validation = {"references": str(pictures), "count": 1, "steps": 1}
    config = keys(
        encoder=str(encoders / name),
        variant=variant,
        feature=feature,
        cache=str(tmp_path / "cache"),
        validate_every=2,
        validation=validation,
    )
    result = ip.train(config, progress=False)
    assert result.adapter is not None
    metadata = ip.inspect(result.adapter).metadata
    kind = {"dinov2": "dinov2", "siglip": "siglip_vision_model"}[name]
    assert (metadata["feature"], metadata["encoder_type"]) == (feature, kind)
    adapter = ip.Adapter.load(result.adapter)
    assert str(adapter.spec.feature) == feature
    assert ip.inspect(result.adapter).as_dict()["encoder"]["feature"] == feature
    assert ip.inspect(result.adapter).published == ()

    # found beside the file, as published repositories have it, though the base's is as wide
    place = tmp_path / "mine" / "adapter.safetensors"
    place.parent.mkdir()
    shutil.copy(result.adapter, place)
    shutil.copytree(encoders / name, place.parent / "image_encoder")
    words = ["generate", "--base", config["base"], "--adapter", str(place), "--steps", "1"]
    words += ["--reference", str(pictures / "0.png"), "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    recipe = ip.repeat(picture, progress=False).recipes[0]
    assert recipe.references[0].adapter.spec["feature"] == feature
    assert recipe.references[0].encoder.name.endswith("image_encoder")
    prompt = ip.Adapter.load(place)
    prompt.encoding.set_encoder(ip_encoder(encoders / name))
    assert prompt.encode([pictures / "0.png"]).features[0].shape == shape

    # converted, it says the same; on CLIP it is refused, though that may be as wide
    assert cli.main(["convert", str(place), str(tmp_path / "c.safetensors")]) == 0
    assert ip.inspect(tmp_path / "c.safetensors").metadata["feature"] == feature
    capsys.readouterr()
    assert cli.main([*words, "--encoder", f"{config['base']}/image_encoder"]) == 2
    assert "reads " + feature in capsys.readouterr().err


def ip_encoder(folder: Path) -> Any:
    from imageprompt.encoding.encoders import open_encoder

    return open_encoder(folder)


def test_the_cache_tells_features_apart(
    keys: Callable[..., dict[str, Any]], encoders: Path, tmp_path: Path
) -> None:
    more = {"encoder": str(encoders / "dinov2"), "variant": "plus", "cache": str(tmp_path / "c")}
    reports = [
        build_cache_for(TrainingConfig.load(keys(**more, feature=feature)))
        for feature in (None, "last_hidden_state", "hidden_states[-2]")
    ]
    encoded = [report.encoded.get("features", 0) for report in reports]
    assert encoded[0] == encoded[1] > 0 == encoded[2]


def test_what_cannot_be_read_is_said(
    keys: Callable[..., dict[str, Any]], encoders: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    siglip = str(encoders / "siglip")
    with pytest.raises(EncoderError, match=r"makes pooler_output, .* not image_embeds"):
        ip.train(keys(encoder=siglip, variant="base"), progress=False)
    with pytest.raises(
        OptionError, match=r"'pooler_output' for a plus .*hidden_states\[-2\], last"
    ):
        ip.train(keys(encoder=siglip, variant="plus", feature="pooler_output"), progress=False)
    with pytest.raises(OptionError, match="'image_embeds' for a faceid adapter"):
        ip.train(keys(variant="faceid", feature="image_embeds"), progress=False)
    pipe = load_base(tiny_folder, tiny_folder, dtype="float32", device="cpu", bars=False).pipe
    adapter = ip.Adapter.create(
        "plus", denoiser=pipe, encoder=encoders / "dinov2", feature="last_hidden_state"
    )
    adapter.save(tmp_path / "a.safetensors")
    config = TrainingConfig.load(keys(variant="plus", adapter=str(tmp_path / "a.safetensors")))
    assert str(feature_to_read(config)) == "last_hidden_state"
    other = keys(variant="plus", adapter=config.adapter, feature="hidden_states[-2]")
    with pytest.raises(OptionError, match="it reads last_hidden_state, but the config has"):
        ip.train(other, progress=False)
    with pytest.raises(EncoderError, match="reads last_hidden_state of dinov2"):
        adapter.attach(pipe, encoder=pipe.image_encoder)
    assert json.dumps(adapter.spec.as_dict())


def test_the_config_of_the_guide(keys: Callable[..., dict[str, Any]], encoders: Path) -> None:
    """docs/training.md: its example with DINOv2 is a config, and an adapter starts from it."""
    (text,) = (block for block in blocks(DOCS / "training.md", "yaml") if "dinov2" in block)
    config = TrainingConfig.load(yaml.safe_load(text))
    assert str(feature_to_read(config)) == "last_hidden_state"
    folder = str(encoders / Path(config.encoder or "").name.removesuffix("-base"))
    small = keys(encoder=folder, variant=config.variant, feature=config.feature)
    assert estimate_run(TrainingConfig.load(small)).tokens == 16
