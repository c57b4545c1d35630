"""Samples from a feature cache; frozen models are only needed for features encoded online."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.spec import Feature
from imageprompt.training.cache.store import Addresses, Store, save_tensors
from imageprompt.training.data.bucket_sampler import BucketSampler
from imageprompt.training.data.dataset import Batch, Dataset, Features
from imageprompt.training.data.feature_extractors import (
    FeatureExtractors,
    LatentScaling,
    combine_features,
    dataset_fingerprint,
)
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.data.scan import HASH
from imageprompt.training.data.sources import Records
from imageprompt.training.data.views import PictureOptions

_NULL = "null."


@dataclass(frozen=True)
class CacheIndex:
    """Which entries of the cache make up each sample; n samples with v views of each.

    tensors: `moments` [n, v, 16], `text` [n, 16] and `features` [n, 16] are addresses, uint8;
    `time_ids` int32 [n, v, 6]; `group` int32 [n], the bucket or -1; `tokens` int32 [n], the length
    of the caption; `origin` int64 [n], the record; `face` float32 [n, ...] if the variant reads
    one; `null.*`: null image and empty caption.
    """

    tensors: dict[str, Tensor]
    model_ids: dict[str, str]
    latents: LatentScaling
    feature: Feature
    broken: list[str]
    """A line for everything that could not be read."""
    fingerprint: str

    def save(self, path: Path) -> None:
        """Write it atomically. Raises CacheError."""
        plain = {
            "recipes": self.model_ids,
            "latents": asdict(self.latents),
            "feature": str(self.feature),
            "broken": self.broken,
            "fingerprint": self.fingerprint,
        }
        save_tensors(path, self.tensors, {"set": json.dumps(plain)})

    def equals(self, other: CacheIndex) -> bool:
        """Whether both hold the same samples."""
        if self.tensors.keys() != other.tensors.keys() or self.broken != other.broken:
            return False
        return all(torch.equal(self.tensors[name], other.tensors[name]) for name in self.tensors)

    @classmethod
    def load(cls, path: Path) -> CacheIndex | None:
        """What `save` wrote; None if missing or damaged (rebuilt cheaply)."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                plain: dict[str, Any] = json.loads(handle.metadata()["set"])
            return cls(
                tensors,
                plain["recipes"],
                LatentScaling(**plain["latents"]),
                Feature.parse(plain["feature"]),
                plain["broken"],
                plain["fingerprint"],
            )
        except Exception:  # safetensors, JSON and the system raise their own
            return None


def index_path(
    folder: Path,
    records: Records,
    extractors: FeatureExtractors,
    options: PictureOptions,
    online: bool,
) -> Path:
    """The file of the index for these records, encoded and cropped like this."""
    name = dataset_fingerprint(records, extractors, options)
    return folder / "sets" / f"{name}{'-online' if online else ''}.safetensors"


def open_store(folder: Path, kind: str, model_id: str) -> Store:
    """The entries of a kind made by one model."""
    return Store(folder / kind / model_id)


class CachedDataset(Dataset):
    """The samples of an index. `online` encodes image features from the records instead."""

    def __init__(
        self,
        folder: Path,
        index: CacheIndex,
        online: tuple[Records, FeatureExtractors] | None = None,
    ) -> None:
        self.index, self._online = index, online
        self._stores = {
            kind: open_store(folder, kind, model_id)
            for kind, model_id in index.model_ids.items()
            if kind in index.tensors
        }
        bucket = index.tensors["group"].numpy()
        numbers = range(int(bucket.max()) + 1)
        self._sampler = BucketSampler([np.flatnonzero(bucket == number) for number in numbers])

    def __len__(self) -> int:
        return len(self._sampler)

    def complete(self) -> bool:
        """Whether every entry is in the cache."""
        return all(
            bool(store.has(addresses_of(self.index.tensors[kind])).all())
            for kind, store in self._stores.items()
        )

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        return self._sampler.indices(step, batch, seed)

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        tensors, views = self.index.tensors, self.index.tensors["moments"].shape[1]
        numbers = (
            streams.integers(views) if views > 1 else torch.zeros(len(indices), dtype=torch.long)
        )
        moments = self._read("moments", tensors["moments"][indices, numbers], "moments")
        noise = streams.randn(moments.shape[1] // 2, *moments.shape[2:])
        latents = self.index.latents.sample(moments, noise)
        added = {}
        if "null.text_embeds" in tensors:
            added["text_embeds"] = self._read("text", tensors["text"][indices], "text_embeds")
            added["time_ids"] = tensors["time_ids"][indices, numbers].float()
        return Batch(latents, self._states(indices), self._features(indices), added)

    def null_text(self) -> Tensor:
        return self.index.tensors["null.states"]

    def null_added(self) -> dict[str, Tensor]:
        name = "null.text_embeds"
        found = self.index.tensors.get(name)
        return {} if found is None else {name.removeprefix(_NULL): found}

    def null_features(self) -> Features:
        tensors = self.index.tensors
        return combine_features(
            self.index.feature, tensors.get("null.encoded"), tensors.get("null.face")
        )

    def caption_batch(self, indices: Tensor) -> tuple[Features, Tensor, list[int]]:
        """Image features, text states, and the number of tokens in each caption."""
        tokens = self.index.tensors["tokens"][indices].tolist()
        return self._features(indices), self._states(indices), tokens

    def describe(self) -> str:
        """One line: how many samples, in how many sizes, encoded when."""
        online = ", image features encoded online" if self._online else ""
        return (
            f"{len(self):,} samples in {len(self._sampler.buckets)} size(s), from the cache{online}"
        )

    def fingerprint(self) -> str:
        """Changes with the data or the models that encoded it."""
        return self.index.fingerprint

    def quarantined(self) -> list[str]:
        """A line for everything that could not be read when the cache was built."""
        return self.index.broken

    def _states(self, indices: Tensor) -> Tensor:
        return self._read("text", self.index.tensors["text"][indices], "states")

    def _features(self, indices: Tensor) -> Features:
        tensors = self.index.tensors
        face = tensors["face"][indices] if "face" in tensors else None
        encoded = None
        if self._online is not None:
            records, extractors = self._online
            rows = tensors["origin"][indices].tolist()
            encoded = extractors.encode_references(
                [records.record(row).open_reference() for row in rows]
            )
        elif "features" in tensors:
            encoded = self._read("features", tensors["features"][indices], "encoded")
        return combine_features(self.index.feature, encoded, face)

    def _read(self, kind: str, addresses: Tensor, name: str) -> Tensor:
        """One tensor of the entries at these addresses, uint8 [b, 16] -> [b, ...]."""
        store = self._stores[kind]
        return torch.stack([store.read(bytes(one), name) for one in addresses_of(addresses)])


def addresses_of(hashes: Tensor) -> Addresses:
    """Hashes uint8 [..., 16] as addresses, one row."""
    rows = hashes.reshape(-1, HASH).numpy()
    return np.array([bytes(row).hex().encode() for row in rows], "S32")
