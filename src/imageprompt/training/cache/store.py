"""Tensors kept by address in safetensors shards: written once, whole, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import ImagePromptError, OptionError

Addresses = NDArray[np.bytes_]
"""Hashes of what an entry was made from, 32 hex digits each."""

_OPEN = 32  # shards kept open
_SUFFIX = ".safetensors"


class CacheError(ImagePromptError):
    """A feature cache that is damaged, incomplete, or cannot be written."""


def address(*parts: object) -> bytes:
    """The address of what is made from these parts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32].encode()


class Store:
    """The entries of one recipe. An entry is a few named tensors; a shard holds many entries.

    Addresses are spread over `partitions` by their first digits; whoever writes to one holds its
    lock. A shard is named by its addresses and appears whole or not at all, so a process that is
    killed leaves nothing to clean up but a temporary file, which the next holder removes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}
        self._shards: dict[str, Addresses] = {}
        self._names: list[str] = []
        self._known: Addresses = np.empty(0, "S32")
        self._where: NDArray[np.int64] = np.empty(0, np.int64)
        self._open: OrderedDict[str, tuple[Any, dict[str, int]]] = OrderedDict()
        self.refresh()

    def refresh(self) -> None:
        """Look again at which shards there are; those that are cut short count as damaged."""
        found = sorted(path.name for path in self.folder.glob(f"[0-9a-f]*{_SUFFIX}"))
        if found == self._names:
            return
        known = self._shards
        self._shards = {
            name: known[name] if name in known else self._addresses_in(name) for name in found
        }
        self._names = found
        sizes = [len(mine) for mine in self._shards.values()]
        addresses = np.concatenate([np.empty(0, "S32"), *self._shards.values()])
        order = np.argsort(addresses, kind="stable")
        self._known, self._where = addresses[order], np.repeat(np.arange(len(found)), sizes)[order]

    def has(self, addresses: Addresses) -> NDArray[np.bool_]:
        """Which of these entries are there."""
        places = np.searchsorted(self._known, addresses)
        inside = places < len(self._known)
        found = np.zeros(len(addresses), bool)
        found[inside] = self._known[places[inside]] == addresses[inside]
        return found

    def read(self, address: bytes, name: str) -> Tensor:
        """One tensor of an entry, on the CPU. Raises CacheError, naming the shard."""
        place = int(np.searchsorted(self._known, address))
        if place == len(self._known) or self._known[place] != address:
            raise CacheError(
                f"entry {address.decode()} of {self.folder}",
                reason="it is not in the cache",
                hint="Run `imageprompt prepare` again.",
            )
        return self._tensor(self._names[int(self._where[place])], f"{address.decode()}.{name}")

    def check(self) -> None:
        """Read everything, and add what cannot be read to `damaged`."""
        for shard in self._names:
            if why := self._trouble(shard, deep=True):
                self.damaged[shard] = why

    def drop(self, shard: str, *, deep: bool) -> bool:
        """Remove a shard, under its lock, if it still is damaged: another may have made it anew."""
        self._open.pop(shard, None)
        self.damaged.pop(shard, None)
        still = bool(self._trouble(shard, deep=deep))
        if still:
            (self.folder / shard).unlink(missing_ok=True)
        self._shards.pop(shard, None)
        self._names = []  # look at it again
        self.refresh()
        return still

    @contextmanager
    def writing(self, partition: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of a partition and see what others wrote before. Raises Timeout."""
        from filelock import FileLock

        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{partition}.lock", timeout=-1 if wait else 0):
            for left in self.folder.glob(f".{partition}-*.tmp{_SUFFIX}"):
                left.unlink(missing_ok=True)  # of a process that was killed: we hold the lock
            self.refresh()
            yield

    def write(self, partition: str, entries: Mapping[bytes, Mapping[str, Tensor]]) -> Path:
        """Write a shard. Raises CacheError when the disk is full; then nothing has changed."""
        tensors = {
            f"{address.decode()}.{name}": tensor.contiguous()
            for address, parts in sorted(entries.items())
            for name, tensor in parts.items()
        }
        sums = json.dumps({name: _sum(tensor) for name, tensor in tensors.items()})
        path = self.folder / f"{partition}-{shard_name(sorted(entries))}{_SUFFIX}"
        save_tensors(path, tensors, {"sums": sums})
        return path

    def _opened(self, shard: str) -> tuple[Any, dict[str, int]]:
        from safetensors import safe_open

        if shard not in self._open:
            handle: Any = safe_open(self.folder / shard, framework="pt")
            self._open[shard] = handle, json.loads(handle.metadata()["sums"])
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _tensor(self, shard: str, name: str) -> Tensor:
        try:
            handle, sums = self._opened(shard)
            found: Tensor = handle.get_tensor(name)
            right = _sum(found) == sums[name]
        except Exception as error:  # safetensors, JSON and the system each have their own
            raise self._damage(shard, str(error)) from error
        if not right:
            raise self._damage(shard, f"the checksum of {name} is wrong")
        return found

    def _trouble(self, shard: str, *, deep: bool) -> str:
        """What is wrong with a shard, "" if nothing is; its header alone is read unless `deep`."""
        try:
            names = self._opened(shard)[1]
            for name in names if deep else ():
                self._tensor(shard, name)
            return ""
        except CacheError as error:
            return error.reason
        except Exception as error:  # as in `_tensor`
            return str(error)

    def _addresses_in(self, shard: str) -> Addresses:
        why = self._trouble(shard, deep=False)
        if why:
            self.damaged[shard] = why
            return np.empty(0, "S32")
        names = self._opened(shard)[1]
        return np.unique(np.array([name[:32].encode() for name in names], "S32"))

    def _damage(self, shard: str, why: str) -> CacheError:
        return CacheError(
            f"cache shard {self.folder / shard}",
            reason=f"it is damaged ({why})",
            hint="Run `imageprompt prepare --verify` with the same config: it makes anew what is "
            "damaged; then go on with --resume.",
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of the cache, whole or not at all. Raises CacheError, as on a full disk."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            # save_file has a temporary file of its own, which a kill would leave for ever
            temporary.write_bytes(save(dict(tensors), metadata))
    except Exception as error:  # safetensors and the system each have their own
        raise CacheError(
            f"cache file {path}",
            reason=f"it cannot be written ({error})",
            hint="Make room and run `imageprompt prepare` again: it goes on where it was.",
        ) from error


def shard_name(addresses: Sequence[bytes]) -> str:
    """The name of a shard with these entries."""
    return hashlib.sha256(b"".join(addresses)).hexdigest()[:24]


def partitions(addresses: Addresses) -> dict[str, Addresses]:
    """Addresses by their first digit, or first two where there are very many; each sorted."""
    digits = 1 if len(addresses) <= 2**15 else 2
    ordered = np.sort(addresses)
    heads = np.array([one[:digits] for one in ordered.tolist()])
    return {head.decode(): ordered[heads == head] for head in np.unique(heads)}


def check_room(folder: Path, needed: int) -> None:
    """Raises OptionError if the disk has less than `needed` bytes left."""
    import shutil

    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"cache {str(folder)!r}",
            reason=f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are left there",
            hint="Make room, choose another folder, or leave image features out (online: true).",
        )


def _sum(tensor: Tensor) -> int:
    import torch

    content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(content)
