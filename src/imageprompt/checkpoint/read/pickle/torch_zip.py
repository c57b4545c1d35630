"""torch's zip files: a pickle of the structure, and one record of raw bytes for each storage."""

from __future__ import annotations

from imageprompt.checkpoint.read.pickle.machine import MAX_PICKLE, PickleError
from imageprompt.checkpoint.read.pickle.storages import Run
from imageprompt.checkpoint.read.pickle.torch_objects import TorchPickle, View
from imageprompt.checkpoint.read.pickle.torch_tree import Pickled, refuse_pickle
from imageprompt.checkpoint.read.pickle.zip_records import (
    DEFLATED,
    STORED,
    Record,
    data_offset,
    read_records,
)
from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import explain_zip, refuse
from imageprompt.checkpoint.read.stored_tensor import StoredTensor


def read_torch_zip(raw: RawFile) -> Pickled:
    """What a torch zip file holds. Raises AdapterFileError; no storage is read."""
    records = read_records(raw)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in records):
        explain_zip(raw.path, records)
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    big_endian = order is not None and _content(raw, order) == b"big"
    pickle = TorchPickle()
    try:
        value, _ = pickle.read(_content(raw, records[pickles[0]]))
    except PickleError as error:
        refuse_pickle(raw.path, error)
    runs: dict[str, Run] = {}

    def locate(view: View) -> StoredTensor:
        key = view.storage.key
        if key not in runs:
            record = records.get(f"{prefix}data/{key}")
            if record is None or record.size != view.storage.nbytes:
                refuse(
                    raw.path, f"its storage {key[:20]!r} is missing or cut", "Download it again."
                )
            runs[key] = _run(raw, record, big_endian)
        return runs[key].tensor(view)

    return Pickled(value, "torch zip", locate, pickle.leaves)


def _run(raw: RawFile, record: Record, big_endian: bool = False) -> Run:
    if record.method not in (STORED, DEFLATED):
        refuse(raw.path, f"zip compression {record.method} is not supported", "Save it again.")
    if record.method == STORED and record.packed != record.size:
        refuse(raw.path, f"its record {record.name[:80]!r} is damaged", "Download it again.")
    return Run(
        raw.path,
        raw.stamp,
        raw.base + data_offset(raw, record),
        record.packed,
        record.size,
        record.method == DEFLATED,
        big_endian,
    )


def _content(raw: RawFile, record: Record) -> bytes:
    """A small record, unpacked."""
    if record.size > MAX_PICKLE:
        refuse(raw.path, f"{record.name[:80]!r} in it takes {record.size} bytes, too many")
    return b"".join(_run(raw, record).read(0, record.size))
