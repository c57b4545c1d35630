"""The training set as the loop reads it: batches of latents, text states and image features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from imageprompt.training.data.random_streams import RandomStreams, indices_at

if TYPE_CHECKING:
    from imageprompt.training.cache.cached_dataset import CachedDataset
    from imageprompt.training.cache.encode import OnProgress
    from imageprompt.training.cache.feature_extractors import FeatureExtractors
    from imageprompt.training.data.online_dataset import OnlineDataset
    from imageprompt.training.data.sources import Records
    from imageprompt.training.data.views import PictureOptions

Features = Tensor | tuple[Tensor, ...]
"""[b, ...], or two of them where a variant reads a face embedding beside patch features."""


@dataclass
class Batch:
    """b samples: clean latents [b, c, h, w], text states [b, l, d], image features [b, ...].

    `added` holds the denoiser's other conditions: SDXL's `text_embeds` [b, p] and `time_ids` [b, 6]
    (original height and width, crop top and left, target height and width; float32).
    """

    latents: Tensor
    text: Tensor
    features: Features
    added: dict[str, Tensor] = field(default_factory=dict)


class Dataset(Protocol):
    """A training set. Subclasses inherit `null_added` and `indices`."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        """The samples at `indices`; each makes its random choices from its own stream."""

    def null_text(self) -> Tensor:
        """Text states of the empty caption [1, l, d]."""

    def null_features(self) -> Features:
        """Image features of the null image by the variant's rule [1, ...]."""

    def null_added(self) -> dict[str, Tensor]:
        """The parts of `Batch.added` that are dropped with the text, for the empty caption."""
        return {}

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """The samples of a step of all processes together, from one bucket, [batch]."""
        return indices_at(step, batch, len(self), seed)


def dataset_fingerprint(
    records: Records, extractors: FeatureExtractors, options: PictureOptions
) -> str:
    """16 hex digits that change with the data, the models that encode it, or how it is cropped.

    The same with and without a cache.
    """
    parts = (records.fingerprint(), options.identity(), extractors.identity())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def open_dataset(
    data: str | Mapping[str, Any],
    cache: str | None,
    extractors: FeatureExtractors,
    options: PictureOptions,
    *,
    online: bool = False,
    log: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> OnlineDataset | CachedDataset:
    """The samples of `data`; what a `cache` lacks is encoded first.

    Several processes that open the same cache share that work. Raises OptionError, NotFoundError,
    PictureError, CacheError.
    """
    from imageprompt.training.data.sources import DataOptions, open_data

    source = DataOptions.of(data)
    records = open_data(source)
    if cache is None:
        from imageprompt.training.data.online_dataset import OnlineDataset
        from imageprompt.training.data.scan import Quarantine

        quarantine = Quarantine(len(records), source.max_broken, records.problems())
        return OnlineDataset(records, extractors, options, quarantine)
    from imageprompt.training.cache.cached_dataset import CachedDataset, CacheIndex, index_path

    folder = Path(cache).expanduser()
    encoded_online = (records, extractors) if online and extractors.reads_pictures else None
    index = CacheIndex.load(index_path(folder, records, extractors, options, online))
    if index is not None:
        dataset = CachedDataset(folder, index, encoded_online)
        if dataset.complete():
            return dataset
    from imageprompt.training.cache.build import build_cache

    report = build_cache(
        records,
        extractors,
        options,
        folder,
        max_broken=source.max_broken,
        online=online,
        log=log,
        on_progress=on_progress,
    )
    assert report.index is not None  # not a dry run
    return CachedDataset(folder, report.index, encoded_online)
