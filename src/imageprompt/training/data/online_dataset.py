"""Samples that are read and encoded when a step asks for them: nothing is kept on the disk."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.errors import PictureError
from imageprompt.training.cache.encoders import FeatureExtractors, faces_of, joined
from imageprompt.training.data.bucket_sampler import Groups, fingerprint_of
from imageprompt.training.data.dataset import Batch, Features, Samples
from imageprompt.training.data.framing import Framing, PictureOptions
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.data.scan import Quarantine, digest
from imageprompt.training.data.sources import Record, Records

if TYPE_CHECKING:
    from PIL.Image import Image

_CAPTIONS = 256  # whose states are kept: many data sets have few different ones


@dataclass
class _Row:
    """One sample that could be read."""

    record: Record
    picture: Image
    reference: Image | None
    face: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None
    digest: bytes


class OnlineDataset(Samples):
    """Records through encoders. A broken sample's place is taken by the next one of its bucket."""

    def __init__(
        self,
        records: Records,
        encoders: FeatureExtractors,
        options: PictureOptions,
        quarantine: Quarantine,
    ) -> None:
        self._records, self._encoders, self._options = records, encoders, options
        self._quarantine = quarantine
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._texts: OrderedDict[str, tuple[Tensor, dict[str, Tensor]]] = OrderedDict()
        self._groups = Groups.all(len(records))
        if len(options.sizes) > 1:
            sizes = np.array(list(self._pool.map(self._size, range(len(records)))), np.int32)
            self._groups = Groups.by_size(sizes, options)
        self._told_cut = False
        self._a_face: Tensor | None = None

    def __len__(self) -> int:
        return len(self._groups)

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        return self._groups.indices(step, batch, seed)

    def batch(self, indices: Tensor, chance: RandomStreams) -> Batch:
        rows = list(self._pool.map(self._row, indices.tolist()))
        framings = self._framings(rows, chance)
        shown = [f.apply(row.picture) for f, row in zip(framings, rows, strict=True)]
        moments = self._encoders.moments(shown)
        noise = chance.randn(moments.shape[1] // 2, *moments.shape[2:])
        text, added = self._text([row.record.text for row in rows])
        if added:
            added["time_ids"] = torch.tensor([f.time_ids() for f in framings]).float()
        latents = self._encoders.latents.draw(moments, noise)
        return Batch(latents, text, self._features(rows), added)

    def null_text(self) -> Tensor:
        return self._text([""])[0]

    def null_added(self) -> dict[str, Tensor]:
        return self._text([""])[1]

    def null_features(self) -> Features:
        if self._encoders.reads_faces and self._a_face is None:
            self._a_face = self._faces([self._row(int(self._groups.groups[0][0]))])
        return self._encoders.null(self._a_face)

    def captioned(self, indices: Tensor) -> tuple[Features, Tensor, list[int]]:
        """Image features, text states, and how many tokens each caption has."""
        rows = list(self._pool.map(self._row, indices.tolist()))
        captions = [row.record.text for row in rows]
        counts = self._encoders.token_counts(captions)
        states = self._text(captions)[0]
        return self._features(rows), states, [min(n, states.shape[1]) for n in counts]

    def describe(self) -> str:
        """One line: how many, in which sizes, encoded where."""
        return f"{len(self):,} samples in {len(self._groups.groups)} size(s), encoded every step"

    def fingerprint(self) -> str:
        """Changes when the data or what encodes it does."""
        return fingerprint_of(self._records, self._encoders, self._options)

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

    def _row(self, index: int) -> _Row:
        """Sample `index`, or the next good one of its bucket."""
        while True:
            if index not in self._quarantine:
                try:
                    return self._read(self._records.record(index))
                except PictureError as error:
                    self._quarantine.add(index, str(error))
            index = self._groups.after(index)

    def _read(self, record: Record) -> _Row:
        reads, faces = self._encoders.reads_pictures, self._encoders.reads_faces
        fixed = self._options.fixed_views > 1
        picture = record.open_picture()
        other = record.open_reference() if reads and record.reference else None
        return _Row(
            record,
            picture,
            (other or picture) if reads else None,
            record.id_embeds() if faces else None,
            digest(record.picture.read()) if fixed else b"",
        )

    def _framings(self, rows: Sequence[_Row], chance: RandomStreams) -> list[Framing]:
        options, sizes = self._options, [row.picture.size for row in rows]
        views = options.fixed_views
        if views == 0:
            draws = chance.rand(3).tolist()
            return [options.framing(s, *three) for s, three in zip(sizes, draws, strict=True)]
        numbers = chance.integers(views).tolist() if views > 1 else [0] * len(rows)
        return [
            options.view(size, row.digest, number)
            for size, row, number in zip(sizes, rows, numbers, strict=True)
        ]

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        new = [one for one in dict.fromkeys(captions) if one not in self._texts]
        if new:
            self._tell_cut(new)
            states, added = self._encoders.text(new)
            for row, caption in enumerate(new):
                own = {name: value[row] for name, value in added.items()}
                self._texts[caption] = states[row], own
        found = [self._texts[one] for one in captions]
        while len(self._texts) > _CAPTIONS:
            self._texts.popitem(last=False)
        names = found[0][1]
        return (
            torch.stack([states for states, _ in found]),
            {name: torch.stack([added[name] for _, added in found]) for name in names},
        )

    def _tell_cut(self, captions: Sequence[str]) -> None:
        """Say once that captions are cut; how many there are is known only to `prepare`."""
        most = self._encoders.most_tokens
        counts = self._encoders.token_counts(captions)
        if not self._told_cut and max(counts) > most:
            self._told_cut = True
            longest = captions[counts.index(max(counts))]
            warnings.warn(
                f"captions longer than {most} tokens are cut, such as {longest[:200]!r}",
                stacklevel=4,
            )

    def _features(self, rows: Sequence[_Row]) -> Features:
        pictures = [row.reference for row in rows if row.reference is not None]
        encoded = self._encoders.image(pictures) if pictures else None
        faces = self._faces(rows) if self._encoders.reads_faces else None
        return joined(self._encoders.feature, encoded, faces)

    @staticmethod
    def _faces(rows: Sequence[_Row]) -> Tensor:
        found = [row.face for row in rows if row.face is not None]
        return faces_of(found, [row.record.key for row in rows])
