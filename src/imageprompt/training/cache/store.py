"""Tensors stored by address in safetensors shards: written once, atomically, under a lock."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.core.atomic_files import locked, sweep, write_atomically
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.core.untrusted import is_inside, open_regular

if TYPE_CHECKING:
    import torch

Addresses = NDArray[np.bytes_]
"""Hashes of what entries were computed from, 32 hex digits each."""

Kind = tuple["torch.dtype", tuple[int, ...]]
"""Type and shape of a tensor."""

_MAX_OPEN = 32  # shards
_MAX_HEADER = 2**25  # bytes: of a shard 300,000, of a set a line for each broken sample
_SHARD = re.compile(r"[0-9a-f]{1,2}-[0-9a-f]{24}\.safetensors")
# of `write`: names of entries and numbers, nothing deep and nothing long
_SUMS = re.compile(r'\{(?:"[0-9a-f]{32}\.[a-z0-9_]+": [0-9]{1,10}(?:, |(?=\})))*+\}')
_SUFFIX = ".safetensors"


class CacheError(ImagePromptError):
    """A feature cache that is damaged, incomplete, or cannot be written."""


def address(*parts: object) -> bytes:
    """The address of an entry computed from these parts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32].encode()


class Store:
    """The entries of one kind and model. An entry is a few named tensors; a shard holds many.

    Work is divided into partitions; a process that writes to one holds its lock. A shard is named
    by its partition and its addresses and is written atomically, so a killed process leaves only a
    temporary file, which the next one removes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}
        """Damaged shards by name, and why."""
        self._shards: dict[str, Addresses] = {}
        self._names: list[str] = []
        self._addresses: Addresses = np.empty(0, "S32")
        self._shard_of: NDArray[np.int64] = np.empty(0, np.int64)
        self._handles: OrderedDict[str, tuple[Any, dict[str, int]]] = OrderedDict()
        self.refresh()

    def refresh(self) -> None:
        """List the shards again; truncated ones count as damaged."""
        names = (path.name for path in self.folder.glob(f"*{_SUFFIX}"))
        found = sorted(name for name in names if _SHARD.fullmatch(name))
        if found == self._names:
            return
        before = self._shards
        self._shards = {
            name: before[name] if name in before else self._addresses_in(name) for name in found
        }
        self._names = found
        sizes = [len(addresses) for addresses in self._shards.values()]
        addresses = np.concatenate([np.empty(0, "S32"), *self._shards.values()])
        order = np.argsort(addresses, kind="stable")
        self._addresses = addresses[order]
        self._shard_of = np.repeat(np.arange(len(found)), sizes)[order]

    def has(self, addresses: Addresses) -> NDArray[np.bool_]:
        """Which of these entries exist."""
        positions = np.searchsorted(self._addresses, addresses)
        inside = positions < len(self._addresses)
        found = np.zeros(len(addresses), bool)
        found[inside] = self._addresses[positions[inside]] == addresses[inside]
        return found

    def read(self, address: bytes, name: str, kind: Kind | None = None) -> Tensor:
        """One tensor of an entry, on the CPU. Raises CacheError, which names the shard.

        `kind`: the type and shape that it must have.
        """
        position = int(np.searchsorted(self._addresses, address))
        if position == len(self._addresses) or self._addresses[position] != address:
            raise CacheError(
                f"entry {address.decode()} of {self.folder}",
                reason="not in the cache",
                hint="Run `imageprompt build-cache` again.",
            )
        shard = self._names[int(self._shard_of[position])]
        found = self._tensor(shard, f"{address.decode()}.{name}")
        if kind is not None and (found.dtype, tuple(found.shape)) != kind:
            reason = f"{name} is {found.dtype} {list(found.shape)}, not {kind[0]} {list(kind[1])}"
            raise self._damage(shard, reason)
        return found

    def check(self) -> None:
        """Read everything, and add the shards that cannot be read to `damaged`."""
        for shard in self._names:
            if reason := self._problem(shard, deep=True):
                self.damaged[shard] = reason

    def drop(self, shard: str, *, deep: bool) -> bool:
        """Remove a shard, under its lock, unless another process has replaced it meanwhile."""
        self._handles.pop(shard, None)
        self.damaged.pop(shard, None)
        damaged = bool(self._problem(shard, deep=deep))
        if damaged:
            (self.folder / shard).unlink(missing_ok=True)
        self._shards.pop(shard, None)
        self._names = []  # makes `refresh` list the shards again
        self.refresh()
        return damaged

    @contextmanager
    def writing(self, partition: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of a partition, and see what others wrote before. Raises BusyError."""
        locks = self.folder / "locks"
        check_inside(locks, self.folder)
        locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / f"{partition}.lock", timeout=None if wait else 0):
            sweep(self.folder)
            self.refresh()
            yield

    def write(self, partition: str, entries: Mapping[bytes, Mapping[str, Tensor]]) -> Path:
        """Write a shard. Raises CacheError when the disk is full; nothing has changed then."""
        tensors = {
            f"{address.decode()}.{name}": tensor.contiguous()
            for address, parts in sorted(entries.items())
            for name, tensor in parts.items()
        }
        sums = json.dumps({name: _checksum(tensor) for name, tensor in tensors.items()})
        path = self.folder / f"{partition}-{shard_name(sorted(entries))}{_SUFFIX}"
        save_tensors(path, tensors, {"sums": sums})
        return path

    def _open(self, shard: str) -> tuple[Any, dict[str, int]]:
        """The open file of a shard, and the checksums of its tensors."""
        if shard not in self._handles:
            handle = open_tensors(self.folder / shard)
            text = (handle.metadata() or {}).get("sums", "")
            if not _SUMS.fullmatch(text):
                raise ValueError("it has no list of checksums")
            sums = json.loads(text)
            if sums.keys() != set(handle.keys()):
                raise ValueError("its checksums are not those of its tensors")
            self._handles[shard] = handle, sums
            if len(self._handles) > _MAX_OPEN:
                self._handles.popitem(last=False)
        self._handles.move_to_end(shard)
        return self._handles[shard]

    def _tensor(self, shard: str, name: str) -> Tensor:
        try:
            handle, sums = self._open(shard)
            found: Tensor = handle.get_tensor(name)
            intact = _checksum(found) == sums[name]
        except Exception as error:  # safetensors, JSON and the system raise their own
            raise self._damage(shard, str(error)) from error
        if not intact:
            raise self._damage(shard, f"the checksum of {name} is wrong")
        return found

    def _problem(self, shard: str, *, deep: bool) -> str:
        """What is wrong with a shard, "" if nothing; only its header is read unless `deep`."""
        try:
            names = self._open(shard)[1]
            for name in names if deep else ():
                self._tensor(shard, name)
            return ""
        except CacheError as error:
            return error.reason
        except Exception as error:  # as in `_tensor`
            return str(error)

    def _addresses_in(self, shard: str) -> Addresses:
        reason = self._problem(shard, deep=False)
        if reason:
            self.damaged[shard] = reason
            return np.empty(0, "S32")
        names = self._open(shard)[1]
        return np.unique(np.array([name[:32].encode() for name in names], "S32"))

    def _damage(self, shard: str, reason: str) -> CacheError:
        return CacheError(
            f"cache shard {self.folder / shard}",
            reason=f"damaged ({reason})",
            hint="Run `imageprompt build-cache --verify` with the same config to encode it again, "
            "then continue with --resume.",
        )


