"""Training on transformers: pictures become latents as in the pipelines; bases that are refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.latents import Vae
from imageprompt.training.data.views import to_pixels
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.variants import VARIANTS
from transformer_pipelines import flux2_vae, picture, vae, video_vae
from transformers_table import CASES

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [1.5, 0.7, 2.0, 0.4]


def pipeline(name: str, **parts: Any) -> Any:
    """The pipeline without the parts that are not given."""
    import inspect

    kind = getattr(diffusers, name)
    wanted = list(inspect.signature(kind.__init__).parameters)[1:]
    return kind(**{one: parts.get(one) for one in wanted})


def video(kind: str) -> Any:
    model = copy.deepcopy(video_vae(kind, 4))
    model.register_to_config(latents_mean=MEAN, latents_std=STD, scale_factor_spatial=2)
    return model


def normed() -> Any:
    model = copy.deepcopy(flux2_vae())
    model.bn.running_mean.copy_(torch.tensor(MEAN))
    model.bn.running_var.copy_(torch.tensor(STD))
    return model


def of_qwen(model: Any, pixels: Tensor, seed: torch.Generator) -> Tensor:
    pipe = pipeline("QwenImageImg2ImgPipeline", vae=model)
    latents: Tensor = pipe._encode_vae_image(pixels.unsqueeze(2), seed)
    return latents.squeeze(2)


def of_wan(model: Any, pixels: Tensor, seed: torch.Generator) -> Tensor:
    """Without noise: the pipeline adds it to the mean."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.scale_noise = lambda latents, *_: latents
    pipe = pipeline("WanVideoToVideoPipeline", vae=model, scheduler=scheduler)
    size = {"height": pixels.shape[2], "width": pixels.shape[3]}
    latents: Tensor = pipe.prepare_latents(
        pixels.unsqueeze(2), 1, 4, **size, dtype=torch.float32, device="cpu", generator=seed
    )
    return latents.squeeze(2)


def of_flux2(model: Any, pixels: Tensor, seed: torch.Generator) -> Tensor:
    """Without noise."""
    latents: Tensor = pipeline("Flux2Pipeline", vae=model)._encode_vae_image(pixels, seed)
    return latents


@pytest.mark.parametrize(
    ("model", "encode", "random"),
    [
        (lambda: video("AutoencoderKLQwenImage"), of_qwen, True),
        (lambda: video("AutoencoderKLWan"), of_wan, False),
        (normed, of_flux2, False),
    ],
    ids=["qwen-image", "wan", "flux2"],
)
def test_a_picture_is_encoded_as_in_the_pipelines(model: Any, encode: Any, random: bool) -> None:
    found, wide = model(), picture().resize((32, 16))
    own = Vae.of(SimpleNamespace(vae=found))
    moments = own.encode([wide])
    assert own.moment_kind(wide.size) == (torch.float32, tuple(moments.shape[1:]))
    shape = (1, own.scaling.channels(moments), *moments.shape[2:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * random
    latents = own.scaling.sample(moments, noise)
    assert latents.shape == (1, own.channels, 16 // own.factor, 32 // own.factor)
    with torch.no_grad():
        expected = encode(found, to_pixels([wide]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_a_base_with_two_transformers_is_refused() -> None:
    one = CASES["wan"].build()
    pipe = pipeline("WanPipeline", transformer=one, transformer_2=one)
    with pytest.raises(WrongBaseError, match="two transformers"):
        FrozenPipeline.load(pipe, precision="no")


def test_a_base_that_reads_more_than_latents_is_refused() -> None:
    """FLUX.1 Fill, whose denoiser reads a mask as well."""
    case = CASES["flux"]
    model = diffusers.FluxTransformer2DModel(**case.config | {"in_channels": 24})
    pipe = pipeline("FluxFillPipeline", transformer=model, vae=vae(1))
    base = FrozenPipeline.load(pipe, precision="no")
    with pytest.raises(WrongBaseError, match="24 channels"):
        FeatureExtractors(base, VARIANTS["plus"])


def test_checkpointing_that_a_model_has_not_is_an_error() -> None:
    pipe = pipeline("HunyuanDiTPipeline", transformer=CASES["hunyuan-dit"].build(), vae=vae(4))
    with pytest.raises(OptionError, match="gradient_checkpointing"):
        FrozenPipeline.load(pipe, precision="no", gradient_checkpointing=True)
