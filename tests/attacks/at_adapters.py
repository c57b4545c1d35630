"""Adapter files, shards, checkpoint folders and configs of bases, as strangers could make them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from forge import adapter_shapes, header, whole, write
from hostile import HOSTILE

from .attack import Attack, Door, content
from .forged import (
    DEFLATED,
    STORED,
    Code,
    Piece,
    Record,
    bomb,
    call,
    code,
    dcp,
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

Make = Callable[[Path], Any]
MIB = 1 << 20

# ── doors ───────────────────────────────────────────────────────────────────────────────────────


def shown(report: Any) -> str:
    """A report as text and as JSON; every line of both is one that a terminal only shows."""
    from imageprompt.core.errors import printable

    lines = str(report).split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert len(lines) < 200
    table = report.as_dict()
    named = ("path", "files", "a", "b", "source", "target", "remedies")  # they must stay usable
    for text in texts({key: value for key, value in table.items() if key not in named}):
        assert text == printable(text), text
        assert len(text) <= 200_000
    return "\n".join([*lines, json.dumps(table)])


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in texts(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in texts(one))


def inspects(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.inspect import inspect

    return shown(inspect(made, deep=True))


def advises(made: Path, out: Path) -> object:
    """The lines to copy: for a shell and for Python."""
    import ast
    import shlex

    from imageprompt.checkpoint.inspect import inspect

    report = inspect(made)
    for advice in report.remedies:
        if advice.line.startswith("imageprompt "):
            assert str(made) in shlex.split(advice.line)
        if advice.where == "diffusers":
            (call,) = [n for n in ast.walk(ast.parse(advice.line)) if isinstance(n, ast.Call)]
            assert made.name in [ast.literal_eval(one.value) for one in call.keywords]
    return shown(report)


def converts(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.convert import convert

    return shown(convert(made, out / "adapter.safetensors", force=True))


def validates(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.validate import validate

    return shown(validate(made))


def on_base(made: Path, out: Path) -> object:
    """A sound adapter, held against the base in the folder that was made."""
    from imageprompt.checkpoint.validate import validate

    return shown(validate(whole(out / "adapter.safetensors"), base=made))


def on_encoder(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.validate import validate

    return shown(validate(whole(out / "adapter.safetensors"), encoder=made))


def differs(made: Path, out: Path) -> object:
    """Against a sound adapter, from both sides."""
    from imageprompt.checkpoint.diff import diff

    sound = whole(out / "adapter.safetensors")
    return shown(diff(made, sound)) + shown(diff(sound, made))


def loads(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.identify.identify import read_adapter

    return read_adapter(made)[0]


def reads(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.torch_io import read_file

    return f"{len(read_file(made).tensors)} tensors"


def reads_prompt(made: Path, out: Path) -> object:
    from imageprompt.checkpoint.torch_io import read_file

    found = read_file(made, container="safetensors")
    return f"{len(found.tensors)} tensors"


# ── torch files ─────────────────────────────────────────────────────────────────────────────────


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
        "five pickles of half a million steps",
        lazily(
            lambda: legacy(
                b"N0" * 400_000 + pickled({}),
                [],
                protocol=b"N0" * 400_000 + pickled(1),
                system=b"N0" * 400_000 + pickled({}),
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

# ── safetensors ─────────────────────────────────────────────────────────────────────────────────


def headed(text: Any, size: int = 0) -> Make:
    def make(folder: Path) -> Path:
        data = now(text)
        data = data.encode() if isinstance(data, str) else data
        return write(folder / "file.safetensors", data, size)

    return make


def entry(shape: str = "[1]", offsets: str = "[0,2]", dtype: str = '"F16"') -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def metadata(value: Any) -> Make:
    """A sound adapter with this metadata (a table, or the JSON text itself)."""

    def make(folder: Path) -> Path:
        table = json.dumps(header(adapter_shapes()))
        text = now(value)
        text = text if isinstance(text, str) else json.dumps(text)
        size = max(e["data_offsets"][1] for e in json.loads(table).values())
        data = f'{{"__metadata__":{text},{table[1:]}'.encode("utf-8", "surrogatepass")
        return write(folder / "file.safetensors", data, size)

    return make


def names(make: Callable[[int], str], count: int, shape: tuple[int, ...] = (1,)) -> Make:
    return lambda folder: write(
        folder / "file.safetensors", header({make(i): shape for i in range(count)})
    )


def dtypes(dtype: str, item: int) -> Make:
    """A sound adapter in another dtype."""

    def make(folder: Path) -> Path:
        entries, position = {}, 0
        for name, shape in adapter_shapes().items():
            size = item
            for n in shape:
                size *= n
            entries[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [position, position + size],
            }
            position += size
        return write(folder / "file.safetensors", entries)

    return make


SAFETENSORS: list[Attack] = [
    Attack(
        "a header of 33 MB",
        lambda folder: write(folder / "file.safetensors", b"{" + b" " * (33 * MIB), 0),
        "the limit is",
    ),
    Attack(
        "a header of 31 MB of spaces",
        lambda folder: write(folder / "file.safetensors", b"{}" + b" " * (31 * MIB), 0),
        "",
    ),
    Attack(
        "600,000 tables",
        headed(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(300_000)) + "}"),
        "too large",
    ),
    Attack(
        "400,000 tables",
        headed(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(190_000)) + "}"),
        "does not say",
    ),
    Attack("lists 65 deep", headed('{"a":' + "[" * 65 + "]" * 65 + "}"), "deep"),
    Attack(
        "lists 100,000 deep", headed(lambda: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "deep"
    ),
    Attack("tables 100,000 deep", headed(lambda: '{"a":' * 100_000 + "1" + "}" * 100_000), "deep"),
    Attack("a size of 41 digits", headed(entry(f"[{'9' * 41}]")), "41 digits"),
    Attack("a size of a million digits", headed(lambda: entry(f"[{'9' * 1_000_000}]")), "digits"),
    Attack("a size of 1e400", headed(entry("[1e400]")), "too large"),
    Attack(
        "a size of a million decimals", headed(lambda: entry(f"[0.{'1' * 1_000_000}]")), "digits"
    ),
    *(
        Attack(f"a size of {size}", headed(entry(f"[{size}]"), 2), says)
        for size, says in [
            ("NaN", "not a number"),
            ("Infinity", "not a number"),
            ("-Infinity", "not a number"),
            ("true", "does not say"),
            ("1.0", "does not say"),
            ('"1"', "does not say"),
            ("null", "does not say"),
            ("-1", "does not say"),
            ("9223372036854775808", "does not say"),
            ("-0", "takes 0 bytes"),
            ("[1]", "does not say"),
            ("4611686018427387904,4", "does not say"),
        ]
    ),
    *(
        Attack(f"offsets {offsets}", headed(entry(offsets=offsets), 2), says)
        for offsets, says in [
            ("[2,0]", "takes"),
            ("[0,9223372036854775807]", "takes"),
            ("[-2,0]", "does not say"),
            ("[0]", "does not say"),
            ("[0,1,2]", "does not say"),
            ("{}", "does not say"),
            ("[4,6]", "hole"),
            ("[0.0,2]", "does not say"),
            ("null", "does not say"),
        ]
    ),
    *(
        Attack(f"a dtype of {dtype[:20]}", headed(entry(dtype=dtype), 2), says)
        for dtype, says in [
            ("1", "does not say"),
            ("[]", "does not say"),
            ('"\\u001b[2J"', "which no adapter uses"),
            (f'"{"F" * 100_000}"', "which no adapter uses"),
            ('"f16"', "which no adapter uses"),
            ('"I4"', "which no adapter uses"),
        ]
    ),
    Attack("33 dimensions", headed(entry(f"[{','.join('1' * 33)}]"), 2), "does not say"),
    Attack("a UTF-16 header", headed(entry().encode("utf-16-le"), 2), "not valid JSON"),
    Attack("a header that is not UTF-8", headed(b'{"\xff\xfe":{}}'), "not valid JSON"),
    Attack("a header with half a character", headed(b'{"\xed\xa0\x80":{}}'), "not valid JSON"),
    Attack("a header with a raw newline in a name", headed(b'{"a\nb":{}}'), "not valid JSON"),
    Attack(
        "one name twice, far inside",
        headed('{"a":{"dtype":"F16","dtype":"F16"}}'),
        "same name appears twice",
    ),
    Attack("text after the table", headed(entry() + "{}", 2), "not valid JSON"),
    Attack("an empty table", headed("{}"), "no tensors"),
    *(
        Attack(
            f"a name with {kind}",
            headed(json.dumps(header({f"image_proj.{text}": (1,)})), 2),
            "a tensor is called",
        )
        for kind, text in ODD_TEXTS.items()
    ),
    # metadata
    *(
        Attack(
            f"metadata with {kind}",
            metadata({"title": text, text: "title"}),
            "half a character" if kind == "surrogate" else "title",
            "refused" if kind == "surrogate" else "read",
        )
        for kind, text in ODD_TEXTS.items()
    ),
    *(
        Attack(f"metadata that is {text}", metadata(text), "not a table of strings")
        for text in ("null", "[]", '"a"', "7", '{"a":null}', '{"a":{"b":"c"}}', '{"a":["b"]}')
    ),
    Attack("metadata of 4 MB", metadata(lambda: {"title": "x" * 4_000_000}), "title", "read"),
    Attack(
        "metadata of 50,000 entries",
        metadata(lambda: {f"k{i}": "v" for i in range(50_000)}),
        "k999",
        "read",
    ),
    Attack(
        "a variant that steers the terminal",
        metadata({"variant": "\x1b[2J", "host": "\x1b[2J", "encoder": "\x1b[2J"}),
        "variant",
        "read",
    ),
    Attack(
        "a variant of 1 MB",
        metadata(lambda: {"variant": "base" * 250_000, "host": "sd15" * 250_000}),
        "variant",
        "read",
    ),
    # many names
    Attack(
        "50,000 tensors with names of 400 characters",
        names(lambda i: f"{i}" + "._lora.up" * 44, 20_000),
        "none of its",
    ),
    Attack("48,000 tensors", names(lambda i: f"{i}", 48_000, (0,)), "none of its 48000"),
    Attack(
        "4,000 sites", names(lambda i: f"ip_adapter.{i}.to_k_ip.weight", 4000, (1, 1)), "", "read"
    ),
    Attack(
        "20,000 sites",
        names(lambda i: f"ip_adapter.{i}.to_k_ip.weight", 20_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "20,000 sites by layer",
        names(
            lambda i: (
                f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight"
            ),
            20_000,
            (1, 1),
        ),
        "unknown-layers",
        "read",
    ),
    Attack(
        "20,000 tensors of a projector",
        names(lambda i: f"image_proj.layers.{i}.0.to_q.weight", 20_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "20,000 wrapped names",
        names(lambda i: "module." * 50 + f"image_proj.{i}", 20_000),
        "the limit is 5000",
    ),
    Attack(
        "20,000 XLabs blocks",
        names(
            lambda i: f"double_blocks.{i}.processor.ip_adapter_double_stream_k_proj.weight",
            20_000,
            (1, 1),
        ),
        "the limit is 5000",
    ),
    Attack(
        "10,000 LoRA layers",
        names(lambda i: f"ip_adapter.{i}.to_q_lora.up.weight", 10_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "a layer counted 10^18",
        names(lambda i: f"ip_adapter.{10**18 + i}.to_k_ip.weight", 10, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "a layer of 300 digits",
        names(lambda i: f"ip_adapter.{'9' * 300}{i}.to_k_ip.weight", 10, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "layers in Arabic digits",
        names(lambda i: f"ip_adapter.{'١٢٣٤٥٦٧٨٩'[i]}.to_k_ip.weight", 9, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "a resampler 10^15 deep",
        names(lambda i: f"image_proj.layers.{10**15 * i}.0.to_q.weight", 4, (1, 1)),
        "",
        "read",
    ),
    *(
        Attack(f"weights of {dtype}", dtypes(dtype, item), "", "read")
        for dtype, item in [
            ("C64", 8),
            ("BOOL", 1),
            ("U64", 8),
            ("I64", 8),
            ("U16", 2),
            ("F8_E8M0", 1),
            ("F8_E4M3", 1),
            ("F64", 8),
        ]
    ),
]

# ── shards ──────────────────────────────────────────────────────────────────────────────────────

INDEX = "model.safetensors.index.json"


def indexed(table: Any, *others: Callable[[Path], object]) -> Make:
    """A folder with an index (its weight_map, or the text itself), and what else is in it."""

    def make(folder: Path) -> Path:
        text = now(table)
        text = text if isinstance(text, str | bytes) else json.dumps({"weight_map": text})
        inner = folder / "named"
        inner.mkdir()
        (inner / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
        for other in others:
            other(inner)
        return inner / INDEX

    return make


def shard(name: str, tensor_name: str = "a") -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, header({tensor_name: (1,)}))


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def outside(name: str, target: str = "private.safetensors") -> Callable[[Path], None]:
    """A link to a sound file beside the folder."""

    def make(folder: Path) -> None:
        whole(folder.parent / target)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder.parent / target)

    return make


def fifo(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def alike(count: int, how: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    """The same file under many names."""

    def make(folder: Path) -> None:
        first = write(folder / "s0", header({f"t{i}": (1,) for i in range(2000)}))
        for i in range(1, count):
            how(first, folder / f"s{i}")

    return make


def hard(first: Path, other: Path) -> None:
    other.hardlink_to(first)


def soft(first: Path, other: Path) -> None:
    other.symlink_to(first.name)


def hub(blobs: str) -> Make:
    """A snapshot of a Hub cache whose shards are links into this folder of blobs."""

    def make(folder: Path) -> Path:
        snapshot = folder / "models--owner--name" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        target = snapshot / blobs
        target.mkdir(parents=True, exist_ok=True)
        source = whole(target / "blob")
        (snapshot / "model.safetensors").symlink_to(os.path.relpath(source, snapshot))
        return snapshot

    return make


SHARDS: list[Attack] = [
    *(
        Attack(f"a shard called {str(name)[:20]!r}", indexed({"a": name}), "not plain file names")
        for name in (
            "..",
            ".",
            "",
            "a/b",
            "../x",
            "/etc/passwd",
            "a\\b",
            "C:x",
            "a\0b",
            "x" * 256,
            [],
            {},
            None,
            7,
            True,
            [["a"]],
        )
    ),
    Attack("a shard that leads out", indexed({"image_proj.a": "s"}, outside("s")), "leads out"),
    Attack(
        "a shard that leads out and in",
        indexed({"a": "s", "b": "t"}, shard("s"), link("t", "../named/s")),
        "same file",
    ),
    Attack("a shard that leads nowhere", indexed({"a": "s"}, link("s", "../gone")), "missing"),
    Attack("a shard that leads to itself", indexed({"a": "s"}, link("s", "s")), ""),
    Attack("a shard that is a pipe", indexed({"a": "s"}, fifo("s")), "pipe or device"),
    Attack("a shard that is a device", indexed({"a": "s"}, link("s", "/dev/zero")), "leads out"),
    Attack(
        "a shard that is a folder",
        indexed({"a": "s"}, lambda folder: (folder / "s").mkdir()),
        "a folder",
    ),
    Attack("a shard that is the index", indexed({"a": INDEX}), "JSON text"),
    Attack(
        "a file under 1000 names",
        indexed({f"t{i}": f"s{i}" for i in range(1000)}, alike(1000, hard)),
        "same file",
    ),
    Attack(
        "a file under 1000 links",
        indexed({f"t{i}": f"s{i}" for i in range(1000)}, alike(1000, soft)),
        "same file",
    ),
    Attack("1001 shards", indexed({f"t{i}": f"s{i}" for i in range(1001)}), "the limit is 1000"),
    Attack(
        "20 shards of 40,000 tables",
        indexed(
            {f"t{i}": f"s{i}" for i in range(20)},
            lambda folder: [
                write(
                    folder / f"s{i}",
                    (
                        "{"
                        + f'"t{i}":'
                        + json.dumps(header({"a": (1,)})["a"])
                        + "".join(
                            f',"{j}":{{"dtype":"F16","shape":[0],"data_offsets":[2,2]}}'
                            for j in range(8000)
                        )
                        + "}"
                    ).encode(),
                    2,
                )
                for i in range(20)
            ],
        ),
        "too large",
    ),
    Attack("a tensor that no shard has", indexed({"b": "s"}, shard("s")), "not in the shard"),
    Attack(
        "names that steer a terminal", indexed({"a\x1b[2J": "s"}, shard("s")), "not in the shard"
    ),
    Attack("a shard called by an escape", indexed({"a": "\x1b[2J"}), "missing"),
    *(
        Attack(f"an index that is {what}", indexed(text), says)
        for what, text, says in [
            ("a list", "[1]", "not a JSON object"),
            ("a number", "7777777777", "not a JSON object"),
            ("a text", '"aaaaaaaa"', "not a JSON object"),
            ("empty", '{"weight_map":{}}', "without a weight_map"),
            ("a list of names", '{"weight_map":["a"]}', "without a weight_map"),
            ("deep", lambda: '{"weight_map":' + "[" * 100_000, "deep"),
            ("no UTF-8", b'{"\xff":1,  }', "not valid JSON"),
            ("NaN", '{"weight_map":NaN}', "not a number"),
            ("twice", '{"weight_map":{},"weight_map":{}}', "appears twice"),
            ("33 MB", lambda: "{" + " " * (33 * MIB), "too large"),
            ("600,000 tables", lambda: '{"a":[' + "{}," * 600_000 + "1]}", "too large"),
            ("cut off in a text", lambda: '{"weight_map":{"' + "a" * 4_000_000, "not valid JSON"),
            (
                "a size of 400 digits",
                '{"metadata":{"total_size":' + "9" * 400 + '},"weight_map":{"a":"s"}}',
                "400 digits",
            ),
        ]
    ),
    Attack(
        "an index that is a pipe",
        lambda folder: os.mkfifo(folder / INDEX) or folder / INDEX,
        "not a regular file",
    ),
    Attack("a Hub cache", hub("../../blobs"), "", "read"),
    Attack(
        "a Hub cache that leads into another repository",
        hub("../../../models--owner--other/blobs"),
        "leads out",
    ),
    Attack("a Hub cache that leads out", hub("../../../private"), "leads out"),
    Attack("a Hub cache that leads below its blobs", hub("../../blobs/deeper"), "leads out"),
]

# ── DCP ─────────────────────────────────────────────────────────────────────────────────────────

TWO = (Piece((0,), (4,)), Piece((4,), (4,)))


def distributed(
    shape: Any, *pieces: Piece, also: Callable[[Path], object] | None = None, **state: Any
) -> Make:
    def make(folder: Path) -> Path:
        inner = folder / "named"
        inner.mkdir()
        asked = [replace(one, offsets=now(one.offsets), content=now(one.content)) for one in pieces]
        dcp(inner, now(shape), asked, **state)
        if also:
            also(inner)
        return inner

    return make


def metadata_file(data: bytes) -> Make:
    return lambda folder: content(data, ".metadata")(folder).parent


DCP: list[Attack] = [
    *(
        Attack(
            f"pieces in {str(file)[:20]!r}", distributed((4,), Piece((0,), (4,), file)), "damaged"
        )
        for file in ("..", ".", "", "../x", "/etc/passwd", "a/b", "a\0b", None, 7, ["a"])
    ),
    Attack(
        "pieces in a file that leads out",
        distributed(
            (4,),
            Piece((0,), (4,), "x"),
            also=lambda f: ((f / "x").rename(f.parent / "x"), link("x", "../x")(f)),
        ),
        "leads out",
    ),
    Attack(
        "pieces in a pipe",
        distributed(
            (4,), Piece((0,), (4,), "x"), also=lambda f: ((f / "x").unlink(), fifo("x")(f))
        ),
        "pipe or device",
    ),
    Attack(
        "pieces in one file by two names",
        distributed(
            (8,),
            Piece((0,), (4,), "x"),
            Piece((4,), (4,), "y"),
            also=lambda f: ((f / "y").unlink(), (f / "y").hardlink_to(f / "x")),
        ),
        "same file",
    ),
    Attack(
        "pieces in files that are gone",
        distributed((4,), Piece((0,), (4,), "x"), also=lambda f: (f / "x").unlink()),
        "missing",
    ),
    Attack(
        "pieces that overlap in the file",
        distributed((8,), Piece((0,), (4,)), Piece((4,), (4,), begin=10)),
        "overlap",
    ),
    Attack(
        "pieces that overlap in the tensor",
        distributed((8,), Piece((0,), (4,)), Piece((0,), (4,))),
        "overlap",
    ),
    Attack(
        "pieces that overlap by one value",
        distributed((8,), Piece((0,), (4,)), Piece((3,), (4,))),
        "overlap",
    ),
    Attack(
        "pieces that overlap in a corner",
        distributed((2, 4), Piece((0, 0), (2, 2)), Piece((1, 1), (1, 2)), Piece((0, 3), (2, 1))),
        "overlap",
    ),
    Attack(
        "1500 pieces of the same place",
        distributed((1500,), *(Piece((0,), (1,)) for _ in range(1500))),
        "overlap",
    ),
    Attack(
        "3000 empty pieces", distributed((0, 4), *(Piece((0, 0), (0, 4)) for _ in range(1500))), ""
    ),
    Attack("a tensor without pieces", distributed((4,)), "missing"),
    Attack("an empty tensor without pieces", distributed((0,)), "missing"),
    Attack("a piece outside of the tensor", distributed((8,), Piece((8,), (8,))), "does not fit"),
    Attack("a piece of other dimensions", distributed((2, 2), Piece((0,), (4,))), "does not fit"),
    Attack("a piece at 2^62", distributed((8,), Piece((2**62,), (8,))), "does not fit"),
    Attack("a piece at -1", distributed((8,), Piece((-1,), (8,))), "damaged"),
    Attack("a piece at 10^400", distributed((8,), Piece((10**400,), (8,))), "damaged"),
    Attack("a piece of nothing", distributed((8,), Piece((0,), (8,), length=0)), "outside itself"),
    Attack(
        "a piece of 2^62 bytes", distributed((8,), Piece((0,), (8,), length=2**62)), "truncated"
    ),
    Attack(
        "a piece that begins at 2^62",
        distributed((8,), Piece((0,), (8,), begin=2**62)),
        "truncated",
    ),
    Attack(
        "a piece that is True long", distributed((8,), Piece((0,), (8,), length=True)), "damaged"
    ),
    Attack(
        "a piece that is compressed",
        distributed((8,), Piece((0,), (8,), transforms=["zstd"])),
        "compressed",
    ),
    Attack(
        "a piece that is a pickle",
        distributed((4,), Piece((0,), (4,), content=pickled([1]))),
        "not torch files",
    ),
    Attack(
        "a piece of two tensors",
        distributed(
            (4,), Piece((0,), (4,), content=lambda: torch_file([vector(4)] * 2, {"0": bytes(16)}))
        ),
        "not a tensor",
    ),
    Attack(
        "a piece that runs code",
        distributed(
            (4,),
            Piece((0,), (4,), content=lambda: torch_file(call("os", "system", "touch canary"), {})),
        ),
        "no weights need",
    ),
    Attack(
        "a piece of a deflated gigabyte",
        distributed(
            (256 * MIB,),
            Piece((0,), (4,), content=lambda: torch_file(vector(256 * MIB), {"0": bomb(1024)})),
        ),
        "unpack",
    ),
    Attack(
        "20 pieces of 60 deflated megabytes",
        distributed(
            (20 * 15 * MIB,),
            *(
                Piece(
                    (i * 15 * MIB,),
                    (4,),
                    content=lambda: torch_file(vector(15 * MIB), {"0": bomb(60)}),
                )
                for i in range(20)
            ),
        ),
        "unpack",
    ),
    Attack(
        "20 pieces with pickles of 30 MB",
        distributed(
            (20,),
            *(
                Piece(
                    (i,),
                    (1,),
                    content=lambda: zipped({"a/data.pkl": Record(zeros(30), DEFLATED, 30 * MIB)}),
                )
                for i in range(20)
            ),
        ),
        "opcode",
    ),
    Attack(
        "a tensor of 100,000 dimensions",
        distributed(lambda: (2**62,) * 100_000, Piece((0,), (4,))),
        "damaged",
    ),
    Attack("a tensor of 33 dimensions", distributed((1,) * 33, Piece((0,) * 33, (1,))), "damaged"),
    Attack(
        "a piece at 100,000 offsets",
        distributed((4,), Piece(lambda: (2**62,) * 100_000, (4,))),
        "damaged",
    ),
    Attack("a tensor of an endless size", distributed(laughs(1), *TWO), "damaged"),
    Attack(
        "a tensor called by an escape",
        distributed((8,), *TWO, state_dict_metadata={"a\x1b[2J": Code(b"N")}),
        "no tensors",
    ),
    Attack("a description that is endless", metadata_file(pickled(laughs({}))), "damaged"),
    Attack("a description that is deep", metadata_file(pickled(deep())), "damaged"),
    Attack("a description that is a number", metadata_file(pickled(7)), "damaged"),
    Attack("a description that is a zip", metadata_file(torch_file({}, {})), "cut off"),
    Attack("an empty description", metadata_file(b""), "cut off"),
    Attack(
        "a description that is a pipe",
        lambda folder: os.mkfifo(folder / ".metadata") or folder,
        "pipe or device",
    ),
    Attack(
        "a description that leads out",
        distributed(
            (8,),
            *TWO,
            also=lambda f: ((f / ".metadata").rename(f.parent / "m"), link(".metadata", "../m")(f)),
        ),
        "leads out",
    ),
    Attack(
        "a description of 33 MB",
        lambda folder: (os.truncate(content(b"", ".metadata")(folder), 33 * MIB), folder)[1],
        "the limit is",
    ),
    Attack("sound pieces", distributed((8,), *TWO), "none of its 1"),
]

# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def folder_of(*parts: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> Path:
        inner = folder / "named"
        inner.mkdir()
        for part in parts:
            part(inner)
        return inner

    return make


def text(name: str, value: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path, data = folder / name, now(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)

    return make


def hole(name: str, size: int, start: bytes = b"") -> Callable[[Path], object]:
    """A sparse file of that many bytes."""

    def make(folder: Path) -> None:
        text(name, start)(folder)
        os.truncate(folder / name, size)

    return make


def steps(count: int, make: Callable[[Path, int], object]) -> Callable[[Path], object]:
    return lambda folder: [make(folder / f"step-{i}", i) for i in range(count)]


def nested(folder: Path, levels: int = 4, each: int = 5) -> None:
    """Checkpoints of checkpoints: 5^4 folders, none of which holds anything."""
    for i in range(each if levels else 0):
        inner = folder / f"step-{i}"
        inner.mkdir()
        nested(inner, levels - 1, each)


def broken(folder: Path, index: int) -> None:
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"{}" * 8)


SOUND: Callable[[Path], object] = lambda folder: whole(folder / "adapter.safetensors")  # noqa: E731
FOLDERS: list[Attack] = [
    Attack(
        "25 links to the folder itself",
        folder_of(steps(25, lambda path, i: path.symlink_to("."))),
        "no weights",
    ),
    Attack(
        "25 links back and forth",
        folder_of(
            lambda f: (f / "in").mkdir(),
            steps(25, lambda path, i: path.symlink_to("in")),
            lambda f: [(f / "in" / f"step-{i}").symlink_to("..") for i in range(25)],
        ),
        "no weights",
    ),
    Attack(
        "a link to the folder above",
        folder_of(lambda f: whole(f.parent / "adapter.safetensors"), link("step-9", "..")),
        "no weights",
    ),
    Attack("checkpoints that are a link", folder_of(link("checkpoints", "/")), "no weights"),
    Attack(
        "checkpoints that lead to themselves",
        folder_of(link("checkpoints", "checkpoints")),
        "no weights",
    ),
    Attack("an inner folder that is a link", folder_of(link("pytorch_model", "..")), "no weights"),
    Attack(
        "a subfolder that is a link",
        folder_of(link("ip_adapter", ".."), lambda f: whole(f.parent / "a.safetensors")),
        "no weights",
    ),
    Attack("625 folders in folders", folder_of(nested), ""),
    Attack("300 broken checkpoints", folder_of(steps(300, broken)), ""),
    Attack(
        "a checkpoint with a number of 12 digits",
        folder_of(lambda f: (f / "step-999999999999").mkdir()),
        "no weights",
    ),
    Attack(
        "a checkpoint with 200 digits",
        folder_of(lambda f: (f / ("step-" + "9" * 200)).mkdir()),
        "no weights",
    ),
    Attack(
        "3000 files",
        folder_of(lambda f: [(f / f"{i}.bin").touch() for i in range(3000)]),
        "3000 weight files",
    ),
    *(
        Attack(f"weights that lead out, as {name}", folder_of(outside(name)), "leads out")
        for name in (
            "adapter.safetensors",
            "model.safetensors",
            "pytorch_model.bin",
            "diffusion_pytorch_model.safetensors",
            "mp_rank_00_model_states.pt",
            "mine.safetensors",
            "ip_adapter/mine.bin",
            "step-7/adapter.safetensors",
            "pytorch_model/mp_rank_00_model_states.pt",
            "checkpoints/step-7/adapter.safetensors",
        )
    ),
    *(
        Attack(
            f"an index that leads out, as {name}",
            folder_of(outside(name, "private.json")),
            "leads out",
        )
        for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    ),
    *(
        Attack(
            f"a pipe as {name}",
            folder_of(lambda f, name=name: ((f / name).parent.mkdir(exist_ok=True), fifo(name)(f))),
            says,
        )
        for name, says in [
            ("adapter.safetensors", "pipe or device"),
            ("pytorch_model.bin", "pipe or device"),
            ("mine.safetensors", "no weights"),
            ("model.safetensors.index.json", "pipe or device"),
            ("mp_rank_00_model_states.pt", "pipe or device"),
            ("step-1/adapter.safetensors", "pipe or device"),
            ("checkpoints", "no weights"),
            ("step-1", "no weights"),
        ]
    ),
    Attack(
        "adapter.safetensors is a folder",
        folder_of(lambda f: (f / "adapter.safetensors").mkdir()),
        "a folder",
    ),
    Attack(
        "adapter.safetensors is a device",
        folder_of(link("adapter.safetensors", "/dev/zero")),
        "leads out",
    ),
    Attack(
        "adapter.safetensors leads to itself",
        folder_of(link("adapter.safetensors", "adapter.safetensors")),
        "no weights",
    ),
    *(
        Attack(
            f"`latest` says {name[:20]!r}",
            folder_of(text("latest", name), lambda f: whole(f.parent / "adapter.safetensors")),
            "no weights",
        )
        for name in (
            "..",
            ".",
            "../..",
            "/",
            "a\0b",
            "",
            "x" * 300,
            "../named",
            "step\n-1",
            "\x1b[2J",
        )
    ),
    Attack(
        "`latest` names a link",
        folder_of(
            text("latest", "l"), link("l", ".."), lambda f: whole(f.parent / "adapter.safetensors")
        ),
        "no weights",
    ),
    Attack(
        "`latest` leads out",
        folder_of(lambda f: text("latest", "step1")(f.parent), link("latest", "../latest")),
        "no weights",
    ),
    Attack(
        "`latest` names a chain of 30",
        folder_of(lambda f: [text("/".join(["in"] * i + ["latest"]), "in")(f) for i in range(30)]),
        "no weights",
    ),
    *(
        Attack(f"{name} is {what}", folder_of(SOUND, make(name)), says, outcome)
        for name in ("model_index.json", "adapter_config.json")
        for what, make, says, outcome in [
            ("a pipe", fifo, "", "read"),
            (
                "a gigabyte",
                lambda name: hole(name, 1 << 30, b'{"_class_name":"X","peft_type":"X"'),
                "",
                "read",
            ),
            ("deep", lambda name: text(name, "[" * 100_000), "", "read"),
            ("a list", lambda name: text(name, "[1]"), "", "read"),
            ("a folder", lambda name: lambda f: (f / name).mkdir(), "", "read"),
            ("a device", lambda name: link(name, "/dev/zero"), "", "read"),
            (
                "of 5000 digits",
                lambda name: text(name, '{"peft_type":' + "9" * 5000 + "}"),
                "",
                "read",
            ),
            (
                "of a table",
                lambda name: text(name, '{"_class_name":{},"peft_type":[[]]}'),
                "",
                "read",
            ),
            (
                "of an escape",
                lambda name: text(name, '{"_class_name":"\\u001b[2J","peft_type":"\\u001b[2J"}'),
                "x1b",
                "refused",
            ),
            (
                "of 900 kB",
                lambda name: text(
                    name, '{"_class_name":"' + "X" * 900_000 + '","peft_type":"' + "X" * 900 + '"}'
                ),
                "XXX",
                "refused",
            ),
        ]
    ),
    Attack("a name that steers the terminal", folder_of(text("a\x1b[2J.txt", "")), "x1b"),
    Attack(
        "two weights whose names steer the terminal",
        folder_of(text("a\x1b[2J.bin", ""), text("b\u202e.bin", "")),
        "x1b",
    ),
    Attack(
        "weights beside, called by escapes",
        folder_of(SOUND, text("a\x1b[2J.bin", "")),
        "x1b",
        "read",
    ),
    Attack(
        "a checkpoint with an adapter inside the folder, by a link",
        folder_of(
            lambda f: (
                whole(f / "shared.safetensors"),
                (f / "step-1").mkdir(),
                (f / "step-1" / "adapter.safetensors").symlink_to("../shared.safetensors"),
            )
        ),
        "",
        "read",
    ),
    Attack(
        "an adapter that is itself a link",
        lambda folder: (
            whole(folder / "a"),
            link("named.safetensors", "a")(folder),
            folder / "named.safetensors",
        )[2],
        "",
        "read",
    ),
    Attack(
        "a folder that is itself a link",
        lambda folder: (folder_of(SOUND)(folder), link("mine", "named")(folder), folder / "mine")[
            2
        ],
        "",
        "read",
    ),
]

NAMED: list[Attack] = [
    Attack(
        "a file called by a command",
        lambda folder: whole(folder / "$(touch canary); 'a'.safetensors"),
        "--adapter '/",
        "read",
    ),
    Attack(
        "a file called by a line of Python",
        lambda folder: whole(folder / 'a"); x=("b.safetensors'),
        '\\"); x=',
        "read",
    ),
    Attack(
        "a file called by an escape",
        lambda folder: whole(folder / "a\x1b[2J\u202e.safetensors"),
        "x1b",
        "read",
    ),
    Attack(
        "a file called by an option",
        lambda folder: whole(folder / "--help.safetensors"),
        "--help",
        "read",
    ),
]

CONVERSIONS: list[Attack] = [
    *(
        replace(one, says="" if one.outcome == "read" else one.says)
        for one in SAFETENSORS
        if one.name.startswith("metadata")
    ),
    *(one for one in BOMBS if "stream" in one.name),
    *(one for one in SHARDS if "leads out" in one.says),
    *(one for one in FOLDERS if "leads out" in one.says),
]

# ── bases and encoders ──────────────────────────────────────────────────────────────────────────

UNET = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}


def config(value: Any) -> Make:
    """A folder with a config.json: a text as it is, anything else as JSON."""
    data = value if isinstance(value, str) else lambda: json.dumps(now(value))
    return folder_of(text("config.json", data))


CONFIGS: list[tuple[str, Any, str]] = [
    ("deep", "[" * 100_000, "deep"),
    ("100 tables deep", '{"a":' * 100 + "1" + "}" * 100, "deep"),
    ("a list", "[]", "not a JSON object"),
    ("of 5000 digits", '{"a":' + "9" * 5000 + "}", "digits"),
    ("of NaN", '{"a":NaN}', "not a number"),
    ("of 1e400", '{"a":1e400}', "too large"),
    ("not UTF-8", '{"a":"\udcff"}', ""),
    ("2 MB", lambda: '{"a":"' + "x" * (2 * MIB) + '"}', "the limit is"),
    ("300,000 tables", lambda: '{"a":[' + "{}," * 300_000 + "1]}", ""),
    ("an empty text", "", ""),
    ("cut off", '{"a":"', ""),
]

BASES: list[Attack] = [
    *(
        Attack(f"a config that is {what}", folder_of(text("config.json", value)), says)
        for what, value, says in CONFIGS
    ),
    Attack("a config that is a pipe", folder_of(fifo("config.json")), "pipe or device"),
    Attack(
        "a config that leads out",
        folder_of(lambda f: text("c", json.dumps(UNET))(f.parent), link("config.json", "../c")),
        "leads out",
    ),
    Attack(
        "a config that is a folder", folder_of(lambda f: (f / "config.json").mkdir()), "a folder"
    ),
    Attack("a config that is a device", folder_of(link("config.json", "/dev/zero")), "leads out"),
    Attack("a config of a gigabyte", folder_of(hole("config.json", 1 << 30)), "the limit is"),
    *(
        Attack(f"a class called {str(name)[:20]}", config({"_class_name": name}), "")
        for name in ([], {}, 7, None, "\x1b[2J", "X" * 900_000, [["a"] * 100])
    ),
    *(
        Attack(
            f"a UNet with {key} {str(now(value))[:20]}",
            config(lambda key=key, value=value: UNET | {key: now(value)}),
            says,
        )
        for key, value, says in [
            ("layers_per_block", 10**9, "layers"),
            ("layers_per_block", [10**9] * 4, "layers"),
            ("layers_per_block", -5, ""),
            ("layers_per_block", 10**30, "layers"),
            ("layers_per_block", "2", ""),
            ("layers_per_block", [1, 2], ""),
            ("layers_per_block", [[1]], ""),
            ("transformer_layers_per_block", 10**9, "layers"),
            ("transformer_layers_per_block", [[10**9]] * 4, "layers"),
            ("transformer_layers_per_block", "x", ""),
            ("reverse_transformer_layers_per_block", [10**9] * 4, "layers"),
            ("block_out_channels", lambda: [320] * 100_000, "values"),
            ("block_out_channels", "3204", ""),
            ("block_out_channels", None, ""),
            ("down_block_types", lambda: ["CrossAttnDownBlock2D"] * 20_000, "values"),
            ("down_block_types", [[]] * 4, ""),
            ("down_block_types", [{}] * 4, ""),
            ("down_block_types", 7, ""),
            ("attention_head_dim", 0, ""),
            ("attention_head_dim", [], ""),
        ]
    ),
    *(
        Attack(
            f"a FLUX with {key} {str(value)[:20]}",
            config({"_class_name": "FluxTransformer2DModel", key: value}),
            says,
        )
        for key, value, says in [
            ("num_layers", 10**12, "layers"),
            ("num_single_layers", 10**12, "layers"),
            ("num_layers", "19", ""),
            ("num_layers", None, ""),
            ("num_layers", [19], ""),
            ("num_layers", 1.5, ""),
            ("num_attention_heads", "x" * 1000, "no whole number"),
            ("num_attention_heads", [1] * 1000, "no whole number"),
            ("attention_head_dim", None, ""),
        ]
    ),
    Attack(
        "a FLUX whose heads are a text, a billion wide",
        config(
            {
                "_class_name": "FluxTransformer2DModel",
                "num_attention_heads": "x",
                "attention_head_dim": 10**9,
            }
        ),
        "no whole number",
    ),
    *(
        Attack(
            f"an SD3 with {key} {str(value)[:20]}",
            config({"_class_name": "SD3Transformer2DModel", key: value}),
            says,
        )
        for key, value, says in [
            ("num_layers", 10**12, "layers"),
            ("num_layers", {}, ""),
            ("num_attention_heads", None, ""),
            ("dual_attention_layers", 7, ""),
            ("caption_projection_dim", [], ""),
        ]
    ),
    Attack(
        "weights that lead out",
        folder_of(
            text("config.json", json.dumps(UNET | {"layers_per_block": 2})),
            outside("diffusion_pytorch_model.safetensors"),
        ),
        "leads out",
        "read",
    ),
    Attack(
        "weights that are a pipe",
        folder_of(
            text("config.json", json.dumps(UNET)), fifo("diffusion_pytorch_model.safetensors")
        ),
        "",
        "read",
    ),
    Attack(
        "weights that are broken",
        folder_of(
            text("config.json", json.dumps(UNET)),
            text("diffusion_pytorch_model.safetensors", b"PK" * 8),
        ),
        "cut off",
        "read",
    ),
]

VISION = {"hidden_size": 1280, "patch_size": 14, "projection_dim": 1024}
ENCODERS: list[Attack] = [
    *(
        Attack(f"a config that is {what}", folder_of(text("config.json", value)), says)
        for what, value, says in CONFIGS
    ),
    Attack("a config that is a pipe", folder_of(fifo("config.json")), "pipe or device"),
    Attack(
        "a config that leads out",
        folder_of(lambda f: text("c", json.dumps(VISION))(f.parent), link("config.json", "../c")),
        "leads out",
    ),
    *(
        Attack(f"{key} of {str(value)[:20]}", config(VISION | {key: value}), "", outcome)
        for key, value, outcome in [
            ("vision_config", [1], "refused"),
            ("vision_config", "hidden_size", "refused"),
            ("vision_config", 7, "refused"),
            ("hidden_size", "1280", "refused"),
            ("hidden_size", [1280], "refused"),
            ("hidden_size", 10**30, "refused"),
            ("hidden_size", True, "refused"),
            ("hidden_size", -1, "refused"),
            ("projection_dim", "1024", "read"),
            ("projection_dim", {}, "read"),
        ]
    ),
]

# ── prompts ─────────────────────────────────────────────────────────────────────────────────────

PROMPTS: list[Attack] = [
    Attack(
        "a torch zip of tokens",
        torch_zip({"tokens": vector(4)}, {"0": bytes(16)}),
        "not a safetensors file",
    ),
    Attack(
        "61 names on one deflated storage",
        torch_zip(many(61, lambda i: vector(26 * MIB // 4)), {"0": lambda: bomb(26)}),
        "not a safetensors file",
    ),
    Attack(
        "a pickle that runs code",
        lazily(lambda: pickled(call("os", "system", "touch canary"))),
        "not a safetensors file",
    ),
    Attack(
        "a legacy torch file",
        lazily(lambda: legacy({"tokens": vector(4)}, ["0"], (4, bytes(16)))),
        "not a safetensors file",
    ),
    Attack("a DCP folder", distributed((8,), *TWO), "a folder"),
    Attack("a folder", folder_of(SOUND), "a folder"),
    Attack("an index of shards", indexed({"a": "s"}, shard("s")), "not a safetensors file"),
    Attack("a pipe", lambda folder: os.mkfifo(folder / "x") or folder / "x", "pipe or device"),
    Attack("a device", lambda folder: Path("/dev/zero"), "pipe or device"),
    Attack("an empty file", content(b""), "not a safetensors file"),
    Attack("a picture", content(b"\x89PNG\r\n\x1a\n" + bytes(600)), "not a safetensors file"),
    Attack(
        "a torch file called .safetensors",
        lazily(lambda: torch_file({"tokens": vector(4)}, {"0": bytes(16)}), "a.safetensors"),
        "not a safetensors file",
    ),
    Attack("a header of a gigabyte", content((1 << 30).to_bytes(8, "little") + b"{"), "limit"),
    Attack(
        "a sound file",
        content(
            b"\x40\0\0\0\0\0\0\0"
            + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(64)
            + b"\0"
        ),
        "1 tensors",
        "read",
    ),
]


# ── what the suite of the readers has already, by other doors ───────────────────────────────────


def known(without: tuple[str, ...] = ()) -> list[Attack]:
    """The files of tests/support/hostile.py that cannot be opened."""
    skipped = ("unreadable", "dangling link", *without)
    kinds = {n: k for n, k in HOSTILE.items() if not k.opens and n not in skipped}
    return [Attack(name, kind.make, kind.says) for name, kind in kinds.items()]


def reported(attacks: list[Attack]) -> list[Attack]:
    """The same for `validate`, which reports what is no adapter instead of raising."""
    return [Attack(one.name, one.make, one.says, "read") for one in attacks]


TORCH = ("torch", "imageprompt.checkpoint.torch_io", "imageprompt.checkpoint.identify.identify")
CONVERTS = ("imageprompt.checkpoint.convert", "imageprompt.checkpoint.read.folders")
REPORTS = ("imageprompt.checkpoint.inspect", "imageprompt.checkpoint.read.folders", "numpy")
DOORS: tuple[Door, ...] = (
    Door("read_file: torch files", reads, BOMBS, TORCH),
    Door("inspect --deep: torch files", inspects, PICKLES, REPORTS),
    Door("inspect --deep: safetensors", inspects, SAFETENSORS, REPORTS),
    Door("inspect --deep: shards", inspects, SHARDS, REPORTS),
    Door("inspect --deep: DCP folders", inspects, DCP, REPORTS),
    Door("inspect --deep: folders", inspects, FOLDERS, REPORTS),
    Door("inspect: lines to copy", advises, NAMED, REPORTS),
    Door("convert", converts, CONVERSIONS, CONVERTS),
    Door(
        "validate --base", on_base, BASES, ("imageprompt.checkpoint.validate", "torch", "diffusers")
    ),
    Door("validate --encoder", on_encoder, ENCODERS, ("imageprompt.checkpoint.validate",)),
    Door("validate", validates, reported(known(("pipe",))), ("imageprompt.checkpoint.validate",)),
    Door("diff", differs, known(), ("imageprompt.checkpoint.diff", "numpy")),
    Door("Adapter.load", loads, known(), TORCH),
    Door("prompt files", reads_prompt, PROMPTS, TORCH),
)
