"""A call of every pipeline that adapters can be trained on, until its scheduler's first step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from imageprompt.hosts._training import pack, unpack
from transformers_table import TEXT

TEXTS = ["a star", "a red ring : a blue star"]
ROWS, LENGTH = len(TEXTS), 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask(dtype: torch.dtype = torch.long) -> Tensor:
    """The first text has all tokens, the second three."""
    return torch.tensor([[1] * LENGTH, [1] * 3 + [0] * (LENGTH - 3)]).to(dtype)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline without text encoders and VAE, for pictures of `size` pixels (height, width)."""

    name: str
    host: str = ""
    """That of its transformer, where the table's name is another."""
    text: Callable[[], Any] = tuple
    """What `encode_prompt` returns for two texts."""
    second: Callable[[], Any] = tuple
    """The same, of the second text encoder."""
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    options: dict[str, Any] = field(default_factory=dict)
    """Of the scheduler."""
    call: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    """Of the pipeline, where they depend on parts that are tiny here."""
    form: str = "latents"
    """How the scheduler gets latents: as they are, "packed" 2 x 2, as "rows", or as "video"."""
    guidance: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 96)
    steps: int = 2
    parts: Callable[[], dict[str, Any]] | None = None
    """Tokenizers and text encoders; None: `text` is what they would make."""

    def latents(self, sample: Tensor) -> Tensor:
        """The scheduler's sample as latents [b, c, h, w]."""
        height, width = (side // 8 for side in self.size)
        if self.form == "packed":
            return unpack(sample, torch.empty(ROWS, sample.shape[2] // 4, height, width))
        if self.form == "rows":
            return sample.transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return sample.squeeze(2) if self.form == "video" else sample

    def sample(self, latents: Tensor) -> Tensor:
        """The inverse of `latents`."""
        if self.form == "packed":
            return pack(latents)
        if self.form == "rows":
            return latents.flatten(2).transpose(1, 2)
        return latents.unsqueeze(2) if self.form == "video" else latents


STATES = functools.partial(noise, ROWS, LENGTH, TEXT, seed=3)
POOLED = functools.partial(noise, ROWS, 32, seed=4)
TEXT_IDS = torch.cartesian_prod(*map(torch.arange, (1, 1, 1, LENGTH)))
DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 9,
    "max_image_seq_len": 50,
    "base_shift": 0.4,
    "max_shift": 1.3,
}
PIPELINES = {
    "flux": Pipeline(
        name="FluxPipeline",
        text=lambda: (STATES(), POOLED(), torch.zeros(LENGTH, 3)),
        options=DYNAMIC,
        form="packed",
        config={"guidance_embeds": True},
        guidance=2.5,
    ),
    "chroma": Pipeline(
        name="ChromaPipeline",
        text=lambda: (STATES(), torch.zeros(LENGTH, 3), mask(torch.float32), None, None, None),
        options=DYNAMIC,
        form="packed",
    ),
    "bria": Pipeline(
        name="BriaPipeline",
        text=lambda: (STATES(), None, torch.zeros(ROWS, LENGTH, 3)),
        options=DYNAMIC,
        form="packed",
    ),
    "sd3": Pipeline(
        name="StableDiffusion3Pipeline",
        text=lambda: (STATES(), None, POOLED(), None),
        options=DYNAMIC,
    ),
    "pixart": Pipeline(
        name="PixArtSigmaPipeline",
        text=lambda: (STATES(), mask(), None, None),
        scheduler="DDPMScheduler",
        call={"use_resolution_binning": False},
    ),
    "hunyuan-dit": Pipeline(
        name="HunyuanDiTPipeline",
        text=lambda: (STATES(), None, mask(), None),
        second=lambda: (noise(ROWS, 6, TEXT, seed=5), None, torch.ones(ROWS, 6).long(), None),
        scheduler="DDPMScheduler",
        call={"use_resolution_binning": False},
    ),
    "sana": Pipeline(
        name="SanaPipeline",
        text=lambda: (STATES(), mask(), None, None),
        call={"use_resolution_binning": False},
        size=(128, 192),
    ),
    "auraflow": Pipeline(name="AuraFlowPipeline", text=lambda: (STATES(), mask(), None, None)),
    "cogview4": Pipeline(
        name="CogView4Pipeline",
        text=lambda: (STATES(), None),
        options={**DYNAMIC, "time_shift_type": "linear"},
    ),
    "wan": Pipeline(
        name="WanPipeline",
        text=lambda: (STATES(), None),
        call={"num_frames": 1},
        form="video",
    ),
    "qwen-image": Pipeline(
        name="QwenImagePipeline",
        text=lambda: (STATES(), mask()),
        options=DYNAMIC,
        form="packed",
    ),
    "z-image": Pipeline(
        name="ZImagePipeline",
        text=lambda: ([STATES()[0], STATES()[1][:3]], []),
        options=DYNAMIC,
        guidance=0.0,
    ),
    "lumina2": Pipeline(
        name="Lumina2Pipeline",
        text=lambda: (STATES(), mask(), None, None),
        options=DYNAMIC,
    ),
    "flux2": Pipeline(
        name="Flux2Pipeline",
        text=lambda: (STATES(), TEXT_IDS.expand(ROWS, -1, -1)),
        options=DYNAMIC,
        form="rows",
        guidance=2.5,
        steps=50,
    ),
    "flux2 klein": Pipeline(
        name="Flux2KleinPipeline",
        host="flux2",
        text=lambda: (STATES(), TEXT_IDS.expand(ROWS, -1, -1)),
        options=DYNAMIC,
        form="rows",
        config={"guidance_embeds": False},
        steps=50,
    ),
    "hidream": Pipeline(
        name="HiDreamImagePipeline",
        text=lambda: (STATES(), None, noise(2, ROWS, 4, TEXT, seed=6), None, POOLED(), None),
        options=DYNAMIC,
        size=(64, 64),
        attributes={"default_sample_size": 8},  # it scales every picture to that area
    ),
}


class Stop(Exception):
    """Raised where a pipeline has made what a test needs."""


def of_texts(value: Any, texts: list[str]) -> Any:
    """The rows of these texts, where there is one for each."""
    if value is None or len(value) != ROWS:
        return value
    rows = [TEXTS.index(text) if text in TEXTS else 0 for text in texts]  # CogView4 adds one
    return value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]


def first_step(case: Pipeline, model: Any) -> dict[str, Any]:
    """What the pipeline hands its scheduler until its first step: output, timestep, sample, mu."""
    kind = getattr(diffusers, case.name)
    scheduler = getattr(diffusers, case.scheduler)(**case.options)
    parts = {"transformer": model, "scheduler": scheduler, **(case.parts or dict)()}
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    if case.name == "BriaPipeline":  # it needs one
        parts["vae"] = diffusers.AutoencoderKL(block_out_channels=(2,) * 4, norm_num_groups=1)
    pipe = kind(**{name: parts.get(name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    for name, value in case.attributes.items():
        setattr(pipe, name, value)
    found: dict[str, Any] = {"mu": None}

    def step(output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> Any:
        found.update(output=output, timestep=timestep, sample=sample, pipe=pipe)
        raise Stop

    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def watched(*args: Any, **options: Any) -> None:
        found["mu"] = options.get("mu")
        set_timesteps(*args, **options)

    scheduler.step, scheduler.set_timesteps = step, watched

    @functools.wraps(pipe.encode_prompt)
    def encode_prompt(prompt: list[str], *_: Any, **options: Any) -> Any:
        made = case.second() if options.get("text_encoder_index") else case.text()
        return tuple(of_texts(one, prompt) for one in made)

    if case.parts is None:
        pipe.encode_prompt = encode_prompt
    with pytest.raises(Stop), torch.no_grad():
        pipe(
            prompt=list(TEXTS),
            height=case.size[0],
            width=case.size[1],
            guidance_scale=case.guidance,
            num_inference_steps=case.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **case.call,
        )
    return found
