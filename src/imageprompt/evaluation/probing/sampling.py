"""Paints the same references with one setting after another, and embeds what came out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import EncoderError
from imageprompt.generation.pipeline_call import options_of, with_own_defaults
from imageprompt.generation.start_images import StartImages

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.generation.reference import Reference
    from imageprompt.generation.request import Request


@dataclass(frozen=True)
class Models:
    """What the pictures are painted with, opened; `names` says what they are called."""

    pipe: Any
    adapter: Adapter
    options: Mapping[str, Any]
    """What the pipeline is called with, beside text and seed."""
    names: Mapping[str, str | None]


@contextmanager
def opened(request: Request, shown: Reference) -> Iterator[Models]:
    """The models that both name, the adapter attached; everything as it was afterwards."""
    folder = loading.base_folder(request.base)
    given = shown.adapter
    if isinstance(given, str | os.PathLike | None):
        given = loading.find_adapter(given, folder, cached_only=False)
    base = loading.load_base(
        request.base, folder, dtype=request.dtype, device=request.device, bars=request.progress
    )
    request = replace(request, **with_own_defaults(request, base.name))
    start = StartImages.open(request)
    options = options_of(request, base.pipe, start, start.size(request.size, base.pipe))
    adapter, record = loading.load_adapter(given, base.pipe, shown.variant)
    bar = getattr(base.pipe, "_progress_bar_config", {})
    loading.attach_adapter(
        adapter,
        record,
        base,
        encoder=shown.encoder,
        faces=shown.faces,
        quiet=not request.progress,
    )
    try:
        base.pipe.set_progress_bar_config(**{**bar, "disable": True})
        with loading.few_threads(base):
            del options["prompt"]
            yield Models(base.pipe, adapter, options, {"base": base.name, "adapter": record.name})
    finally:
        base.pipe.set_progress_bar_config(**bar)
        adapter.detach()


class Painter:
    """Paints all references, a batch of them side by side, each with its text and a seed.

    `on_progress` hears how many pictures each batch has brought.
    """

    def __init__(
        self,
        models: Models,
        references: Sequence[Image],
        texts: Sequence[str],
        batch_size: int,
        on_progress: Callable[[int], object],
    ) -> None:
        self._models, self._texts, self._size, self._on_progress = (
            models,
            texts,
            batch_size,
            on_progress,
        )
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
                self._on_progress(len(found))
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
