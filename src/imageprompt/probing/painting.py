"""Paints the same references with one setting after another, and embeds what came out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt import bundled, ingredients
from imageprompt.errors import EncoderError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.adapter import Adapter
    from imageprompt.prompt import ImagePrompt

_NEEDED = {"prompt", "num_inference_steps", "generator"}


@dataclass(frozen=True)
class Models:
    """What the pictures are painted with, opened; `names` says what they are called."""

    pipe: Any
    adapter: Adapter
    options: Mapping[str, Any]
    """What the pipeline is called with, beside text and seed."""
    names: Mapping[str, str | None]


@contextmanager
def opened(
    base: Any,
    adapter: Any,
    encoder: Any,
    *,
    dtype: str | None,
    device: str | None,
    progress: bool,
    steps: int | None,
    guidance_scale: float | None,
    size: tuple[int, int] | None,
) -> Iterator[Models]:
    """The models, the adapter attached; everything as it was afterwards.

    steps, guidance_scale and size are the base's own where they are None.
    """
    folder = ingredients.base_folder(base)
    choice = None
    if adapter is None or not hasattr(adapter, "attach"):
        choice = ingredients.find_adapter(adapter, folder, cached_only=False)
    found = ingredients.load_base(base, folder, dtype=dtype, device=device, bars=progress)
    options = _options(found, steps, guidance_scale, size)
    if choice is not None:
        adapter, _ = ingredients.load_adapter(choice, found.pipe)
    name = None if choice is None else choice.name
    if adapter.encoder is None or encoder is not None:
        encoder, _ = ingredients.find_encoder(encoder, adapter.spec, found, name)
    bar = getattr(found.pipe, "_progress_bar_config", {})
    adapter.attach(found.pipe, encoder=encoder)
    try:
        found.pipe.set_progress_bar_config(**{**bar, "disable": True})
        with ingredients.few_threads(found):
            yield Models(found.pipe, adapter, options, {"base": found.name, "adapter": name})
    finally:
        found.pipe.set_progress_bar_config(**bar)
        adapter.detach()


def _options(
    base: ingredients.Base,
    steps: int | None,
    guidance_scale: float | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """The pipeline's arguments. Raises OptionError for a base that paints nothing from words."""
    known = inspect.signature(type(base.pipe).__call__).parameters
    if not known.keys() >= _NEEDED:
        raise OptionError(
            f"base of type {type(base.pipe).__name__}",
            rule="it makes no pictures from words",
            remedy="Use a text-to-image pipeline.",
        )
    if base.name == bundled.NAME:
        steps = steps or bundled.STEPS
        guidance_scale = bundled.GUIDANCE if guidance_scale is None else guidance_scale
    wishes: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    if size is not None:
        wishes |= {"width": size[0], "height": size[1]}
    options = {name: value for name, value in wishes.items() if value is not None}
    options.setdefault("num_inference_steps", known["num_inference_steps"].default)
    return options


class Painter:
    """Paints all references, a batch of them side by side, each with its text and a seed.

    `told` hears how many pictures each batch has brought.
    """

    def __init__(
        self,
        models: Models,
        references: Sequence[Image],
        texts: Sequence[str],
        batch_size: int,
        told: Callable[[int], object],
    ) -> None:
        self._models, self._texts, self._size, self._told = models, texts, batch_size, told
        self._batches: list[tuple[slice, ImagePrompt]] = []
        for start in range(0, len(references), batch_size):
            chosen = slice(start, start + batch_size)
            prompt = models.adapter.encode([[one] for one in references[chosen]])
            self._batches.append((chosen, prompt))
        self._targets = self._embedded(references)

    def paint(self, scale: float | Mapping[str, float], seeds: Sequence[int]) -> list[Image]:
        """Every reference with the first seed, then every one with the next ..."""
        import torch

        painted: list[Image] = []
        for seed in seeds:
            for chosen, prompt in self._batches:
                texts = list(self._texts[chosen])
                first = seed * 100_000 + chosen.start  # no reference shares its noise with another
                noise = [torch.Generator().manual_seed(first + i) for i in range(len(texts))]
                with self._models.adapter.use(prompt, scale=scale):
                    found = self._models.pipe(
                        prompt=texts, generator=noise, **self._models.options
                    ).images
                painted += found
                self._told(len(found))
        return painted

    def cosines(self, pictures: Sequence[Image]) -> list[float] | None:
        """Of the encoder's embeddings of pictures, in `paint`'s order, and of their references.

        None where the adapter reads no pictures, or reads them with what makes no embedding.
        """
        if self._targets is None:
            return None
        found = self._embedded(pictures)
        assert found is not None
        targets = self._targets.repeat(len(pictures) // len(self._targets), 1)
        cosines: list[float] = (found * targets).sum(1).tolist()
        return cosines

    def _embedded(self, pictures: Sequence[Image]) -> Tensor | None:
        """Unit embeddings [n, F]."""
        import torch

        encoder = self._models.adapter.encoder
        if encoder is None:
            return None
        parts = []
        for start in range(0, len(pictures), self._size):
            try:
                part = encoder.encode(pictures[start : start + self._size], "image_embeds")
            except EncoderError:
                return None
            parts.append(torch.nn.functional.normalize(part.float().flatten(1), dim=1).cpu())
        return torch.cat(parts)
