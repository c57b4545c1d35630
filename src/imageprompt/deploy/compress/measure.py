"""The error of changed weights: the base's guided prediction at three timesteps, references in use.

error = |e - e_full| / |e_full - e_base|, over all references and timesteps: e_full with the whole
adapter, e_base without. The text is empty, the latents are the references' own, noised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.core.bundled import GUIDANCE
from imageprompt.hosts import training_of
from imageprompt.training.data.latents import Vae
from imageprompt.training.loop.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt

TIMES = (0.1, 0.5, 0.9)  # of the training steps: 100, 500 and 900 of 1000
TOGETHER = 8  # references in a call
_DISTILLED = 3.5


class Measure:
    """An attached adapter with references; its weights are those of the module at each call."""

    @torch.no_grad()
    def __init__(
        self, pipe: Any, denoiser: Any, adapter: Adapter, pictures: Sequence[Image], seed: int = 0
    ) -> None:
        self._denoiser, self._adapter = denoiser, adapter
        self._training = training_of(denoiser)
        self._distilled = bool(denoiser.config.get("guidance_embeds"))
        self.prompts = list(_prompts(adapter, pictures))
        latents = _latents(pipe, denoiser, pictures)
        positions = (
            latents.shape[-1] * latents.shape[-2] // self._training.patch_size(denoiser) ** 2
        )
        mu = self._training.mu(denoiser, pipe.scheduler.config, positions)
        schedule = NoiseSchedule.of(pipe.scheduler, mu=mu)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        self._calls: list[tuple[Tensor, Tensor]] = []
        for share in TIMES:
            times = torch.full((len(latents),), int(share * len(schedule)))
            self._calls.append(
                (schedule.add_noise(latents, noise, times), schedule.model_timesteps[times])
            )
        text, conditions = self._training.encode_text(pipe, [""], None)
        if "text_embeds" in conditions:
            height, width = (side * Vae.of(pipe).factor for side in latents.shape[-2:])
            sizes = [[height, width, 0, 0, height, width]]
            conditions = {**conditions, "time_ids": torch.tensor(sizes, device=text.device)}
        self._text, self._conditions = text, conditions
        self._without = self.predict(0.0)
        self._full = self.predict()

    @property
    def effect(self) -> float:
        """What the whole adapter changes."""
        return float((self._full - self._without).norm())

    def error(self) -> float:
        """Of the module's weights as they are now, over the effect of the whole adapter."""
        return float((self.predict() - self._full).norm()) / self.effect

    @torch.no_grad()
    def predict(self, scale: float = 1.0) -> Tensor:
        """Guided predictions [3 n, c, h, w], float32 on the CPU."""
        found = []
        for latents, times in self._calls:
            for number, prompt in enumerate(self.prompts):
                part = slice(number * TOGETHER, (number + 1) * TOGETHER)
                found.append(self._guided(prompt, latents[part], times[part], scale))
        return torch.cat(found)

    def _guided(self, prompt: Any, latents: Tensor, times: Tensor, scale: float) -> Tensor:
        sides = 1 if self._distilled else 2
        layout = "none" if self._distilled else "negative-positive"
        rows = sides * len(latents)
        denoiser = self._denoiser
        with self._adapter.use(prompt, scale=scale, guidance=layout):
            predicted: Tensor = self._training.predict(
                denoiser,
                latents.repeat(sides, 1, 1, 1).to(denoiser.device, denoiser.dtype),
                times.repeat(sides).to(denoiser.device),
                _rows(self._text, rows).to(denoiser.device, denoiser.dtype),
                {name: _rows(value, rows) for name, value in self._conditions.items()},
                _DISTILLED,
            )
        predicted = predicted.float().cpu()
        if self._distilled:
            return predicted
        negative, positive = predicted.chunk(2)
        return negative + GUIDANCE * (positive - negative)


def image_tokens(adapter: Adapter, pictures: Sequence[Image]) -> Tensor:
    """The image tokens that K' and V' read [n, width], null tokens included."""
    found = [
        part.reshape(-1, part.shape[-1])
        for one in _prompts(adapter, pictures)
        for part in (one.tokens, one.null_tokens)
        if part is not None
    ]
    return torch.cat(found)


def _prompts(adapter: Adapter, pictures: Sequence[Image]) -> Iterator[ImagePrompt]:
    for start in range(0, len(pictures), TOGETHER):
        yield adapter.encode([[picture] for picture in pictures[start : start + TOGETHER]])


def _rows(value: Any, count: int) -> Any:
    return value.repeat(count, *(1,) * (value.ndim - 1))


def _latents(pipe: Any, denoiser: Any, pictures: Sequence[Image]) -> Tensor:
    """The pictures as latents [n, c, h, w], in the base's own size."""
    from PIL import ImageOps

    vae = Vae.of(pipe)
    stated = denoiser.config.get("sample_size")
    factor = vae.factor
    side = factor * stated if isinstance(stated, int) else pictures[0].width // factor * factor
    scaling, found, dtype = vae.scaling, [], vae.model.dtype
    upcast = dtype is torch.float16 and vae.model.config.get("force_upcast")
    if upcast:
        vae.model.to(torch.float32)  # it would overflow, as SDXL's does
    for picture in pictures:
        moments = vae.encode([ImageOps.fit(picture.convert("RGB"), (side, side))])
        noise = torch.zeros(1, scaling.channels(moments), *moments.shape[2:])
        found.append(scaling.sample(moments, noise))
    if upcast:
        vae.model.to(dtype)
    return torch.cat(found)
