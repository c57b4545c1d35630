"""Sample pictures from the same references with one setting after another, and embed them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import EncoderError
from imageprompt.generation.pipeline_call import (
    StartImages,
    check_size,
    options_of,
    with_own_defaults,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.generation.reference import Reference
    from imageprompt.generation.request import Request


@dataclass(frozen=True)
class ProbeModels:
    """The opened models; `names` are the names that the user knows them by."""

    pipe: Any
    adapter: Adapter
    options: Mapping[str, Any]
    """The pipeline's arguments, except prompt and generator."""
    names: Mapping[str, str | None]


@contextmanager
def open_models(request: Request, reference: Reference) -> Iterator[ProbeModels]:
    """The models that both name, with the adapter attached; everything is restored at the end."""
    folder = loading.base_folder(request.base)
    source = reference.adapter
    if isinstance(source, str | os.PathLike | None):
        source = loading.find_adapter(source, folder, cached_only=False)
    base = loading.load_base(
        request.base, folder, dtype=request.dtype, device=request.device, bars=request.progress
    )
    pipe = base.pipe
    request = replace(request, **with_own_defaults(request, base.name))
    if request.size is not None:
        check_size(request.size, pipe)
    options = options_of(request, pipe, StartImages(), request.size)
    del options["prompt"]
    adapter, record = loading.load_adapter(source, pipe, reference.variant)
    bar = getattr(pipe, "_progress_bar_config", {})
    loading.attach_adapter(adapter, record, base, encoder=reference.encoder, faces=reference.faces)
    try:
        pipe.set_progress_bar_config(**{**bar, "disable": True})
        with loading.few_threads(base):
            yield ProbeModels(pipe, adapter, options, {"base": base.name, "adapter": record.name})
    finally:
        pipe.set_progress_bar_config(**bar)
        adapter.detach()


class Sampler:
    """Samples pictures from all references, in batches, each with its text and a seed.

    `on_pictures` is called with the number of pictures of each finished batch.
    """

    def __init__(
        self,
        models: ProbeModels,
        references: Sequence[Image],
        texts: Sequence[str],
        batch_size: int,
        on_pictures: Callable[[int], object],
    ) -> None:
        self._models, self._texts = models, texts
        self._batch_size, self._on_pictures = batch_size, on_pictures
        self._batches: list[tuple[slice, ImagePrompt]] = []
        for start in range(0, len(references), batch_size):
            batch = slice(start, start + batch_size)
            prompt = models.adapter.encode([[one] for one in references[batch]])
            self._batches.append((batch, prompt))
        self._targets = self._embed(references)

    def sample(self, scale: float | Mapping[str, float], seeds: Sequence[int]) -> list[Image]:
        """Pictures of every reference with the first seed, then of every one with the next ..."""
        import torch

        pictures: list[Image] = []
        for seed in seeds:
            for batch, prompt in self._batches:
                texts = list(self._texts[batch])
                first = seed * 100_000 + batch.start  # every reference has its own noise
                noise = [torch.Generator().manual_seed(first + i) for i in range(len(texts))]
                with self._models.adapter.use(prompt, scale=scale):
                    images = self._models.pipe(
                        prompt=texts, generator=noise, **self._models.options
                    ).images
                pictures += images
                self._on_pictures(len(images))
        return pictures

    def cosines(self, pictures: Sequence[Image]) -> list[float] | None:
        """Cosines of the embeddings of pictures, in the order of `sample`, and of references.

        None if the adapter reads no pictures, or its encoder makes no `image_embeds`.
        """
        if self._targets is None:
            return None
        embeddings = self._embed(pictures)
        assert embeddings is not None
        targets = self._targets.repeat(len(pictures) // len(self._targets), 1)
        cosines: list[float] = (embeddings * targets).sum(1).tolist()
        return cosines

    def _embed(self, pictures: Sequence[Image]) -> Tensor | None:
        """Unit vectors [n, F]."""
        import torch

        encoder = self._models.adapter.encoder
        if encoder is None:
            return None
        parts = []
        for start in range(0, len(pictures), self._batch_size):
            try:
                part = encoder.encode(pictures[start : start + self._batch_size], "image_embeds")
            except EncoderError:
                return None
            parts.append(torch.nn.functional.normalize(part.float().flatten(1), dim=1).cpu())
        return torch.cat(parts)
