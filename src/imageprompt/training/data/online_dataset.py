"""Samples that are read and encoded in the step that needs them; nothing is stored on disk."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.core.errors import PictureError
from imageprompt.training.data.dataset import Batch, BucketSampler, Dataset, Features, RandomStreams
from imageprompt.training.data.feature_extractors import (
    FeatureExtractors,
    combine_features,
    dataset_fingerprint,
    stack_faces,
)
from imageprompt.training.data.scan import Quarantine
from imageprompt.training.data.sources import Record, Records
from imageprompt.training.data.sources.contract import HASH
from imageprompt.training.data.views import PictureOptions, View

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.training.data.pairs import Opened, PairReferences

T = TypeVar("T")
_TEXT_CACHE = 256  # captions whose states are kept: many data sets have few different ones


@dataclass
class _Row:
    """One sample that could be read."""

    record: Record
    picture: Image
    content_hash: bytes
    reference: Image | None
    """None for variants that read face embeddings alone."""
    face: NDArray[np.float32] | None
    pair: Opened | None = None
    """What the references of a pair come from."""


class OnlineDataset(Dataset):
    """Encodes records on the fly. The next sample in its bucket takes a broken sample's place."""

    def __init__(
        self,
        records: Records,
        extractors: FeatureExtractors,
        options: PictureOptions,
        quarantine: Quarantine,
        pairs: PairReferences | None = None,
    ) -> None:
        """With `pairs`, features are those of a content and a style reference."""
        self._pairs = pairs
        self._records, self._extractors, self._options = records, extractors, options
        self._quarantine = quarantine
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._texts: OrderedDict[str, tuple[Tensor, dict[str, Tensor]]] = OrderedDict()
        self._sampler = BucketSampler.single(len(records))
        if len(options.sizes) > 1:
            sizes = np.array(list(self._pool.map(self._size, range(len(records)))), np.int32)
            self._sampler = BucketSampler.by_size(sizes, options)
        self._warned_truncation = False
        self._first_face: Tensor | None = None

    def __len__(self) -> int:
        return len(self._sampler)

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        return self._sampler.indices(step, batch, seed)

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        rows = self._rows(indices)
        views = self._views(rows, streams)
        cropped = [view.apply(row.picture) for view, row in zip(views, rows, strict=True)]
        moments = self._extractors.vae.encode(cropped)
        latents = self._extractors.latents(self._extractors.vae.scaling, moments, streams)
        text, added = self._text([row.record.text for row in rows])
        if "text_embeds" in added:
            added["time_ids"] = torch.tensor([view.time_ids() for view in views]).float()
        return Batch(latents, text, self._features(rows, streams), added)

    def null_text(self) -> Tensor:
        return self._text([""])[0]

    def null_added(self) -> dict[str, Tensor]:
        return self._text([""])[1]

    def null_features(self) -> Features:
        if self._pairs is not None:
            return self._pairs.null_features()
        if self._extractors.reads_faces and self._first_face is None:
            first = int(self._sampler.buckets[0][0])
            self._first_face = stack_faces([self._first_good(first, Record.id_embeds)], [""])
        return self._extractors.null_features(self._first_face)

    def caption_batch(
        self, indices: Tensor, part: int | None = None
    ) -> tuple[Features, Tensor, list[int]]:
        """Image features, text states, and the number of tokens in each caption.

        `part` asks for the features, and the captions, of one adapter of a pair.
        """
        rows = self._rows(indices)
        captions = [row.record.caption_of(part) for row in rows]
        counts = self._extractors.token_counts(captions)
        states, streams = self._text(captions)[0], RandomStreams.of_samples(indices)
        if self._pairs is None or part is None:
            features = self._features(rows, streams)
        else:
            opened = [row.pair for row in rows if row.pair]
            features = self._pairs.features_of(part, opened, streams)
        return features, states, [min(n, states.shape[1]) for n in counts]

    def describe(self) -> str:
        """One line: how many samples, in how many sizes, encoded when."""
        return f"{len(self):,} samples in {len(self._sampler.buckets)} size(s), encoded every step"

    def fingerprint(self) -> str:
        """Changes with the data or the models that encode it."""
        return dataset_fingerprint(self._records, self._extractors, self._options)

    def quarantined(self) -> list[str]:
        """A line for everything that could not be read so far."""
        return self._quarantine.lines()

    # ── one batch ───────────────────────────────────────────────────────────────────────────────

    def _size(self, index: int) -> tuple[int, int]:
        try:
            return self._records.record(index).size()
        except PictureError as error:
            self._quarantine.add(index, str(error))
            return 0, 0

    def _rows(self, indices: Tensor) -> list[_Row]:
        return list(
            self._pool.map(lambda index: self._first_good(index, self._read), indices.tolist())
        )

    def _first_good(self, index: int, read: Callable[[Record], T]) -> T:
        """What `read` returns for sample `index`, or for the next good one in its bucket."""
        first = index
        while True:
            if index not in self._quarantine:
                try:
                    return read(self._records.record(index))
                except PictureError as error:
                    self._quarantine.add(index, str(error))
            self._quarantine.check()
            index = self._sampler.next_in_bucket(index)
            if index == first and index in self._quarantine:
                raise PictureError(
                    "all samples of one size",
                    reason="cannot be read, and none can take their place",
                    hint="Repair or remove them, or let `resolution` cut all to one size.",
                )

    def _read(self, record: Record) -> _Row:
        picture, digest = record.open_with_hash()
        if self._pairs is not None:
            return _Row(record, picture, digest[:HASH], None, None, self._pairs.open(record))
        reference = None
        if self._extractors.reads_pictures:
            reference = picture if record.reference is None else record.open_reference()
        face = record.id_embeds() if self._extractors.reads_faces else None
        return _Row(record, picture, digest[:HASH], reference, face)

    def _views(self, rows: Sequence[_Row], streams: RandomStreams) -> list[View]:
        options, sizes = self._options, [row.picture.size for row in rows]
        count = options.fixed_views
        if count == 0:
            draws = streams.rand(3).tolist()
            return [options.view_at(size, *three) for size, three in zip(sizes, draws, strict=True)]
        numbers = streams.integers(count).tolist() if count > 1 else [0] * len(rows)
        return [
            options.view(size, row.content_hash, number)
            for size, row, number in zip(sizes, rows, numbers, strict=True)
        ]

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        new = [one for one in dict.fromkeys(captions) if one not in self._texts]
        if new:
            self._warn_truncation(new)
            states, added = self._extractors.encode_text(new)
            for row, caption in enumerate(new):
                own = {name: value[row] for name, value in added.items()}
                self._texts[caption] = states[row], own
        found = [self._texts[one] for one in captions]
        while len(self._texts) > _TEXT_CACHE:
            self._texts.popitem(last=False)
        names = found[0][1]
        return (
            torch.stack([states for states, _ in found]),
            {name: torch.stack([added[name] for _, added in found]) for name in names},
        )

    def _warn_truncation(self, captions: Sequence[str]) -> None:
        """Warn once that captions are truncated; only building a cache counts them."""
        limit = self._extractors.max_tokens
        counts = self._extractors.token_counts(captions)
        if not self._warned_truncation and max(counts) > limit:
            self._warned_truncation = True
            longest = captions[counts.index(max(counts))]
            warnings.warn(
                f"captions longer than {limit} tokens are truncated, such as {longest[:200]!r}",
                stacklevel=4,
            )

    def _features(self, rows: Sequence[_Row], streams: RandomStreams) -> Features:
        if self._pairs is not None:
            return self._pairs.features([row.pair for row in rows if row.pair], streams)
        pictures = [row.reference for row in rows if row.reference is not None]
        encoded = self._extractors.encode_references(pictures) if pictures else None
        faces = None
        if self._extractors.reads_faces:
            embeddings = [row.face for row in rows if row.face is not None]
            faces = stack_faces(embeddings, [row.record.key for row in rows])
        return combine_features(self._extractors.feature, encoded, faces)