def open_tensors(path: Path, framework: str = "pt") -> Any:
    """A safetensors file that is open; its tensors are read when they are asked for.

    Raises OSError, ValueError, and the errors of safetensors.
    """
    from safetensors import safe_open

    with open_regular(path, inside=path.parent) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header has {length} bytes; the limit is {_MAX_HEADER}")
    return safe_open(path, framework=framework)


def check_inside(path: Path, folder: Path) -> None:
    """Raises CacheError for a link in a cache that leads out of it."""
    if not is_inside(path, folder):
        raise CacheError(
            f"cache {str(path)!r}",
            reason="a link that leads out of the cache",
            hint="Name the other folder as the cache, or delete the link.",
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of the cache atomically. Raises CacheError, for example on a full disk."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            # save_file writes a temporary file of its own, which a kill would leave behind
            temporary.write_bytes(save(dict(tensors), metadata))
    except Exception as error:  # safetensors raises its own
        why = error.reason if isinstance(error, ImagePromptError) else error
        raise CacheError(
            f"cache file {path}",
            reason=f"cannot be written ({why})",
            hint="Free disk space and run `imageprompt build-cache` again; it continues.",
        ) from error


def shard_name(addresses: Sequence[bytes]) -> str:
    """The name of a shard with these entries, without its partition."""
    return hashlib.sha256(b"".join(addresses)).hexdigest()[:24]


def partitions(addresses: Addresses) -> dict[str, Addresses]:
    """Sorted addresses by their first digit, or by two digits if there are very many."""
    digits = 1 if len(addresses) <= 2**15 else 2
    ordered = np.sort(addresses)
    heads = np.array([one[:digits] for one in ordered.tolist()])
    return {head.decode(): ordered[heads == head] for head in np.unique(heads)}


def check_free_space(folder: Path, needed: int) -> None:
    """Raises OptionError if the disk has less than `needed` bytes free."""
    import shutil

    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"cache {str(folder)!r}",
            reason=f"needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free",
            hint="Free disk space, use another folder, or leave image features out (online: true).",
        )


def _checksum(tensor: Tensor) -> int:
    import torch

    content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(content)
