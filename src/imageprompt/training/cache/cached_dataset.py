"""Samples from a feature cache: no frozen model is needed, except for what is encoded online."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.spec import Feature
from imageprompt.training.cache.encoders import FeatureExtractors, Latents, joined
from imageprompt.training.cache.store import Addresses, Store, save_tensors
from imageprompt.training.data.bucket_sampler import Groups, fingerprint_of
from imageprompt.training.data.dataset import Batch, Features, Samples
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.data.scan import HASH
from imageprompt.training.data.sources import Records

_NULL = "null."


@dataclass(frozen=True)
class PreparedSet:
    """Which entries of the cache make each sample; n samples with v views of each.

    tensors: `moments` [n, v, 16], `text` [n, 16] and `features` [n, 16] are addresses, uint8;
    `time_ids` int32 [n, v, 6]; `group` int32 [n], the bucket or -1; `tokens` int32 [n]; `origin`
    int64 [n], the record; `face` float32 [n, ...] if the variant reads one; `null.*` what the null
    picture and the empty caption are.
    """

    tensors: dict[str, Tensor]
    recipes: dict[str, str]
    latents: Latents
    feature: Feature
    broken: list[str]
    fingerprint: str

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises CacheError."""
        plain = {
            "recipes": self.recipes,
            "latents": asdict(self.latents),
            "feature": str(self.feature),
            "broken": self.broken,
            "fingerprint": self.fingerprint,
        }
        save_tensors(path, self.tensors, {"set": json.dumps(plain)})

    def same(self, other: PreparedSet) -> bool:
        """Is there any difference between the two?"""
        if self.tensors.keys() != other.tensors.keys() or self.broken != other.broken:
            return False
        return all(torch.equal(self.tensors[name], other.tensors[name]) for name in self.tensors)

    @classmethod
    def find(cls, path: Path) -> PreparedSet | None:
        """What `save` wrote there; None if nothing did, or if it is damaged: it is soon made."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                plain: dict[str, Any] = json.loads(handle.metadata()["set"])
            return cls(
                tensors,
                **plain
                | {
                    "latents": Latents(**plain["latents"]),
                    "feature": Feature.parse(plain["feature"]),
                },
            )
        except Exception:  # safetensors, JSON and the system each have their own
            return None


def set_path(
    folder: Path,
    records: Records,
    encoders: FeatureExtractors,
    options: PictureOptions,
    online: bool,
) -> Path:
    """Where the set of these records lies, encoded and framed like that."""
    name = fingerprint_of(records, encoders, options)
    return folder / "sets" / f"{name}{'-online' if online else ''}.safetensors"


def store_folder(folder: Path, kind: str, recipe: str) -> Path:
    """Where the entries of a kind lie."""
    return folder / kind / recipe


class CachedDataset(Samples):
    """A prepared set. `online` encodes image features from the records instead of reading them."""

    def __init__(
        self,
        folder: Path,
        prepared: PreparedSet,
        online: tuple[Records, FeatureExtractors] | None = None,
    ) -> None:
        self._set, self._online = prepared, online
        self._stores = {
            kind: Store(store_folder(folder, kind, recipe))
            for kind, recipe in prepared.recipes.items()
            if kind in prepared.tensors
        }
        group = prepared.tensors["group"].numpy()
        numbers = range(int(group.max()) + 1)
        self._groups = Groups([np.flatnonzero(group == number) for number in numbers])

    def __len__(self) -> int:
        return len(self._groups)

    def complete(self) -> bool:
        """Is every entry in the cache?"""
        return all(
            bool(store.has(addresses_of(self._set.tensors[kind])).all())
            for kind, store in self._stores.items()
        )

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        return self._groups.indices(step, batch, seed)

    def batch(self, indices: Tensor, chance: RandomStreams) -> Batch:
        tensors, views = self._set.tensors, self._set.tensors["moments"].shape[1]
        numbers = (
            chance.integers(views) if views > 1 else torch.zeros(len(indices), dtype=torch.long)
        )
        moments = self._read("moments", tensors["moments"][indices, numbers], "moments")
        noise = chance.randn(moments.shape[1] // 2, *moments.shape[2:])
        latents = self._set.latents.draw(moments, noise)
        added = {}
        if "null.text_embeds" in tensors:
            added["text_embeds"] = self._read("text", tensors["text"][indices], "text_embeds")
            added["time_ids"] = tensors["time_ids"][indices, numbers].float()
        return Batch(latents, self._states(indices), self._features(indices), added)

    def null_text(self) -> Tensor:
        return self._set.tensors["null.states"]

    def null_added(self) -> dict[str, Tensor]:
        name = "null.text_embeds"
        found = self._set.tensors.get(name)
        return {} if found is None else {name.removeprefix(_NULL): found}

    def null_features(self) -> Features:
        tensors = self._set.tensors
        return joined(self._set.feature, tensors.get("null.encoded"), tensors.get("null.face"))

    def captioned(self, indices: Tensor) -> tuple[Features, Tensor, list[int]]:
        """Image features, text states, and how many tokens each caption has."""
        tokens = self._set.tensors["tokens"][indices].tolist()
        return self._features(indices), self._states(indices), tokens

    def describe(self) -> str:
        """One line: how many, in which sizes, encoded when."""
        online = ", image features encoded online" if self._online else ""
        return (
            f"{len(self):,} samples in {len(self._groups.groups)} size(s), from the cache{online}"
        )

    def fingerprint(self) -> str:
        """Changes when the data or what encoded it does."""
        return self._set.fingerprint

    def quarantined(self) -> list[str]:
        """A line for everything that could not be read when the set was prepared."""
        return self._set.broken

    def _states(self, indices: Tensor) -> Tensor:
        return self._read("text", self._set.tensors["text"][indices], "states")

    def _features(self, indices: Tensor) -> Features:
        tensors = self._set.tensors
        face = tensors["face"][indices] if "face" in tensors else None
        encoded = None
        if self._online is not None:
            records, encoders = self._online
            origins = tensors["origin"][indices].tolist()
            encoded = encoders.image([records.record(i).open_reference() for i in origins])
        elif "features" in tensors:
            encoded = self._read("features", tensors["features"][indices], "encoded")
        return joined(self._set.feature, encoded, face)

    def _read(self, kind: str, addresses: Tensor, name: str) -> Tensor:
        """One tensor of the entries at these addresses, uint8 [b, 16] -> [b, ...]."""
        store = self._stores[kind]
        return torch.stack([store.read(bytes(one), name) for one in addresses_of(addresses)])


def addresses_of(hashes: Tensor) -> Addresses:
    """Hashes uint8 [..., 16] as a row of addresses."""
    rows = hashes.reshape(-1, HASH).numpy()
    return np.array([bytes(row).hex().encode() for row in rows], "S32")
