"""torch's files from before 1.6: five pickles in a row, then each storage with its length."""

from __future__ import annotations

from typing import Any

from imageprompt.checkpoint.read.pickle.machine import MAX_PICKLE, PickleCut, PickleError
from imageprompt.checkpoint.read.pickle.storages import Run
from imageprompt.checkpoint.read.pickle.torch_objects import TorchPickle, View
from imageprompt.checkpoint.read.pickle.torch_tree import Pickled, refuse_pickle
from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import refuse
from imageprompt.checkpoint.read.stored_tensor import StoredTensor

MAGIC = 0x1950A86A20F9469CFC6C
_FIRST = 1 << 20  # enough for most; only then is MAX_PICKLE read
_AGAIN = "Download it again."


def read_torch_legacy(raw: RawFile) -> Pickled:
    """What a file that begins with a pickle holds. Raises AdapterFileError; reads no storage."""
    try:
        try:
            return _read(raw, raw.at(0, min(raw.size, _FIRST)))
        except PickleCut:
            return _read(raw, raw.at(0, min(raw.size, MAX_PICKLE)))
    except PickleError as error:
        refuse_pickle(raw.path, error)


def _read(raw: RawFile, data: bytes) -> Pickled:
    pickle = TorchPickle()
    magic, position = pickle.read(data)
    if magic != MAGIC:
        what = type(magic).__name__
        refuse(raw.path, f"it is a pickle ({what}) that torch did not write", "Give the weights.")
    _, position = pickle.read(data, position)  # the protocol: 1001 in every release
    system, position = pickle.read(data, position)
    value, position = pickle.read(data, position)
    keys, position = pickle.read(data, position)
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    runs = _runs(raw, pickle, keys, position, big_endian)

    def locate(view: View) -> StoredTensor:
        run = runs.get(view.storage.key)
        if run is None:
            refuse(raw.path, f"its storage {view.storage.key[:20]!r} is missing", _AGAIN)
        return run.tensor(view)

    return Pickled(value, "torch legacy", locate, pickle.leaves)


def _runs(
    raw: RawFile, pickle: TorchPickle, keys: Any, position: int, big_endian: bool
) -> dict[str, Run]:
    """Each storage: its number of elements in 8 bytes, then their bytes."""
    runs: dict[str, Run] = {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        refuse(raw.path, "its list of storages is damaged", _AGAIN)
    for key in keys:
        storage = pickle.storages.get(key)
        if storage is None or key in runs:
            refuse(raw.path, "its list of storages is damaged", _AGAIN)
        count = int.from_bytes(raw.at(position, 8), "big" if big_endian else "little")
        if count * storage.item != storage.nbytes or position + 8 + storage.nbytes > raw.size:
            refuse(raw.path, f"its storage {key[:20]!r} is cut off or of another size", _AGAIN)
        offset = raw.base + position + 8
        runs[key] = Run(
            raw.path, raw.stamp, offset, storage.nbytes, storage.nbytes, big_endian=big_endian
        )
        position += 8 + storage.nbytes
    return runs
