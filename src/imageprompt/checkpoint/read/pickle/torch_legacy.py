"""Files of torch before 1.6: five pickles in a row, then each storage with its length."""

from __future__ import annotations

from typing import Any

from imageprompt.checkpoint.read.pickle.machine import MAX_PICKLE, PickleCut, PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TensorView, TorchPickle
from imageprompt.checkpoint.read.pickle.torch_tensors import (
    StorageBytes,
    UnpickledFile,
    refuse_pickle,
)
from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, RawFile, refuse
from imageprompt.checkpoint.read.stored_tensor import StoredTensor

MAGIC = 0x1950A86A20F9469CFC6C
_FIRST = 1 << 20  # enough for most files; MAX_PICKLE is read only if it is not


def read_torch_legacy(raw: RawFile) -> UnpickledFile:
    """What a file that begins with a pickle contains. Raises AdapterFileError; reads no storage."""
    try:
        try:
            return _read(raw, raw.read_at(0, min(raw.size, _FIRST)))
        except PickleCut:
            return _read(raw, raw.read_at(0, min(raw.size, MAX_PICKLE)))
    except PickleError as error:
        refuse_pickle(raw.path, error)


def _read(raw: RawFile, data: bytes) -> UnpickledFile:
    pickle = TorchPickle(budget=raw.budget)
    magic, position = pickle.read(data)
    if magic != MAGIC:
        what = type(magic).__name__
        refuse(raw.path, f"this is a pickle ({what}) that torch did not write", "Give the weights.")
    _, position = pickle.read(data, position)  # the protocol: 1001 in every release
    system, position = pickle.read(data, position)
    value, position = pickle.read(data, position)
    keys, position = pickle.read(data, position)
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    storages = _storages(raw, pickle, keys, position, big_endian)

    def locate(view: TensorView) -> StoredTensor:
        storage = storages.get(view.storage.key)
        if storage is None:
            refuse(raw.path, f"its storage {view.storage.key[:20]!r} is missing", DOWNLOAD_AGAIN)
        return storage.tensor(view, raw.budget)

    return UnpickledFile(value, "torch legacy", locate, pickle.unopened)


def _storages(
    raw: RawFile, pickle: TorchPickle, keys: Any, position: int, big_endian: bool
) -> dict[str, StorageBytes]:
    """Each storage: its number of elements in 8 bytes, then their bytes."""
    found: dict[str, StorageBytes] = {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        refuse(raw.path, "its list of storages is damaged", DOWNLOAD_AGAIN)
    for key in keys:
        storage = pickle.storages.get(key)
        if storage is None or key in found:
            refuse(raw.path, "its list of storages is damaged", DOWNLOAD_AGAIN)
        count = int.from_bytes(raw.read_at(position, 8), "big" if big_endian else "little")
        if count * storage.item != storage.nbytes or position + 8 + storage.nbytes > raw.size:
            fault = f"its storage {key[:20]!r} is cut off or has another size"
            refuse(raw.path, fault, DOWNLOAD_AGAIN)
        offset = raw.base + position + 8
        found[key] = StorageBytes(
            raw.path, raw.stamp, offset, storage.nbytes, storage.nbytes, big_endian=big_endian
        )
        position += 8 + storage.nbytes
    return found
