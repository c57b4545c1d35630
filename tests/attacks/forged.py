"""Pickles, torch zip files and DCP folders written byte by byte, to say what no program would."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C  # of torch's legacy files
STORED, DEFLATED = 0, 8

# ── pickles ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Code:
    """Operations that leave one value on the stack."""

    code: bytes


def pickled(value: Any) -> bytes:
    """A pickle of plain values and `Code`."""
    return b"\x80\x02" + code(value) + b"."


def now(value: Any) -> Any:
    """What is large is a function in the table: it is made when its row is run."""
    return value() if callable(value) else value


def code(value: Any) -> bytes:
    """The operations that push a value."""
    if isinstance(value, Code):
        return value.code
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        length = value.bit_length() // 8 + 1
        if length > 255:  # only as text
            return b"L%dL\n" % value
        return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(code, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(code, value)) + b"e"
    return b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u"


def named(module: str, name: str) -> Code:
    return Code(f"c{module}\n{name}\n".encode())


def call(module: str, name: str, *args: Any) -> Code:
    return Code(named(module, name).code + code(tuple(args)) + b"R")


def thing(module: str, name: str, state: Any) -> Code:
    """An object of this class with this state."""
    return Code(named(module, name).code + b")\x81" + code(state) + b"b")


def storage(numel: Any, key: Any = "0", kind: Any = "FloatStorage", what: Any = "storage") -> Code:
    of = named("torch", kind) if isinstance(kind, str) else kind
    return Code(code((what, of, key, "cpu", numel)) + b"Q")


def tensor(
    shape: Any, stride: Any, numel: Any, offset: Any = 0, key: Any = "0", kind: Any = "FloatStorage"
) -> Code:
    """A view of a storage of `numel` values."""
    hooks = call("collections", "OrderedDict")
    args = (storage(numel, key, kind), offset, shape, stride, False, hooks)
    return call("torch._utils", "_rebuild_tensor_v2", *args)


def vector(count: int, offset: int = 0, key: str = "0", numel: int | None = None) -> Code:
    return tensor((count,), (1,), count if numel is None else numel, offset, key)


def laughs(inner: Any, opened: bytes = b"", closed: bytes = b"\x86", depth: int = 40) -> Code:
    """A value that holds the one before it twice, 40 deep: 2^40 paths lead through it."""
    steps = (opened + b"q\0h\0" + closed for _ in range(depth))
    return Code(code(inner) + b"".join(steps))


def deep(depth: int = 100_000) -> Code:
    """Tuples in tuples."""
    return Code(b"N" + b"\x85" * depth)


# ── zip files ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Record:
    """A record of a zip file, with what its two headers claim."""

    data: bytes
    method: int = STORED
    size: int | None = None  # unpacked
    at: str = ""  # the record whose bytes these are
    flags: int = 0
    local_method: int | None = None
    local_flags: int = 0


def zeros(megabytes: int) -> bytes:
    """A deflated stream of that many MiB of zeros: about 1 kB for each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * megabytes + b"\x03\x00"


def bomb(megabytes: int) -> Record:
    return Record(zeros(megabytes), DEFLATED, megabytes << 20)


def zipped(records: Mapping[str, Record], comment: bytes = b"") -> bytes:
    """A zip archive of these records; their checksums are wrong, which torch does not mind."""
    body, directory = bytearray(), bytearray()
    places: dict[str, int] = {}
    for name, record in records.items():
        label, size = name.encode(), len(record.data) if record.size is None else record.size
        if not record.at:
            places[name] = len(body)
            local = record.method if record.local_method is None else record.local_method
            body += struct.pack(
                "<4s5H3L2H", b"PK\3\4", 20, record.local_flags, local, 0, 0, 0,
                len(record.data), min(size, 2**32 - 2), len(label), 0,
            )  # fmt: skip
            body += label + record.data
        source = records[record.at] if record.at else record
        packed = len(source.data)
        extra = struct.pack("<2HQ", 1, 8, size) if size >= 2**32 - 1 else b""
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, record.flags, record.method, 0, 0, 0,
            packed, 2**32 - 1 if extra else size, len(label), len(extra), 0, 0, 0, 0,
            places[record.at or name],
        )  # fmt: skip
        directory += label + extra
    count = len(records) % 65536
    sizes = (len(directory), len(body), len(comment))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, *sizes)
    return bytes(body + directory) + tail + comment


