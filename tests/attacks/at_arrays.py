"""Files of face embeddings: .npy, JSON, torch and safetensors, as strangers could make them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forge import header, write

from .attack import Attack, Door, content
from .forged import (
    DEFLATED,
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
    tensor,
    thing,
    torch_file,
    vector,
    zeros,
)

Make = Callable[[Path], Any]
WIDTH = 512
MIB = 1 << 20


def reads(made: Path, out: Path) -> object:
    from imageprompt.encoding.face_embeddings import read_embeddings

    faces = read_embeddings(made)
    assert faces.shape[1] == WIDTH
    return f"{len(faces)} faces"


# ── .npy ────────────────────────────────────────────────────────────────────────────────────────


def npy(text: str | bytes, numbers: int = 0, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with this header, and that many bytes of numbers (ones in float32)."""
    head = text.encode() if isinstance(text, str) else text
    length = struct.pack("<H" if version[0] == 1 else "<I", len(head))
    data = (struct.pack("<f", 1.0) * (numbers // 4 + 1))[:numbers]
    return b"\x93NUMPY" + bytes(version) + length + head + data


def described(
    kind: str = "'<f4'", order: str = "False", shape: str = "(512,)", numbers: int = 2048
) -> Make:
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return content(npy(text, numbers), "a.npy")


def holed(size: int, start: bytes) -> Make:
    """A sparse file."""

    def make(folder: Path) -> Path:
        path = content(start, "a.npy")(folder)
        os.truncate(path, size)
        return path

    return make


HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': (512,), }"
NPY: list[Attack] = [
    *(
        Attack(f"numpy of kind {kind[:30]}", described(kind), says)
        for kind, says in [
            ("'|O'", "not floating-point"),
            ("'<U16'", "not floating-point"),
            ("'|S4'", "not floating-point"),
            ("'|V4'", "not floating-point"),
            ("'<i4'", "not floating-point"),
            ("'<c8'", "not floating-point"),
            ("'<f16'", "not floating-point"),
            ("'<f1'", "not floating-point"),
            ("'<M8[ns]'", "header is damaged"),
            ("[('a', '<f4')]", "header is damaged"),
            ("[('a', '|O'), ('b', [('c', '|O')])]", "header is damaged"),
            ("'<f4' * 10**9", "header is damaged"),
            ("__import__('os').system('touch canary')", "header is damaged"),
            ("{}", "header is damaged"),
            ("'\x1b[2J'", "header is damaged"),
            ("'<f4\\x00'", "header is damaged"),
        ]
    ),
    *(
        Attack(f"numpy of shape {shape[:45]}", described(shape=shape), says)
        for shape, says in [
            ("(10**18,)", "header is damaged"),
            ("(999999999999999999,)", "the limit is"),
            ("(999999999999999999, 999999999999999999)", "beyond any limit"),
            ("(999999999999999999, 999999999999999999, 0)", "beyond any limit"),
            ("(9999999999999999999,)", "beyond any limit"),
            (f"({'9' * 900},)", "beyond any limit"),
            ("(-1,)", "header is damaged"),
            ("(512.0,)", "header is damaged"),
            ("(True,)", "header is damaged"),
            ("()", "cut off, or something follows"),
            ("(,)", "beyond any limit"),
            ("(1,,512)", "beyond any limit"),
            ("(5 12,)", "beyond any limit"),
            ("(0, 512)", "cut off, or something follows"),
            ("(513,)", "cut off, or something follows"),
            ("(511,)", "cut off, or something follows"),
            (f"({'1,' * 33})", "beyond any limit"),
            (f"(512, {'1, ' * 31})", "the shape is"),
            ("(2, 256)", "the shape is"),
        ]
    ),
    *(
        Attack(f"a header of {what}", content(npy(text, 2048, version), "a.npy"), says)
        for what, text, version, says in [
            ("200 kB", HEAD + " " * 200_001, (2, 0), "too long"),
            ("65,535 bytes", HEAD.ljust(65_535), (1, 0), "too long"),
            ("9000 parentheses", "(" * 4000, (1, 0), "damaged"),
            ("4000 signs", "-" * 4000 + "1", (1, 0), "damaged"),
            ("4000 brackets", "[" * 2000 + "]" * 2000, (1, 0), "damaged"),
            ("nothing", "", (1, 0), "too long"),
            ("version 0", HEAD, (0, 0), "damaged"),
            ("version 255", HEAD, (255, 255), "damaged"),
            ("a name too many", HEAD[:-1] + "'x': 1}", (1, 0), "damaged"),
            (
                "another order of names",
                "{'shape': (512,), 'descr': '<f4', 'fortran_order': False}",
                (1, 0),
                "damaged",
            ),
            ("noise", bytes(range(256)) * 4, (1, 0), "damaged"),
            ("half a character", b"{'descr': '\xff'}", (1, 0), "damaged"),
            ("one name twice", HEAD[:-1] + "'shape': (1,)}", (1, 0), "damaged"),
        ]
    ),
    Attack(
        "a header of 2^32 bytes",
        content(b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(600), "a.npy"),
        "too long",
    ),
    Attack("a header that is cut off", content(npy(HEAD)[:30], "a.npy"), "damaged"),
    Attack("the magic number alone", content(b"\x93NUMPY", "a.npy"), "damaged"),
    Attack("the magic number and a version", content(b"\x93NUMPY\1\0", "a.npy"), "damaged"),
    Attack("a gigabyte of zeros after the numbers", holed(1 << 30, npy(HEAD)), "something follows"),
    Attack(
        "ten gigabytes of numbers",
        holed(10 << 30, npy(HEAD.replace("512", "2684354560"))),
        "the limit is",
    ),
    Attack(
        "numbers that are not finite",
        content(npy(HEAD, 0) + struct.pack("<512f", *[float("nan")] * 512), "a.npy"),
        "not finite",
    ),
    Attack("257 faces", described(shape="(257, 512)", numbers=257 * 2048), "the limit is"),
    Attack("an archive of arrays", lambda folder: npz(folder), "numpy .npz archive"),
    Attack(
        "sound, in columns",
        described(order="True", shape="(2, 512)", numbers=4096),
        "2 faces",
        "read",
    ),
    Attack("sound, as Python 2 wrote it", described(shape="(512L,)"), "1 faces", "read"),
    Attack(
        "sound, big end first",
        content(npy(HEAD.replace("<", ">")) + struct.pack(">512f", *[1.0] * 512), "a.npy"),
        "1 faces",
        "read",
    ),
]


def npz(folder: Path) -> Path:
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", npy(HEAD, 2048))
    return content(stream.getvalue(), "a.npz")(folder)


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────

FACE = json.dumps([1.0] * WIDTH)


def text(value: Any) -> Make:
    return lambda folder: content(now(value), "a.json")(folder)


JSON: list[Attack] = [
    Attack("lists 100,000 deep", text(lambda: "[" * 100_000), "deep"),
    Attack("lists 6 deep", text("[" * 6 + "1" + "]" * 6), "deep"),
    Attack("a million empty lists", text(lambda: "[" + "[]," * 600_000 + "[]]"), "too large"),
    Attack("a million empty tables", text(lambda: "[" + "{}," * 600_000 + "{}]"), "too large"),
    Attack("a million numbers", text(lambda: "[" + "1," * 1_000_000 + "1]"), "too large"),
    Attack(
        "more bytes than any face needs", text(lambda: "[" + " " * (5 * MIB) + "]"), "the limit is"
    ),
    Attack("a text that does not end", text(lambda: '["' + "a" * 4_000_000), "not a JSON list"),
    Attack("a text of 4 MB", text(lambda: '["' + "a" * 4_000_000 + '"]'), "not a JSON list"),
    Attack("a number of 400 digits", text("[" + "9" * 400 + "]"), "400 digits"),
    Attack("a number of a million digits", text(lambda: "[" + "9" * 1_000_000 + "]"), "digits"),
    Attack("a number of a million decimals", text(lambda: "[0." + "9" * 1_000_000 + "]"), "digits"),
    Attack("a number of 1e400", text("[1e400]"), "too large"),
    Attack("a number beyond float32", text(FACE.replace("1.0", "1e300", 1)), "not finite"),
    Attack("NaN", text(FACE.replace("1.0", "NaN", 1)), ""),
    Attack("Infinity", text(FACE.replace("1.0", "Infinity", 1)), ""),
    Attack("null", text(FACE.replace("1.0", "null", 1)), "not finite"),
    Attack("a table", text(FACE.replace("1.0", '{"a":1}', 1)), "not a JSON list"),
    Attack("rows of unequal length", text(f"[{FACE},[1]]"), "not a JSON list"),
    Attack("a row beside a number", text(f"[{FACE},1]"), "not a JSON list"),
    Attack("rows three deep", text(f"[[{FACE}]]"), "the shape is"),
    Attack("257 faces", text(lambda: f"[{','.join([FACE] * 257)}]"), ""),
    Attack("an empty list", text("[" + " " * 600 + "]"), "the shape is"),
    Attack("UTF-16", text(FACE.encode("utf-16-le")), "1 faces", "read"),
    Attack("no UTF-8", text(b'["\xff"]'), "not a JSON list"),
    Attack("cut off", text(FACE[:-1]), "not a JSON list"),
    Attack("zeros", text(json.dumps([0.0] * WIDTH)), "zero"),
    Attack("sound", text(FACE), "1 faces", "read"),
]

# ── torch and safetensors ───────────────────────────────────────────────────────────────────────


def torch_zip(value: Any, storages: dict[str, Any] | None = None) -> Make:
    def make(folder: Path) -> Path:
        records = {key: now(one) for key, one in (storages or {}).items()}
        return content(torch_file(now(value), records), "a.pt")(folder)

    return make


def lists(depth: int, each: int = 1000) -> Code:
    """Lists of a thousand times the list before."""
    return Code(vector(4).code + b"q\0" + (b"0](" + b"h\0" * each + b"eq\0") * depth)


def array(
    shape: Any = (WIDTH,),
    kind: Any = "f4",
    data: Any = bytes(4 * WIDTH),
    order: Any = "<",
    **how: Any,
) -> Code:
    """A numpy array as torch.save pickles it."""
    dtype = Code(
        named("numpy", "dtype").code
        + code((kind, False, True))
        + b"R"
        + code((3, order, None, None, None, -1, -1, 0))
        + b"b"
    )
    made = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), b"b")
    state = how.get("state", (1, shape, dtype, how.get("columns", False), data))
    return Code(made.code + code(state) + b"b")


