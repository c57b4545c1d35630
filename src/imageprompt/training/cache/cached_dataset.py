"""Samples from a feature cache; frozen models are only needed for features encoded online."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.atomic_files import sweep
from imageprompt.core.errors import printable, shortened
from imageprompt.core.spec import Feature
from imageprompt.core.untrusted import parse_json
from imageprompt.training.cache.store import (
    Addresses,
    Kind,
    Store,
    check_inside,
    open_tensors,
    save_tensors,
)
from imageprompt.training.data.dataset import Batch, BucketSampler, Dataset, Features, RandomStreams
from imageprompt.training.data.feature_extractors import (
    FeatureExtractors,
    combine_features,
    dataset_fingerprint,
)
from imageprompt.training.data.latents import LatentScaling
from imageprompt.training.data.sources import Record, Records
from imageprompt.training.data.sources.contract import HASH
from imageprompt.training.data.views import PictureOptions

if TYPE_CHECKING:
    from imageprompt.training.data.pairs import Opened, PairReferences

_NULL = "null."
_MAX_DIMENSIONS = 4  # of a condition: sample, layer, token, width


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
        sweep(path.parent)
        save_tensors(path, self.tensors, {"set": json.dumps(plain)})

    def equals(self, other: CacheIndex) -> bool:
        """Whether both hold the same samples."""
        if self.tensors.keys() != other.tensors.keys() or self.broken != other.broken:
            return False
        return all(torch.equal(self.tensors[name], other.tensors[name]) for name in self.tensors)

    @classmethod
    def load(
        cls,
        path: Path,
        records: Records,
        extractors: FeatureExtractors,
        options: PictureOptions,
        online: bool,
    ) -> CacheIndex | None:
        """What `save` wrote; None if missing, damaged or not of these (rebuilt cheaply)."""
        try:
            with open_tensors(path) as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                plain: dict[str, Any] = parse_json(handle.metadata()["set"])
            if plain["recipes"] != extractors.model_ids:
                return None
            _check_index(tensors, len(records), extractors, options, online)
            return cls(
                tensors,
                extractors.model_ids,
                extractors.vae.scaling,
                extractors.feature,
                [printable(shortened(str(line))) for line in plain["broken"]],
                dataset_fingerprint(records, extractors, options),
            )
        except Exception:  # safetensors, JSON, torch and the system raise their own
            return None


def _check_index(
    tensors: dict[str, Tensor],
    count: int,
    extractors: FeatureExtractors,
    options: PictureOptions,
    online: bool,
) -> None:
    """Raises ValueError (or KeyError) for tensors that are not those of `count` samples."""
    views = options.fixed_views
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "moments": (torch.uint8, (count, views, HASH)),
        "text": (torch.uint8, (count, HASH)),
        "time_ids": (torch.int32, (count, views, 6)),
        **dict.fromkeys(("group", "tokens"), (torch.int32, (count,))),
        "origin": (torch.int64, (count,)),
    }
    if extractors.reads_pictures and not online:
        kinds["features"] = (torch.uint8, (count, HASH))
    for name, kind in kinds.items():
        if (tensors[name].dtype, tuple(tensors[name].shape)) != kind:
            raise ValueError(name)
    names = {*kinds, "null.states"}
    names |= {"null.encoded"} if extractors.reads_pictures else set()
    names |= {"face", "null.face"} if extractors.reads_faces else set()
    if not names <= tensors.keys() <= names | {_NULL + name for name in extractors.conditions}:
        raise ValueError("other tensors")
    for name in tensors.keys() - kinds.keys():
        rows = count if name == "face" else 1
        tensor = tensors[name]
        if len(tensor) != rows or tensor.ndim > _MAX_DIMENSIONS or not torch.isfinite(tensor).all():
            raise ValueError(name)
    group, origin = tensors["group"], tensors["origin"]
    if not -1 <= int(group.min()) <= int(group.max()) < len(options.sizes):
        raise ValueError("group")
    if not 0 <= int(origin.min()) <= int(origin.max()) < count or int(group.max()) < 0:
        raise ValueError("origin")
    sizes = torch.tensor([(height, width) for width, height in options.sizes])[group.long()]
    if not (tensors["time_ids"][:, :, 4:] == sizes[:, None])[group >= 0].all():
        raise ValueError("time_ids")


def index_path(
    folder: Path,
    records: Records,
    extractors: FeatureExtractors,
    options: PictureOptions,
    online: bool,
) -> Path:
    """The file of the index for these records, encoded and cropped like this.

    Raises CacheError for a link out of the cache.
    """
    check_inside(folder / "sets", folder)
    name = dataset_fingerprint(records, extractors, options)
    return folder / "sets" / f"{name}{'-online' if online else ''}.safetensors"


def open_store(folder: Path, kind: str, model_id: str) -> Store:
    """The entries of a kind made by one model. Raises CacheError for a link out of the cache."""
    check_inside(folder / kind / model_id, folder)
    return Store(folder / kind / model_id)


class CachedDataset(Dataset):
    """The samples of an index. `online` encodes image features from these records instead."""

    def __init__(
        self,
        folder: Path,
        index: CacheIndex,
        extractors: FeatureExtractors,
        online: Records | None = None,
        pairs: PairReferences | None = None,
    ) -> None:
        """With `pairs`, features are those of a content and a style reference, encoded online."""
        self._pairs = pairs
        self.index, self._extractors, self._online = index, extractors, online
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
        height, width = tensors["time_ids"][indices[0], 0, 4:].tolist()
        kind = self._extractors.vae.moment_kind((width, height))
        numbers = (
            streams.integers(views) if views > 1 else torch.zeros(len(indices), dtype=torch.long)
        )
        moments = self._read("moments", tensors["moments"][indices, numbers], "moments", kind)
        latents = self._extractors.latents(self.index.latents, moments, streams)
        added = {}
        for name in self.null_added():
            added[name] = self._of_null("text", tensors["text"][indices], name)
        if "text_embeds" in added:
            added["time_ids"] = tensors["time_ids"][indices, numbers].float()
        return Batch(latents, self._states(indices), self._features(indices, streams), added)

    def null_text(self) -> Tensor:
        return self.index.tensors["null.states"]

    def null_added(self) -> dict[str, Tensor]:
        tensors, names = self.index.tensors, self._extractors.conditions
        return {name: tensors[_NULL + name] for name in names if _NULL + name in tensors}

    def null_features(self) -> Features:
        if self._pairs is not None:
            return self._pairs.null_features()
        tensors = self.index.tensors
        return combine_features(
            self.index.feature, tensors.get("null.encoded"), tensors.get("null.face")
        )

    def caption_batch(
        self, indices: Tensor, part: int | None = None
    ) -> tuple[Features, Tensor, list[int]]:
        """Image features, text states, and the number of tokens in each caption.

        `part` asks for the features, and the captions, of one adapter of a pair.
        """
        tokens = self.index.tensors["tokens"][indices].tolist()
        streams = RandomStreams.of_samples(indices)
        if self._pairs is None or part is None:
            return self._features(indices, streams), self._states(indices), tokens
        records = self._records(indices)
        opened = [self._pairs.open(record) for record in records]
        features = self._pairs.features_of(part, opened, streams)
        captions = [record.caption_of(part) for record in records]
        if captions == [record.text for record in records]:
            return features, self._states(indices), tokens
        states, tokens = self._pairs.states_of(captions)
        return features, states, tokens

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
        return self._of_null("text", self.index.tensors["text"][indices], "states")

    def _features(self, indices: Tensor, streams: RandomStreams) -> Features:
        tensors = self.index.tensors
        if self._pairs is not None:
            return self._pairs.features(self._opened(indices), streams)
        face = tensors["face"][indices] if "face" in tensors else None
        encoded = None
        if self._online is not None:
            rows = tensors["origin"][indices].tolist()
            encoded = self._extractors.encode_references(
                [self._online.record(row).open_reference() for row in rows]
            )
        elif "features" in tensors:
            encoded = self._of_null("features", tensors["features"][indices], "encoded")
        return combine_features(self.index.feature, encoded, face)

    def _opened(self, indices: Tensor) -> list[Opened]:
        """What the references of a pair come from."""
        assert self._pairs is not None
        return [self._pairs.open(record) for record in self._records(indices)]

    def _records(self, indices: Tensor) -> list[Record]:
        assert self._online is not None
        origins = self.index.tensors["origin"][indices].tolist()
        return [self._online.record(origin) for origin in origins]

    def _of_null(self, store: str, addresses: Tensor, name: str) -> Tensor:
        """`_read` of tensors that are shaped like that of the null condition."""
        null = self.index.tensors[_NULL + name]
        return self._read(store, addresses, name, (null.dtype, tuple(null.shape[1:])))

    def _read(self, store: str, addresses: Tensor, name: str, kind: Kind) -> Tensor:
        """One tensor of the entries at these addresses, uint8 [b, 16] -> [b, ...].

        Raises CacheError for one of another type or shape than `kind`.
        """
        read = self._stores[store].read
        return torch.stack([read(bytes(one), name, kind) for one in addresses_of(addresses)])


def addresses_of(hashes: Tensor) -> Addresses:
    """Hashes uint8 [..., 16] as addresses, one row."""
    rows = hashes.reshape(-1, HASH).numpy()
    return np.array([bytes(row).hex().encode() for row in rows], "S32")
