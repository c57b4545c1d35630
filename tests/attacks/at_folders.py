"""Shards, DCP folders and checkpoint folders: what they list, and where their links lead."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from forge import header, whole, write

from .adapter_doors import (
    MIB,
    REPORTS,
    Make,
    advises,
    inspects,
)
from .attack import Attack, Door, content
from .forged import (
    DEFLATED,
    Code,
    Piece,
    Record,
    bomb,
    call,
    dcp,
    deep,
    laughs,
    now,
    pickled,
    torch_file,
    vector,
    zipped,
)

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


@cache
def long_pickle() -> bytes:
    """A torch file of one value, whose pickle takes 28 MB unpacked."""
    unused = b"B" + struct.pack("<I", 28 * MIB) + bytes(28 * MIB) + b"0"
    data = b"\x80\x02" + unused + vector(1).code + b"."
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    pickle = Record(packer.compress(data) + packer.flush(), DEFLATED, len(data))
    return zipped({"archive/data.pkl": pickle, "archive/data/0": Record(bytes(4))})


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
        "20 pieces with pickles of 28 MB",
        lambda folder: dcp(
            folder, (20,), [Piece((i,), (1,), content=long_pickle()) for i in range(20)]
        ),
        "bytes",
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


def nested(folder: Path, levels: int = 2, each: int = 40) -> None:
    """Checkpoints of checkpoints: 1640 folders, none of which holds anything."""
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
    Attack("1640 folders in folders", folder_of(nested), "too large to be searched"),
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


DOORS: tuple[Door, ...] = (
    Door("inspect --deep: shards", inspects, SHARDS, REPORTS),
    Door("inspect --deep: DCP folders", inspects, DCP, REPORTS),
    Door("inspect --deep: folders", inspects, FOLDERS, REPORTS),
    Door("inspect: lines to copy", advises, NAMED, REPORTS),
)
