"""Training on a transformer from end to end, and with its linear layers in int8."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import imageprompt as ip
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.estimate import estimate_run
from imageprompt.training.memory.int8 import Int8Linear, store_as_int8
from transformers_table import CASES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline with random weights and the bundled stack's autoencoder."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
    )

    folder, stack = tmp_path_factory.mktemp("sd3"), ip.bundled.folder()
    tokenizer = CLIPTokenizer.from_pretrained(stack / "tokenizer")
    vae = AutoencoderKL.from_pretrained(stack / "vae")
    vae.register_to_config(shift_factor=0.0)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    t5 = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=32, num_layers=1)
    channels = vae.config.latent_channels
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae,
        CLIPTextModelWithProjection(text).eval(),
        tokenizer,
        CLIPTextModelWithProjection(text).eval(),
        tokenizer,
        T5EncoderModel(t5).eval(),
        tokenizer,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    assert cli.main(["demo", "--draw", str(folder), "--num-scenes", "8"]) == 0
    return folder


def config(base: Path, scenes: Path, output: Path, **more: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "base": str(base),
        "encoder": str(ip.bundled.folder() / "image_encoder"),
        "variant": "plus",
        "tokens": 4,
        "depth": 1,
        "heads": 1,
        "width": 16,
        "data": str(scenes / "train"),
        "cache": str(scenes.parent / "cache"),
        "output": str(output),
        "max_sequence_length": 8,
        "resolution": 64,
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "trackers": [],
    }
    return keys | more


def test_from_pictures_to_an_adapter_that_generates(
    base: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = scenes / "held-out"
    keys = config(
        base,
        scenes,
        tmp_path / "run",
        init="copy",
        warm_start="captions",
        warm_start_steps=10,
        gradient_checkpointing=True,
        mixed_precision="bf16",
        quantize="int8",
        validate_every=4,
        validation={"references": str(references), "count": 1, "steps": 2, "guidance": 4.0},
    )
    result = ip.train(keys)
    assert result.adapter is not None
    assert result.sheets
    assert "warm start" in capsys.readouterr().err
    report = ip.inspect(result.adapter)
    assert report.as_dict()["host"] == "sd3"
    # the warm start leaves K' and V' of a file alone
    again = keys | {"adapter": str(result.adapter), "output": str(tmp_path / "again")}
    unlearned = ip.train(again | {"learning_rate": 1e-12, "steps": 1, "validate_every": 0})
    before, after = (ip.Adapter.load(str(one.adapter)) for one in (result, unlearned))
    for one, other in zip(before.module.sites, after.module.sites, strict=True):
        torch.testing.assert_close(one.to_v_ip.weight, other.to_v_ip.weight)
    assert cli.main(["validate", str(result.adapter), "--base", str(base)]) == 0
    made = [
        "generate",
        *("--base", str(base), "--adapter", str(result.adapter)),
        *("--encoder", keys["encoder"], "--reference", str(next(references.glob("*.png")))),
        *("--prompt", "a star", "--steps", "2", "--size", "64"),
        *("--output", str(tmp_path / "pictures")),
    ]
    assert cli.main(made) == 0
    (picture,) = (tmp_path / "pictures").glob("*.png")
    assert ip.repeat(picture, progress=False).images


def test_a_dry_run_tells_what_int8_saves(base: Path, scenes: Path, tmp_path: Path) -> None:
    whole, small = (
        estimate_run(
            TrainingConfig.load(
                config(base, scenes, tmp_path, mixed_precision="bf16", quantize=quantize)
            )
        )
        for quantize in ("none", "int8")
    )
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(base / "transformer")
    layers = [one for one in model.modules() if type(one) is nn.Linear]
    weights = sum(layer.weight.numel() for layer in layers)
    scales = sum(4 * layer.out_features for layer in layers)
    assert whole.frozen_bytes - small.frozen_bytes == weights - scales


def test_pictures_that_cannot_be_cut_into_patches(base: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="multiples of 16"):
        ip.train(config(base, scenes, tmp_path / "run", resolution=72))


def test_pictures_for_which_the_base_has_no_positions(
    base: Path, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="144 x 144: this base knows positions for 128 x 128"):
        ip.train(config(base, scenes, tmp_path / "run", resolution=144))


def test_a_guidance_scale_that_no_one_reads(base: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not guidance-distilled"):
        ip.train(config(base, scenes, tmp_path / "run", guidance_scale=4.0))


def test_layers_in_int8_compute_nearly_the_same_and_save_no_weights() -> None:
    case = CASES["sd3"]
    exact = case.build(dtype=torch.bfloat16).requires_grad_(False)
    small = copy.deepcopy(exact)
    store_as_int8(small)
    assert sum(type(one) is Int8Linear for one in small.modules()) > 20
    inputs = case.inputs(2, dtype=torch.bfloat16)
    outputs, gradients = [], []
    for model in (exact, small):
        text = inputs["encoder_hidden_states"].clone().requires_grad_()
        out = model(**inputs | {"encoder_hidden_states": text}, return_dict=False)[0]
        out.float().square().sum().backward()
        outputs.append(out.detach().float())
        gradients.append(text.grad.float())
    for pair in (outputs, gradients):
        assert 0 < (pair[0] - pair[1]).norm() < 0.05 * pair[0].norm()
    layer, whole = nn.Linear(64, 64).bfloat16().requires_grad_(False), []
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: whole.append(one.shape) or one, lambda one: one
    ):
        Int8Linear(layer)(x)
    assert (64, 64) not in whole


def test_instantx_for_sd3_reads_patches_of_siglip(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import StableDiffusion3Pipeline
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(2)
    shape = {"hidden_size": 24, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    siglip = SiglipVisionConfig(**shape, num_hidden_layers=2, num_attention_heads=2)
    SiglipVisionModel(siglip).save_pretrained(tmp_path / "siglip")
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    adapter = ip.Adapter.create("instantx-sd3", denoiser=pipe, encoder=tmp_path / "siglip")
    with torch.no_grad():
        for weight in adapter.parameters():
            weight += torch.randn_like(weight) * 0.2
    adapter.save(tmp_path / "a.safetensors")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    pictures = []
    for name, scale in (("off", "0"), ("on", "1")):
        words = ["generate", "--base", str(base), "--adapter", str(tmp_path / "a.safetensors")]
        words += ["--encoder", str(tmp_path / "siglip"), "--prompt", "a star", "--scale", scale]
        words += ["--reference", str(tmp_path / "red.png"), "--steps", "2", "--size", "64"]
        words += ["--seed", "1", "--output", str(tmp_path / name)]
        assert cli.main(words) == 0
        (made,) = (tmp_path / name).glob("*.png")
        pictures.append(Image.open(made).tobytes())
    assert pictures[0] != pictures[1]
    capsys.readouterr()