def torch_file(value: Any, storages: Mapping[str, Record | bytes], **others: Record) -> bytes:
    """A torch zip file of a value (or a whole pickle) and its storages."""
    data = value if isinstance(value, bytes) else pickled(value)
    records = {"archive/data.pkl": Record(data)}
    records |= {f"archive/{name}": record for name, record in others.items()}
    for key, one in storages.items():
        records[f"archive/data/{key}"] = one if isinstance(one, Record) else Record(one)
    return zipped(records)


def legacy(value: Any, keys: Any, *storages: tuple[int, bytes], **parts: Any) -> bytes:
    """A torch file of five pickles, and storages with their counts."""
    pickles = [parts.get("magic", MAGIC), parts.get("protocol", 1001)]
    pickles += [parts.get("system", {"little_endian": True}), value, keys]
    data = b"".join(one if isinstance(one, bytes) else pickled(one) for one in pickles)
    return data + b"".join(struct.pack("<q", count) + content for count, content in storages)


# ── DCP folders ─────────────────────────────────────────────────────────────────────────────────

_META = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True)
class Piece:
    """A part of a tensor in a DCP folder."""

    offsets: Any
    shape: tuple[int, ...]
    file: Any = "__0_0.distcp"
    begin: Any = None  # after the piece before
    length: Any = None  # its own
    content: bytes | None = None
    transforms: Any = None
    name: str = "weight"


def piece_file(shape: tuple[int, ...]) -> bytes:
    """One tensor as DCP stores it: a whole torch file."""
    count = 1
    for n in shape:
        count *= n
    strides = tuple(1 if i == len(shape) - 1 else shape[1] for i in range(len(shape)))
    return torch_file(tensor(shape, strides, count), {"0": bytes(4 * count)})


def described(shape: Any, dtype: str = "float32") -> Code:
    properties = thing(_META, "TensorProperties", (named("torch", dtype), False))
    return thing(_META, "TensorStorageMetadata", {"size": shape, "properties": properties})


def dcp(folder: Path, shape: Any, pieces: Sequence[Piece], **state: Any) -> Path:
    """A DCP folder with one tensor of these pieces."""
    storage_data: list[tuple[Any, Any]] = []
    contents: dict[str, bytearray] = {}
    for piece in pieces:
        data = piece_file(piece.shape) if piece.content is None else piece.content
        file = contents.setdefault(piece.file, bytearray()) if isinstance(piece.file, str) else data
        place = {
            "relative_path": piece.file,
            "offset": len(file) if piece.begin is None else piece.begin,
            "length": len(data) if piece.length is None else piece.length,
        }
        place |= {"transform_descriptors": piece.transforms} if piece.transforms else {}
        if isinstance(file, bytearray):
            file += data
        key = thing(_META, "MetadataIndex", {"fqn": piece.name, "offset": piece.offsets})
        info = thing("torch.distributed.checkpoint.filesystem", "_StorageInfo", place)
        storage_data.append((key, info))
    for name, content in contents.items():
        if not {"/", "\0"} & set(name) and name not in ("", ".", ".."):
            (folder / name).write_bytes(content)
    table = b"}(" + b"".join(code(k) + code(v) for k, v in storage_data) + b"u"
    whole = {"state_dict_metadata": {"weight": described(shape)}, "storage_data": Code(table)}
    (folder / ".metadata").write_bytes(pickled(thing(_META, "Metadata", whole | state)))
    return folder