TORCH: list[Attack] = [
    Attack(
        "lists of 1000 lists of 1000 lists ...", torch_zip(lists(4), {"0": bytes(16)}), "too large"
    ),
    Attack("lists of 1000 lists", torch_zip(lists(2), {"0": bytes(16)}), "too large"),
    Attack(
        "tables that hold the next one twice",
        torch_zip(laughs(vector(4), b"}(X\1\0\0\0a", b"X\1\0\0\0bh\0u"), {"0": bytes(16)}),
        "",
    ),
    Attack(
        "tuples that hold the next one twice",
        torch_zip(laughs(vector(4)), {"0": bytes(16)}),
        "something other",
    ),
    Attack("tuples in tuples", torch_zip(deep()), "something other"),
    Attack("a list that contains itself", torch_zip(Code(b"]q\0h\0a")), "something other"),
    Attack(
        "an array of 100,000 huge dimensions",
        torch_zip(lambda: array((2**62,) * 100_000)),
        "something other",
    ),
    Attack("an array of 33 dimensions", torch_zip(array((1,) * 32 + (WIDTH,))), "something other"),
    Attack("an array of a size of 400 digits", torch_zip(array((10**400,))), "something other"),
    Attack("an array of 2^59 numbers", torch_zip(array((2**59,))), "the limit is"),
    Attack("an array of -1 numbers", torch_zip(array((-1,))), "something other"),
    Attack("an array of True numbers", torch_zip(array((True,))), "something other"),
    Attack("an array of an endless shape", torch_zip(array(laughs(1))), "something other"),
    Attack("an array of an endless kind", torch_zip(array(kind=laughs(()))), "damaged"),
    Attack("an array of a deep kind", torch_zip(array(kind=deep())), "damaged"),
    Attack("an array of objects", torch_zip(array(kind="O8")), "damaged"),
    Attack("an array of an endless byte order", torch_zip(array(order=laughs(()))), "damaged"),
    Attack("an array of too few bytes", torch_zip(array(data=bytes(4))), "damaged"),
    Attack("an array of too many bytes", torch_zip(array(data=bytes(4 * WIDTH + 4))), "damaged"),
    Attack("an array of text", torch_zip(array(data="\u0100" * 4 * WIDTH)), "1 faces", "read"),
    Attack("an array of endless bytes", torch_zip(array(data=laughs(()))), "damaged"),
    Attack(
        "an array of bytes by another function",
        torch_zip(array(data=call("builtins", "bytearray", b"x"))),
        "damaged",
    ),
    Attack("an array with an endless state", torch_zip(array(state=laughs(()))), "something other"),
    Attack(
        "an array in columns, by an endless value",
        torch_zip(array(data=b"\0\0\x80\x3f" * WIDTH, columns=laughs(()))),
        "1 faces",
        "read",
    ),
    Attack(
        "an object that looks like an array",
        torch_zip(thing("argparse", "Namespace", (1, (WIDTH,), 2, False, b""))),
        "something other",
    ),
    Attack(
        "61 tensors of one deflated storage",
        torch_zip([vector(26 * MIB // 4)] * 61, {"0": lambda: bomb(26)}),
        "",
    ),
    Attack(
        "256 faces at the end of 60 deflated megabytes",
        torch_zip([vector(WIDTH, 15 * MIB - WIDTH, numel=15 * MIB)] * 256, {"0": lambda: bomb(60)}),
        "unpack",
    ),
    Attack(
        "a face spread over 60 deflated megabytes",
        torch_zip(tensor((WIDTH,), (30_000,), 15 * MIB), {"0": lambda: bomb(60)}),
        "zero",
    ),
    Attack(
        "a face at a negative stride",
        torch_zip(tensor((WIDTH,), (-1,), WIDTH), {"0": bytes(2048)}),
        "malformed",
    ),
    Attack(
        "a face of one repeated value",
        torch_zip(tensor((WIDTH,), (0,), 1), {"0": bytes(4)}),
        "claims more",
    ),
    Attack(
        "a face in whole numbers",
        torch_zip(tensor((WIDTH,), (1,), WIDTH, kind="LongStorage"), {"0": bytes(4096)}),
        "not floating-point",
    ),
    Attack(
        "a face in complex numbers",
        torch_zip(tensor((WIDTH,), (1,), WIDTH, kind="ComplexFloatStorage"), {"0": bytes(4096)}),
        "not floating-point",
    ),
    Attack("300 faces", torch_zip([vector(WIDTH)] * 300, {"0": bytes(2048)}), "the limit is"),
    Attack("a number", torch_zip(1.0), "something other"),
    Attack("an empty list", torch_zip([]), "0 faces"),
    Attack("code", torch_zip(call("os", "system", "touch canary")), "no weights need"),
    Attack(
        "code in an array", torch_zip(array(data=call("builtins", "eval", "1"))), "no weights need"
    ),
    Attack(
        "code in a legacy file",
        content(legacy(call("os", "system", "touch canary"), []), "a.pt"),
        "no weights need",
    ),
    Attack(
        "a legacy file without its storage", content(legacy([vector(WIDTH)], []), "a.pt"), "missing"
    ),
    Attack(
        "a legacy storage of -1 values",
        content(legacy([vector(WIDTH)], ["0"], (-1, bytes(2048))), "a.pt"),
        "cut off",
    ),
    Attack(
        "legacy storages by one key",
        content(legacy([vector(WIDTH)], ["0", "0"], (WIDTH, bytes(2048))), "a.pt"),
        "damaged",
    ),
    Attack(
        "legacy keys that are endless",
        content(legacy([vector(WIDTH)], laughs(())), "a.pt"),
        "damaged",
    ),
    Attack(
        "a stream of noise",
        torch_zip(vector(WIDTH), {"0": Record(b"\xff" * 99, DEFLATED, 2048)}),
        "damaged",
    ),
    Attack(
        "a stream that is cut off",
        torch_zip(vector(WIDTH), {"0": Record(zeros(1)[:3], DEFLATED, 2048)}),
        "cut off",
    ),
    Attack(
        "safetensors of 300 faces",
        lambda f: write(f / "a.safetensors", header({f"{i}": (WIDTH,) for i in range(300)})),
        "the limit is",
    ),
    Attack(
        "safetensors of 20,000 empty tensors",
        lambda f: write(f / "a.safetensors", header({f"{i}": (0,) for i in range(20_000)})),
        "the shape is",
    ),
    Attack(
        "safetensors of 2^59 x 2^59 x 0 numbers",
        lambda f: write(f / "a.safetensors", header({"a": (2**59, 2**59, 0)})),
        "does not say",
    ),
    Attack(
        "a tensor of 2^59 x 2^59 x 0 numbers",
        torch_zip(tensor((2**59, 2**59, 0), (1, 1, 1), 4), {"0": bytes(16)}),
        "malformed",
    ),
    Attack(
        "an array of 2^59 x 2^59 x 0 numbers",
        torch_zip(array((2**59, 2**59, 0), data=b"")),
        "something other",
    ),
    Attack(
        "safetensors of 2^62 x 0 numbers",
        lambda f: write(f / "a.safetensors", header({"a": (2**62, 0)})),
        "does not say",
    ),
    Attack(
        "safetensors of a sparse gigabyte",
        lambda f: write(f / "a.safetensors", header({"a": (512 * MIB,)})),
        "the limit is",
    ),
    Attack(
        "safetensors in a mantle of 32 dimensions",
        lambda f: write(f / "a.safetensors", header({"a": (1,) * 31 + (WIDTH,)})),
        "the shape is",
    ),
]

OTHERS: list[Attack] = [
    Attack(
        "a pipe", lambda folder: os.mkfifo(folder / "a.npy") or folder / "a.npy", "pipe or device"
    ),
    Attack("a device", lambda folder: Path("/dev/zero"), "pipe or device"),
    Attack("a folder", lambda folder: folder, "a folder"),
    Attack("a link to itself", lambda folder: loop(folder / "a.npy"), ""),
    Attack("a name with a NUL", lambda folder: folder / "a\0.npy", ""),
    Attack("a name of 300 characters", lambda folder: folder / ("a" * 300), ""),
    Attack("nothing", content(b"", "a.npy"), "empty"),
    Attack("one byte", content(b"\x93", "a.npy"), ""),
    Attack("a picture", content(b"\x89PNG\r\n\x1a\n" + bytes(600), "a.npy"), "picture"),
    Attack("a pickle of protocol 5", content(b"\x80\5\x95" + bytes(9) + b".", "a.pt"), ""),
    Attack(
        "a pickle that torch did not write",
        content(pickled([1.0] * WIDTH), "a.pt"),
        "torch did not write",
    ),
]


def loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


IMPORTS = ("torch", "imageprompt.encoding.face_embeddings")
DOORS: tuple[Door, ...] = (
    Door("face embeddings: numpy", reads, NPY, IMPORTS),
    Door("face embeddings: JSON", reads, JSON, IMPORTS),
    Door("face embeddings: torch and safetensors", reads, TORCH, IMPORTS),
    Door("face embeddings: other files", reads, OTHERS, IMPORTS),
)
