"""Torch files, zipped and legacy: what is unpacked, repeated, endless, or runs code."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forge import adapter_shapes

from .adapter_doors import (
    MIB,
    REPORTS,
    TORCH,
    Make,
    inspects,
    reads,
)
from .attack import Attack, Door, content
from .forged import (
    DEFLATED,
    STORED,
    Code,
    Record,
    bomb,
    call,
    code,
    deep,
    laughs,
    legacy,
    named,
    now,
    pickled,
    storage,
    tensor,
    thing,
    torch_file,
    vector,
    zeros,
    zipped,
)


def torch_zip(value: Any, storages: dict[str, Any] | None = None, **others: Any) -> Make:
    def make(folder: Path) -> Path:
        records = {key: now(one) for key, one in (storages or {}).items()}
        extra = {name: now(one) for name, one in others.items()}
        return content(torch_file(now(value), records, **extra), "file.bin")(folder)

    return make


def lazily(make: Callable[[], bytes], name: str = "file.bin") -> Make:
    return lambda folder: content(make(), name)(folder)


def many(count: int, value: Callable[[int], Code]) -> dict[str, Code]:
    return {f"name.{i}": value(i) for i in range(count)}


def at_the_end(megabytes: int, count: int) -> Make:
    """Small views at the end of one deflated storage, each of which unpacks it from its start."""
    numel = megabytes * MIB // 4
    views = many(count, lambda i: vector(4, numel - 4 * (i + 1), numel=numel))
    return lazily(lambda: torch_file(views, {"0": bomb(megabytes)}))


def one_name_each(count: int, megabytes: int, method: int) -> Make:
    """Many storages that are all the same bytes of the archive."""

    def make(folder: Path) -> Path:
        size = megabytes * MIB
        first = bomb(megabytes) if method == DEFLATED else Record(bytes(size))
        again = Record(b"", method, size, at="archive/data/0")
        storages = {str(i): again if i else first for i in range(count)}
        views = many(count, lambda i: vector(size // 4, key=str(i)))
        return content(torch_file(views, storages), "file.bin")(folder)

    return make


def scattered(count: int) -> Make:
    """Tensors of two values, 100 MB apart in a sparse storage."""

    def make(folder: Path) -> Path:
        numel = 25 * MIB
        views = many(count, lambda i: tensor((2,), (numel - 1,), numel))
        path = content(torch_file(views, {"0": Record(b"", size=4 * numel)}), "file.bin")(folder)
        return sparse_record(path, 4 * numel)

    return make


def sparse_record(path: Path, size: int) -> Path:
    """Give the last record, which has no bytes yet, that many bytes of a hole."""
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    body, tail = data[:start], bytearray(data[start:])
    last = tail.rindex(b"PK\1\2")
    tail[last + 20 : last + 24] = struct.pack("<L", size)
    end = tail.rindex(b"PK\5\6")
    tail[end + 16 : end + 20] = struct.pack("<L", start + size)
    with path.open("wb") as file:
        file.write(body)
        file.seek(start + size)
        file.write(tail)
    return path


def many_records(count: int) -> bytes:
    """A zip directory of that many records, all of one local header."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 9, 4, *[0] * 6)
    directory = b"".join(entry + b"%04x" % i for i in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 30, 0)
    return b"PK\3\4" + bytes(26) + directory + tail


def with_tail(change: Callable[[bytes], bytes]) -> Make:
    return lazily(lambda: change(torch_file({"weight": vector(4)}, {"0": bytes(16)})))


def tail64(offset: int, size: int, place: int | None = None) -> Make:
    """The 64-bit end of the directory, claiming these numbers."""

    def change(data: bytes) -> bytes:
        end = data.rindex(b"PK\5\6")
        wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, size, offset)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end if place is None else place, 1)
        short = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
        return data[:end] + wide + locator + short

    return with_tail(change)


