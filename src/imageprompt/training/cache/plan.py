"""What a cached data set consists of: the addresses of all entries, and their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.training.cache.cached_dataset import CacheIndex, addresses_of
from imageprompt.training.cache.store import Addresses, Store, address
from imageprompt.training.data.dataset import BucketSampler
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.scan import ScanResult
from imageprompt.training.data.views import PictureOptions, View

Rows = NDArray[np.int64]
"""Indices of samples."""


@dataclass(frozen=True)
class Entries:
    """Entries of a kind: sorted unique addresses, a sample each, and the bytes of the largest."""

    addresses: Addresses
    samples: Rows
    largest: int

    def samples_of(self, addresses: Addresses) -> list[int]:
        """The sample that each of these addresses comes from."""
        found: list[int] = self.samples[np.searchsorted(self.addresses, addresses)].tolist()
        return found


@dataclass(frozen=True)
class Pictures:
    """Every distinct picture file: u sorted hashes, and what it is used for.

    `picture_of`, `reference_of`: a sample that it is the picture (or the reference) of, or -1.
    `unchecked`: it belongs to a sample of which only the header was read.
    """

    hashes: Addresses
    picture_of: Rows
    reference_of: Rows
    unchecked: NDArray[np.bool_]


class CachePlan:
    """Everything that n samples need, from a scan; nothing is encoded for it but null conditions.

    The next good sample of its bucket takes a broken sample's place, as in OnlineDataset.
    """

    def __init__(
        self, scan: ScanResult, extractors: FeatureExtractors, options: PictureOptions, online: bool
    ) -> None:
        self.scan, self._extractors, self._options = scan, extractors, options
        if len(options.sizes) > 1:
            self._sampler = BucketSampler.by_size(scan["size"], options)
        else:
            self._sampler = BucketSampler.single(len(scan))
        self.kinds: tuple[str, ...] = ("moments", "text")
        if extractors.reads_pictures and not online:
            self.kinds += ("features",)
        self._compute_views()

    @property
    def samples(self) -> int:
        return len(self._sampler)

    @property
    def good(self) -> Rows:
        """The samples that can be used, as far as is known."""
        return np.flatnonzero(self.scan["good"])

    @property
    def upscaled(self) -> int:
        """Number of pictures that are smaller than a view of them."""
        return int(self._upscaled[self.good].sum())

    def entries(self, kind: str) -> Entries:
        """The entries of a kind that the good samples need."""
        good = self.good
        if kind == "moments":
            size = self._extractors.moment_bytes(self._options.sizes)
            samples = np.repeat(good, self._options.fixed_views)
            addresses = self.moment_addresses[good].reshape(-1)
        elif kind == "text":
            states, added = self._null_text
            size = sum(one.nbytes for one in (states, *added.values()))
            samples, addresses = good, self.hashes("caption", good)
        else:
            size = self._extractors.null_encoded.nbytes
            samples, addresses = good, self.hashes("reference", good)
        different, first = np.unique(addresses, return_index=True)
        return Entries(different, samples[first], size)

    def pictures(self) -> Pictures:
        """The distinct pictures of the good samples; references only if they are to be read."""
        good = self.good
        undecoded = good[self.scan["decoded"][good] == 0]
        referring = good if "features" in self.kinds else undecoded
        own, references = self.hashes("picture", good), self.hashes("reference", referring)
        unchecked = [self.hashes(column, undecoded) for column in ("picture", "reference")]
        hashes = np.union1d(own, references)
        return Pictures(
            hashes,
            _first_samples(hashes, own, good),
            _first_samples(hashes, references, referring),
            np.isin(hashes, np.concatenate(unchecked)),
        )

    def hashes(self, column: str, rows: Rows) -> Addresses:
        """A column of hashes as addresses."""
        return addresses_of(torch.from_numpy(self.scan[column][rows]))

    def views(self, index: int) -> list[View]:
        """The fixed views of a sample's picture."""
        width, height = self.scan["size"][index].tolist()
        digest = bytes(self.scan["picture"][index])
        numbers = range(self._options.fixed_views)
        return [self._options.view((width, height), digest, number) for number in numbers]

    def token_counts(self, store: Store) -> NDArray[np.int64]:
        """Number of tokens of every sample's caption."""
        entries = self.entries("text")
        kind = (torch.int64, ())
        counts = np.array([int(store.read(bytes(a), "tokens", kind)) for a in entries.addresses])
        captions = self.hashes("caption", self._sources)
        return counts[np.searchsorted(entries.addresses, captions)]

    def index(
        self, token_counts: NDArray[np.int64], broken: Sequence[str], fingerprint: str
    ) -> CacheIndex:
        """The finished index, once all entries are in the cache."""
        rows = self._sources
        bucket = np.full(len(self.scan), -1, np.int32)
        for number, members in enumerate(self._sampler.buckets):
            bucket[members] = number
        limit = self._null_text[0].shape[1]
        tensors = {
            "moments": _to_bytes(self.moment_addresses[rows]),
            "text": torch.from_numpy(self.scan["caption"][rows]),
            "time_ids": torch.from_numpy(self._time_ids[rows]),
            "group": torch.from_numpy(bucket),
            "origin": torch.from_numpy(rows),
            "tokens": torch.from_numpy(np.minimum(token_counts, limit).astype(np.int32)),
            "null.states": self._null_text[0],
        }
        tensors |= {f"null.{name}": value for name, value in self._null_text[1].items()}
        extractors = self._extractors
        if "features" in self.kinds:
            tensors["features"] = torch.from_numpy(self.scan["reference"][rows])
        if extractors.reads_pictures:
            tensors["null.encoded"] = extractors.null_encoded
        if extractors.reads_faces:
            faces = torch.from_numpy(self.scan["face"][rows])
            tensors |= {"face": faces, "null.face": torch.zeros_like(faces[:1])}
        return CacheIndex(
            {name: value.contiguous() for name, value in tensors.items()},
            extractors.model_ids,
            extractors.vae.scaling,
            extractors.feature,
            list(broken),
            fingerprint,
        )

    @property
    def _sources(self) -> Rows:
        """The sample that is read for each sample: itself, or the next good one in its bucket."""
        good = self.scan["good"]
        found = np.arange(len(self.scan))
        for index in np.flatnonzero(good == 0).tolist():
            other = self._sampler.next_in_bucket(index)
            while not good[other]:
                other = self._sampler.next_in_bucket(other)
            found[index] = other
        return found

    def _compute_views(self) -> None:
        """Addresses [n, v] and SDXL's sizes [n, v, 6] of all views; which pictures are upscaled."""
        count, views = len(self.scan), self._options.fixed_views
        self.moment_addresses = np.zeros((count, views), "S32")
        self._time_ids = np.zeros((count, views, 6), np.int32)
        self._upscaled = np.zeros(count, np.int64)
        for index in self.good.tolist():
            digest = bytes(self.scan["picture"][index]).hex()
            for number, view in enumerate(self.views(index)):
                parts = (digest, view.scaled, view.crop, view.left, view.top, view.flip)
                self.moment_addresses[index, number] = address(*parts)
                self._time_ids[index, number] = view.time_ids()
                self._upscaled[index] = view.upscales

    @cached_property
    def _null_text(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self._extractors.encode_text([""])


def _first_samples(hashes: Addresses, column: Addresses, rows: Rows) -> Rows:
    """For each of `hashes` the first of `rows` that has it in `column`, or -1."""
    found = np.full(len(hashes), -1, np.int64)
    different, first = np.unique(column, return_index=True)
    found[np.searchsorted(hashes, different)] = rows[first]
    return found


def _to_bytes(addresses: Addresses) -> Tensor:
    """Addresses [...] as uint8 [..., 16]."""
    rows = [list(bytes.fromhex(one.decode())) for one in addresses.reshape(-1).tolist()]
    return torch.tensor(rows, dtype=torch.uint8).reshape(*addresses.shape, 16)
