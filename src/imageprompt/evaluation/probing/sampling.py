"""Sample pictures from the same references with one setting after another, and embed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.encoding.encoders.contract import pooled_feature
from imageprompt.generation.apply_references import attach_references
from imageprompt.generation.engine import run_requests
from imageprompt.generation.run import prepare
from imageprompt.loading import LocatedAdapter
from imageprompt.loading.models import models_of, turn_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.core.spec import Site
    from imageprompt.generation.request import Request


@dataclass(frozen=True)
class ProbeModels:
    """What is known of the models; they stay loaded for the run, as those of `generate` do."""

    sites: Sequence[Site]
    """Of the base."""
    encoder: Any
    """The adapter's image encoder; None if it reads no pictures."""
    options: Mapping[str, Any]
    """The pipeline's arguments, except prompt and generator."""
    names: Mapping[str, str | None]
    """The names that the user knows them by."""


@contextmanager
def open_models(request: Request) -> Iterator[ProbeModels]:
    """Load the models that a request names. In the block, a bundled stack runs on one thread."""
    from imageprompt.adapter.attachment import AttachedDenoiser

    models = models_of(request.base, request.dtype, request.device)
    with models.turn, turn_of(request.base):
        prepared = prepare(request, models)
        base, pipe, opened = prepared.base, prepared.pipe, prepared.opened
        with ExitStack() as stack:
            attached = attach_references(stack, opened, request, base, pipe, models)
            encoder = attached[opened[0].attachment][0].adapter.encoder
            sites = AttachedDenoiser.of(pipe).spec.sites
    located = opened[0].adapter
    adapter = located.name if isinstance(located, LocatedAdapter) else None
    options = {name: value for name, value in prepared.options.items() if name != "prompt"}
    with loading.few_threads(base):
        yield ProbeModels(sites, encoder, options, {"base": base.name, "adapter": adapter})


class Sampler:
    """Samples pictures from all references, in batches, each with its text and a seed.

    `request` names the models and the options. `on_picture` is called for each finished picture.
    """

    def __init__(
        self,
        models: ProbeModels,
        request: Request,
        references: Sequence[Image],
        texts: Sequence[str],
        on_picture: Callable[[], object],
    ) -> None:
        self._models, self._request, self._on_picture = models, request, on_picture
        self._pairs = list(zip(references, texts, strict=True))
        self._batch_size = request.batch_size
        self._targets = self._embed(references)

    def sample(self, scale: float | Mapping[str, float], seeds: Sequence[int]) -> list[Image]:
        """Pictures of every reference with the first seed, then of every one with the next ..."""
        pictures: list[Image] = []
        for seed in seeds:
            results = run_requests(
                list(self._requests(scale, 100_000 * seed)),
                batch_size=self._batch_size,
                on_image=lambda _: self._on_picture(),
            )
            pictures += [result.images[0] for result in results]
        return pictures

    def _requests(self, scale: float | Mapping[str, float], seed: int) -> Iterator[Request]:
        """One for each reference, with noise of its own."""
        (shared,) = self._request.references
        for index, (picture, text) in enumerate(self._pairs):
            reference = replace(shared, reference=picture, scale=scale)
            yield replace(self._request, prompt=text, seed=seed + index, references=(reference,))

    def cosines(self, pictures: Sequence[Image]) -> list[float] | None:
        """Cosines of the embeddings of pictures, in the order of `sample`, and of references.

        None if the adapter reads no pictures, or its encoder makes no pooled feature.
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

        encoder = self._models.encoder
        feature = None if encoder is None else pooled_feature(encoder)
        if encoder is None or feature is None:
            return None
        parts = []
        for start in range(0, len(pictures), self._batch_size):
            part = encoder.encode(pictures[start : start + self._batch_size], feature)
            parts.append(torch.nn.functional.normalize(part.float().flatten(1), dim=1).cpu())
        return torch.cat(parts)
