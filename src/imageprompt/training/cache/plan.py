"""What a prepared set consists of: the addresses of all entries, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.training.cache.cached_dataset import PreparedSet, addresses_of
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.store import Addresses, Store, address
from imageprompt.training.data.bucket_sampler import Groups
from imageprompt.training.data.framing import Framing, PictureOptions
from imageprompt.training.data.scan import ScanResult


@dataclass(frozen=True)
class Entries:
    """Entries of a kind: sorted addresses, each once; an origin each; bytes of the largest."""

    addresses: Addresses
    origins: NDArray[np.int64]
    largest: int

    @classmethod
    def of(cls, addresses: Addresses, origins: NDArray[np.int64], size: int) -> Entries:
        different, first = np.unique(addresses, return_index=True)
        return cls(different, origins[first], size)

    def origins_of(self, addresses: list[bytes]) -> list[tuple[bytes, int]]:
        """Each of these addresses with its origin."""
        places = np.searchsorted(self.addresses, np.array(addresses, "S32"))
        return list(zip(addresses, self.origins[places].tolist(), strict=True))


class Plan:
    """Everything that n samples need, from a survey of them; nothing is encoded for it but nulls.

    A broken sample's place is taken by the next good one of its bucket, as in live samples.
    """

    def __init__(
        self, survey: ScanResult, encoders: FeatureExtractors, options: PictureOptions, online: bool
    ) -> None:
        self._survey, self._encoders, self._options = survey, encoders, options
        many = len(options.sizes) > 1
        self._groups = Groups.by_size(survey["size"], options) if many else Groups.all(len(survey))
        self._good = np.flatnonzero(survey["good"])
        self.enlarged = self._frame()
        """Pictures smaller than what is shown of them."""
        self.entries = {"moments": self._moments, "text": self._text}
        if encoders.reads_pictures and not online:
            self.entries["features"] = self._features

    @property
    def samples(self) -> int:
        return len(self._groups)

    def framing(self, origin: int) -> tuple[int, Framing]:
        """Sample and framing of a moments' origin."""
        index, view = divmod(origin, self._views)
        return index, self._framings(index)[view]

    def tokens(self, store: Store) -> NDArray[np.int64]:
        """Tokens of every sample's caption, 0 where it has none."""
        entries = self.entries["text"]
        counts = np.array([int(store.read(bytes(one), "tokens")) for one in entries.addresses])
        mine = self._hashes("caption", self._stand_ins)
        return counts[np.searchsorted(entries.addresses, mine)]

    def prepared_set(
        self, tokens: NDArray[np.int64], broken: list[str], fingerprint: str
    ) -> PreparedSet:
        """The set, once all entries are in the cache."""
        rows = self._stand_ins
        group = np.full(len(self._survey), -1, np.int32)
        for number, members in enumerate(self._groups.groups):
            group[members] = number
        longest = self._null_text[0].shape[1]
        tensors = {
            "moments": _bytes(self._moment_addresses[rows]),
            "text": torch.from_numpy(self._survey["caption"][rows]),
            "time_ids": torch.from_numpy(self._time_ids[rows]),
            "group": torch.from_numpy(group),
            "origin": torch.from_numpy(rows),
            "tokens": torch.from_numpy(np.minimum(tokens, longest).astype(np.int32)),
            "null.states": self._null_text[0],
        }
        tensors |= {f"null.{name}": value for name, value in self._null_text[1].items()}
        encoders = self._encoders
        if "features" in self.entries:
            tensors["features"] = torch.from_numpy(self._survey["reference"][rows])
        if encoders.reads_pictures:
            tensors["null.encoded"] = encoders.null_encoded
        if encoders.reads_faces:
            faces = torch.from_numpy(self._survey["face"][rows])
            tensors |= {"face": faces, "null.face": torch.zeros_like(faces[:1])}
        return PreparedSet(
            {name: value.contiguous() for name, value in tensors.items()},
            encoders.recipes,
            encoders.latents,
            encoders.feature,
            broken,
            fingerprint,
        )

    # ── samples ─────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _stand_ins(self) -> NDArray[np.int64]:
        """For every sample the one that is read in its place: itself, if it is good."""
        good = self._survey["good"]
        found = np.arange(len(self._survey))
        for index in np.flatnonzero(good == 0).tolist():
            other = self._groups.after(index)
            while not good[other]:
                other = self._groups.after(other)
            found[index] = other
        return found

    @property
    def _views(self) -> int:
        return self._options.fixed_views

    def _framings(self, index: int) -> list[Framing]:
        width, height = self._survey["size"][index].tolist()
        digest = bytes(self._survey["picture"][index])
        return [self._options.view((width, height), digest, view) for view in range(self._views)]

    # ── entries ─────────────────────────────────────────────────────────────────────────────────

    def _frame(self) -> int:
        """Addresses [n, v] and SDXL's sizes [n, v, 6] of all framings; returns how many enlarge."""
        count, enlarged = len(self._survey), 0
        self._moment_addresses = np.zeros((count, self._views), "S32")
        self._time_ids = np.zeros((count, self._views, 6), np.int32)
        for index in self._good.tolist():
            digest = bytes(self._survey["picture"][index]).hex()
            for view, one in enumerate(self._framings(index)):
                parts = (digest, one.scaled, one.crop, one.left, one.top, one.flip)
                self._moment_addresses[index, view] = address(*parts)
                self._time_ids[index, view] = one.time_ids()
            enlarged += one.enlarges
        return enlarged

    @property
    def _moments(self) -> Entries:
        addresses = self._moment_addresses[self._good].reshape(-1)
        views = np.arange(self._views)
        origins = (self._good[:, None] * self._views + views).reshape(-1)
        return Entries.of(addresses, origins, self._encoders.moment_bytes(self._options.sizes))

    @property
    def _text(self) -> Entries:
        states, added = self._null_text
        size = sum(one.nbytes for one in (states, *added.values()))
        return Entries.of(self._hashes("caption", self._good), self._good, size)

    @property
    def _features(self) -> Entries:
        addresses = self._hashes("reference", self._good)
        return Entries.of(addresses, self._good, self._encoders.null_encoded.nbytes)

    def _hashes(self, column: str, rows: NDArray[np.int64]) -> Addresses:
        return addresses_of(torch.from_numpy(self._survey[column][rows]))

    @cached_property
    def _null_text(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self._encoders.text([""])


def _bytes(addresses: Addresses) -> Tensor:
    """Addresses [...] as uint8 [..., 16]."""
    rows = [list(bytes.fromhex(one.decode())) for one in addresses.reshape(-1).tolist()]
    return torch.tensor(rows, dtype=torch.uint8).reshape(*addresses.shape, 16)