def record_of(**how: Any) -> Make:
    """A file of one tensor whose record says something odd."""
    how = {"data": bytes(16)} | how
    return torch_zip({"weight": vector(4)}, {"0": Record(**how)})


def slow(data: bytes, size: int) -> Make:
    """A torch file of an adapter with one deflated storage of these bytes: read only by --deep."""

    def make(folder: Path) -> Path:
        shapes = adapter_shapes()
        values: dict[str, Any] = {}
        storages: dict[str, Any] = {"z": Record(data, DEFLATED, size)}
        for i, (name, shape) in enumerate(shapes.items()):
            strides = (shape[1], 1) if len(shape) == 2 else (1,)
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            key = "z" if name == "image_proj.norm.bias" else str(i)
            values[name] = tensor(shape, strides, count, key=key, kind="CharStorage")
            if key != "z":
                storages[key] = Record(zeros(-(-count // MIB)), DEFLATED, count)
        return content(torch_file(values, storages), "file.bin")(folder)

    return make


def itself() -> Code:
    """A table that contains itself, beside a tensor."""
    return Code(b"}q\0(" + code("a") + b"h\0" + code("b") + vector(4).code + b"u")


ODD_TEXTS = {
    "C0": "a\x1b[2Jb",
    "C1": "a\x9b2Jb",
    "DEL": "a\x7fb",
    "bidi": "a\u202eb",
    "newline": "a\nb",
    "tag": "a\U000e0041b",
    "surrogate": "a\ud800b",
}

BOMBS: list[Attack] = [
    Attack(
        "61 names on one deflated storage",
        torch_zip(many(61, lambda i: vector(26 * MIB // 4)), {"0": lambda: bomb(26)}),
        "unpack",
    ),
    Attack(
        "4000 names on one stored storage",
        torch_zip(many(4000, lambda i: vector(MIB // 4)), {"0": bytes(MIB)}),
        "unpack",
    ),
    Attack("one view at the end of a deflated gigabyte", at_the_end(1024, 1), "unpack"),
    Attack("200 views at the end of a deflated gigabyte", at_the_end(1024, 200), "unpack"),
    Attack("views at the end of 60 deflated megabytes", at_the_end(60, 200), "unpack"),
    Attack(
        "a deflated gigabyte as one tensor",
        torch_zip({"weight": vector(256 * MIB)}, {"0": lambda: bomb(1024)}),
        "unpack",
    ),
    Attack("100 storages, all the same deflated bytes", one_name_each(100, 8, DEFLATED), "unpack"),
    Attack("1000 storages, all the same stored bytes", one_name_each(1000, 1, STORED), "unpack"),
    Attack(
        "a storage that claims 2^40 bytes",
        torch_zip({"weight": vector(2**38)}, {"0": Record(zeros(1), DEFLATED, 2**40)}),
        "unpack",
    ),
    Attack("two values 100 MB apart", scattered(1), "is spread over"),
    Attack("1000 tensors of two values 100 MB apart", scattered(1000), "is spread over"),
    # streams: only reading the weights shows them
    Attack("a deflated stream of noise", slow(b"\xff" * 700, 768), "damaged"),
    Attack("a deflated stream that is cut off", slow(zeros(1)[:3], 768), "cut off"),
    Attack("a deflated stream of nothing", slow(b"\x03\x00", 768), "cut off"),
    Attack("an empty deflated stream", slow(b"", 768), "cut off"),
]

PICKLES: list[Attack] = [
    # one budget: what is unpacked, repeated, or takes steps
    Attack(
        "a deflated pickle of 31 MiB",
        lazily(lambda: zipped({"archive/data.pkl": Record(zeros(31), DEFLATED, 31 * MIB)})),
        "opcode 0x00",
    ),
    Attack(
        "a byte order of 32 MiB",
        torch_zip({"weight": vector(4)}, {"0": bytes(16)}, byteorder=lambda: bomb(32)),
        "",
        "refused",
    ),
    Attack(
        "a byte order of a gigabyte",
        torch_zip({"weight": vector(4)}, {"0": bytes(16)}, byteorder=lambda: bomb(1024)),
        "",
        "refused",
    ),
    Attack(
        "five pickles of 300,000 steps",
        lazily(
            lambda: legacy(
                b"N0" * 150_000 + pickled({}),
                [],
                protocol=b"N0" * 150_000 + pickled(1),
                system=b"N0" * 150_000 + pickled({}),
            )
        ),
        "operations",
    ),
    Attack(
        "a legacy pickle that is read twice",
        lazily(lambda: legacy(b"N0" * 900_000, [])),
        "operations",
    ),
    Attack(
        "a class's name of 1 MB, joined 200,000 times",
        lazily(
            lambda: zipped(
                {
                    "archive/data.pkl": Record(
                        b"\x80\x02"
                        + code("transformers." + "x" * MIB)
                        + b"q\0"
                        + b"h\0h\0\x93" * 200_000
                        + b"."
                    )
                }
            )
        ),
        "name without end",
    ),
    Attack(
        "a class's name of 30 MB",
        lazily(
            lambda: zipped(
                {"archive/data.pkl": Record(b"ctransformers\n" + b"x" * (3 * MIB) + b"\n.")}
            )
        ),
        "name without end",
    ),
    Attack(
        "50,000 classes of one family",
        torch_zip(
            lambda: {"a": [named("transformers", f"C{i}") for i in range(50_000)], "b": vector(4)},
            {"0": bytes(16)},
        ),
        "",
        "refused",
    ),
    Attack(
        "60,000 values",
        torch_zip(
            lambda: Code(b"}(" + b"".join(code(str(i)) + b"N" for i in range(60_000)) + b"u")
        ),
        "values",
    ),
    Attack("a float of 3 MB", torch_zip(lambda: {"a": Code(b"F" + b"9" * (3 * MIB) + b"\n")}), ""),
    Attack(
        "a whole number of 3 MB",
        torch_zip(lambda: {"a": Code(b"L" + b"9" * (3 * MIB) + b"L\n")}),
        "damaged",
    ),
    Attack(
        "7000 numbers of 4300 digits",
        torch_zip(lambda: {"a": [Code(b"L" + b"9" * 4300 + b"L\n")] * 700, "b": 1}),
        "no tensors",
    ),
    # values whose text or hash never ends
    Attack(
        "an endless kind of storage",
        torch_zip({"a": storage(4, what=laughs(()))}),
        "unsupported way",
    ),
    Attack("a deep kind of storage", torch_zip({"a": storage(4, what=deep())}), "unsupported way"),
    Attack(
        "an endless class of storage",
        torch_zip({"a": storage(4, kind=laughs(()))}),
        "unsupported type",
    ),
    Attack(
        "an endless key of a storage",
        torch_zip({"a": storage(4, key=laughs(()))}),
        "unsupported way",
    ),
    Attack(
        "an endless object as a name",
        torch_zip(
            {"state_dict": {"a": vector(4)}, call("argparse", "Namespace", laughs(())): 1},
            {"0": bytes(16)},
        ),
        "",
    ),
    Attack(
        "an endless state of a name",
        torch_zip(
            {
                "module": {"a": vector(4)},
                "image_proj": {},
                thing("argparse", "Namespace", laughs(())): 1,
            },
            {"0": bytes(16)},
        ),
        "name of type",
    ),
    Attack(
        "a deep object as a name",
        torch_zip(
            {"module": {"a": vector(4)}, call("argparse", "Namespace", deep()): 1}, {"0": bytes(16)}
        ),
        "",
    ),
    Attack(
        "an endless object as a value",
        torch_zip(
            {"a": call("argparse", "Namespace", laughs(())), "b": vector(4)}, {"0": bytes(16)}
        ),
        "none of its 1",
    ),
    Attack("an endless shape", torch_zip({"a": tensor(laughs(1), (1,), 4)}), "malformed"),
    Attack(
        "an endless magic number",
        lazily(lambda: legacy({}, [], magic=laughs(()))),
        "torch did not write",
    ),
    Attack(
        "an endless system",
        lazily(
            lambda: legacy(
                {"a": vector(4)}, ["0"], (4, bytes(16)), system={"little_endian": laughs(())}
            )
        ),
        "none of its 1",
    ),
    Attack("tables in 40 tables", torch_zip(laughs({}, b"}" + code("a"), b"s")), ""),
    Attack("a table that contains itself", torch_zip(itself(), {"0": bytes(16)}), "deep"),
    Attack("a list that contains itself", torch_zip({"a": Code(b"]q\0h\0a")}), "no tensors"),
    Attack(
        "one name by two ways",
        torch_zip({"a.b": vector(4), "a": {"b": vector(4)}}, {"0": bytes(16)}),
        "twice",
    ),
    # tensors that are none
    *(
        Attack(
            f"a tensor of {what}",
            torch_zip(lambda make=make: {"a": now(make)}, {"0": bytes(16)}),
            says,
        )
        for what, make, says in [
            ("33 dimensions", tensor((1,) * 33, (1,) * 33, 4), "malformed"),
            ("100,000 dimensions", lambda: tensor((1,) * 100_000, (1,) * 100_000, 4), "malformed"),
            ("2^59 x 2^59 x 0 values", tensor((2**59, 2**59, 0), (1, 1, 1), 4), "malformed"),
            ("2^62 x 2^62 x 0 values", tensor((2**62, 2**62, 0), (1, 1, 1), 4), "malformed"),
            ("a negative size", tensor((-1,), (1,), 4), "malformed"),
            ("a negative stride", tensor((4,), (-1,), 4), "malformed"),
            ("a stride of 2^62", tensor((2,), (2**62,), 4), "claims more"),
            ("a size of 2^63", tensor((2**63,), (1,), 4), "malformed"),
            ("an offset of 2^62", tensor((1,), (1,), 4, 2**62), "claims more"),
            ("an offset of 400 digits", tensor((1,), (1,), 4, 10**400), "malformed"),
            ("a size that is True", tensor((True,), (1,), 4), "malformed"),
            ("a size that is 1.0", tensor((1.0,), (1,), 4), "malformed"),
            ("a size that is text", tensor(("1",), (1,), 4), "malformed"),
            ("two sizes and one stride", tensor((2, 2), (1,), 4), "malformed"),
            ("a list of sizes", tensor([4], [1], 4), "malformed"),
            (
                "no storage",
                call("torch._utils", "_rebuild_tensor_v2", None, 0, (1,), (1,)),
                "malformed",
            ),
            ("a storage of -1 values", vector(1, numel=-1), "unsupported way"),
            ("a storage of 2^63 values", vector(1, numel=2**63), "unsupported way"),
            ("a storage of True values", vector(1, numel=True), "unsupported way"),
            ("a storage by number", tensor((4,), (1,), 4, key=7), "unsupported way"),
            (
                "a storage of another place",
                tensor((4,), (1,), 4, key="../../x"),
                "missing or cut off",
            ),
            ("a storage of escapes", tensor((4,), (1,), 4, key="\x1b[2J"), "missing or cut off"),
            (
                "storages of quantised values",
                tensor((4,), (1,), 4, kind="QInt8Storage"),
                "no weights need",
            ),
            (
                "seventeen arguments",
                call("torch._utils", "_rebuild_tensor_v2", *range(17)),
                "17 arguments",
            ),
            ("no arguments", call("torch._utils", "_rebuild_tensor_v2"), "damaged"),
            ("a million repeated values", tensor((1000, 1000), (0, 0), 4), "claims more"),
            (
                "a type that makes types",
                call(
                    "torch._tensor",
                    "_rebuild_from_type_v2",
                    named("torch._tensor", "_rebuild_from_type_v2"),
                    1,
                    (),
                    2,
                ),
                "",
            ),
            (
                "a type that makes a size",
                call(
                    "torch._tensor",
                    "_rebuild_from_type_v2",
                    named("torch", "Size"),
                    1,
                    (laughs(()),),
                    2,
                ),
                "",
            ),
        ]
    ),
    Attack(
        "two sizes of one storage",
        torch_zip({"a": vector(4), "b": vector(5)}, {"0": bytes(16)}),
        "two sizes",
    ),
    # names
    *(
        Attack(
            f"a name with {kind}",
            torch_zip({f"image_proj.{text}": vector(4)}, {"0": bytes(16)}),
            "a tensor is called",
        )
        for kind, text in ODD_TEXTS.items()
    ),
    Attack(
        "a name of 70-digit numbers",
        torch_zip({10**70: vector(4)}, {"0": bytes(16)}),
        "name of type",
    ),
    Attack(
        "a name of 600 characters", torch_zip({"x" * 600: vector(4)}, {"0": bytes(16)}), "too long"
    ),
    Attack(
        "tables whose names add up",
        torch_zip({"x" * 300: {"y" * 300: vector(4)}}, {"0": bytes(16)}),
        "too long",
    ),
    *(
        Attack(
            f"code by {module}.{name}",
            torch_zip({"a": call(module, name, "touch canary")}),
            "no weights need",
        )
        for module, name in [
            ("posix", "system"),
            ("builtins", "getattr"),
            ("builtins", "compile"),
            ("__builtin__", "exec"),
            ("webbrowser", "open"),
            ("importlib", "import_module"),
            ("operator", "attrgetter"),
            ("functools", "partial"),
            ("types", "CodeType"),
            ("torch.serialization", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("torch.jit", "load"),
            ("numpy", "load"),
            ("pathlib", "Path.write_text"),
            ("torch._utils", "_rebuild_device_tensor_from_numpy"),
            ("copyreg", "_reconstructor"),
            ("pickle", "loads"),
            ("ctypes", "CDLL"),
        ]
    ),
    # zip archives
    Attack("170,000 records", lazily(lambda: many_records(65_536 * 2 + 30_000)), ""),
    Attack("a record that is encrypted", record_of(local_flags=1), "encrypted"),
    Attack("a record of bzip2", record_of(method=12), "compression 12"),
    Attack("a record of lzma", record_of(method=14), "compression 14"),
    Attack("a record of zstd", record_of(method=93), "compression 93"),
    Attack("a record of two methods", record_of(local_method=8), "damaged"),
    Attack("a stored record of two sizes", record_of(data=bytes(8), size=16), "damaged"),
    Attack("a record smaller than its storage", record_of(data=bytes(8)), "missing or cut off"),
    *(
        Attack(f"a 64-bit directory at {offset}, {size} long", tail64(offset, size), says)
        for offset, size, says in [
            (2**63, 100, "outside itself"),
            (0, 2**63, "claims"),
            (2**64 - 1, 1, "outside itself"),
            (10**6, 0, "outside itself"),
            (0, 0, "torch did not write"),
            (1, 50, "damaged"),
        ]
    ),
    *(
        Attack(f"a 64-bit directory found at {place}", tail64(0, 0, place), says)
        for place, says in [
            (2**63, "outside itself"),
            (0, "damaged"),
            (2**64 - 1, "outside itself"),
        ]
    ),
    Attack("a comment full of ends", with_tail(lambda d: d + b"PK\5\6" * 16_000), ""),
    Attack(
        "a directory that begins in itself",
        with_tail(lambda d: d[:-6] + struct.pack("<LH", len(d) - 30, 0)),
        "outside itself",
    ),
    Attack("two ends", with_tail(lambda d: d + d[-22:]), ""),
]


DOORS: tuple[Door, ...] = (
    Door("read_file: torch files", reads, BOMBS, TORCH),
    Door("inspect --deep: torch files", inspects, PICKLES, REPORTS),
)
