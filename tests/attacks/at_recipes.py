"""Recipes: pictures that strangers post, whose text chunks say how to make them again."""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import forged
from .attack import Attack, Door, content
from .picture_files import PNG_START, chunk, header, png

_KEY = b"imageprompt"
_FILE = {"name": "a.png", "hash": "0" * 64, "spec": {}}
_ADAPTER = {"name": "plus", "hash": "1" * 64, "spec": {"variant": "plus"}}
_ENTRY = {"adapter": _ADAPTER, "encoder": None, "pictures": [_FILE]}
_RECIPE = {
    "prompt": "a cat",
    "negative_prompt": "",
    "seed": 1,
    "index": 0,
    "num_images": 1,
    "batch_size": 4,
    "steps": 4,
    "guidance_scale": 5.0,
    "width": 64,
    "height": 64,
    "dtype": "float32",
    "device": "cpu",
    "scheduler": {"_class_name": "DDIMScheduler"},
    "base": {"name": "bundled", "hash": "0" * 16, "spec": {}},
    "references": [_ENTRY],
    "versions": {},
    "format": 3,
}
_OLDER = {
    2: {
        **{key: value for key, value in _RECIPE.items() if key != "references"},
        "format": 2,
        "shown": [{"adapter": _ADAPTER, "encoder": None, "references": [_FILE]}],
    },
    1: {
        **{key: value for key, value in _RECIPE.items() if key != "references"},
        "format": 1,
        "scale": 0.5,
        "adapter": _ADAPTER,
        "encoder": None,
        "references": [_FILE],
    },
}


def _use(path: Any, out: Path) -> object:
    """What a replay does before it loads a model."""
    from imageprompt.generation.replay import request_from_recipe
    from imageprompt.loading.recipe import library_versions, read_picture

    recipe, tokens = read_picture(path)
    assert library_versions()
    request = request_from_recipe(recipe, tokens, {})
    request.check()
    return list(request.indices), [len(batch) for batch in request.batches()]


def _read(path: Any, out: Path) -> object:
    from imageprompt.loading.recipe import read_picture

    recipe, tokens = read_picture(path)
    return recipe.prompt, recipe.index, [data and len(data) for data in tokens]


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────


def _itxt(text: str | bytes, key: bytes = _KEY, *, packed: bool = True) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    flag = b"\0\1\0\0\0" if packed else b"\0\0\0\0\0"
    return chunk(b"iTXt", key + flag + (zlib.compress(data, 9) if packed else data))


def _text(text: str | bytes) -> Callable[[Path], Path]:
    return content(png(_itxt(text)), "a.png")


def _recipe(**changes: Any) -> Callable[[Path], Path]:
    return _text(json.dumps({**_RECIPE, **changes}))


def _entry(**changes: Any) -> Callable[[Path], Path]:
    return _recipe(references=[{**_ENTRY, **changes}])


def _with(key: str, value: str, data: dict[str, Any] = _RECIPE) -> str:
    """JSON of a recipe, one value written by hand."""
    return json.dumps({**data, key: "@"}).replace('"@"', value)


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def _nested_objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


_JSON = [
    *(
        Attack(f"format {data['format']}: {name}", _text(_with(key, value, data)), says)
        for data in (_RECIPE, *_OLDER.values())
        for key, name, value, says in (
            ("base", "objects 20 deep", _nested_objects(20), "deep"),
            ("scheduler", "lists 30,000 deep", _nested(30_000), "deep"),
            ("seed", "a number of 400 digits", "9" * 400, "digits"),
            ("seed", "a number of 200,000 digits", "9" * 200_000, "digits"),
            ("guidance_scale", "NaN", "NaN", "NaN"),
            ("guidance_scale", "1e999", "1e999", "too large"),
            ("steps", "a whole number written 4.0", "4.0", "whole number"),
            ("prompt", "no text", "[]", "prompt"),
            ("dtype", "code for a name", "\"__import__('os')\"", "dtype"),
            ("device", "a device of 10^5 letters", f'"{"x" * 10**5}"', "device"),
            ("width", "a minus", "-64", "width"),
            ("extra", "an unknown key with escapes", '"\\u001b[2J"', "unknown key"),
        )
    ),
    Attack("format 3.5", _recipe(format=3.5), "format 3.5"),
    Attack("format true", _recipe(format=True), "format True"),
    Attack("format as a list", _recipe(format=[3]), "format"),
    Attack("the same key twice", _text(json.dumps(_RECIPE)[:-1] + ', "seed": 2}'), "twice"),
    Attack("no JSON", _text("seed: 1")),
    Attack("a list", _text("[1]"), "not a JSON object"),
    Attack("nothing", _text("")),
    Attack("an unclosed text of 200 kB", _text('{"prompt": "' + "a" * 200_000)),
    Attack("100,000 brackets", _text("[" * 100_000)),
    Attack("300 kB", _text(json.dumps({**_RECIPE, "prompt": "a" * 300_000})), "kB"),
    Attack("a prompt of 50,000 letters", _recipe(prompt="a" * 50_000), "longer"),
    Attack("half a pair in a text", _text(_with("prompt", '"\\ud800"')), "", "read"),
    Attack("500 references", _recipe(references=[_ENTRY] * 500), "references"),
    Attack("2000 pictures", _entry(pictures=[_FILE] * 2000), "1000"),
    Attack("100 versions", _recipe(versions={str(i): "1" for i in range(100)}), "versions"),
    Attack("a version of 10^5 letters", _recipe(versions={"torch": "1" * 10**5}), "versions"),
    Attack("a hash that is no hash", _entry(adapter={**_ADAPTER, "hash": "../../x"}), "hex"),
    Attack("a scheduler by module", _recipe(scheduler={"_class_name": "os.system"}), "scheduler"),
    Attack(
        "a scheduler with 20,000 betas",
        _recipe(scheduler={"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 20_000}),
        "10000",
    ),
    Attack(
        "a scheduler of 10^9 steps",
        _recipe(scheduler={"_class_name": "DDIMScheduler", "num_train_timesteps": 10**9}),
        "scheduler",
    ),
    *(
        Attack(f"controls: {name}", _entry(controls=controls), "controls")
        for name, controls in {
            "50,000 sites": {"scale": {f"s{i}": 1.0 for i in range(15_000)} | {"x": 99}},
            "a scale of 10^30": {"scale": 1e30},
            "a preset of code": {"preset": "__class__"},
            "a schedule of 20,000 parts": {"schedule": ",".join(["0-0.1"] * 20_000)},
            "a schedule backwards": {"schedule": "0.9-0.1"},
            "unknown": {"__init__": 1},
            "a list": [1],
            "a scale of lists": {"scale": [[1]]},
        }.items()
    ),
    *(
        Attack(f"options: {name}", _entry(encode_options=options), "encode_options")
        for name, options in {
            "20,000 weights": {"weights": [0.1] * 20_000},
            "a framing of 200 parts": {"framing": "crop" + "+sharpen:1" * 18 + "+x"},
            "detail 10^9": {"framing": f"crop+detail:{10**9}"},
            "a colour of code": {"framing": "pad:__import__"},
            "noise of 10^30": {"noise": 1e30},
            "a seed of 10^30": {"noise_seed": 10**30},
            "a face of 10^9": {"face": 10**9},
            "a path": {"embeddings": ["/etc/passwd"]},
            "texts of 10^5 letters": {"text": ["a" * 10**5]},
            "lists in lists": {"weights": [[[[[0.1]]]]]},
        }.items()
    ),
]


# ── sizes in sum ────────────────────────────────────────────────────────────────────────────────

_SIZES = [
    Attack(
        "64 pictures of 8192x1952",
        _recipe(batch_size=64, num_images=64, width=8192, height=1952),
        "million pixels at once",
    ),
    Attack(
        "10^6 pictures, batches of 64, 8192x1952",
        _recipe(batch_size=64, num_images=10**6, index=10**6 - 1, width=8192, height=1952),
        "million pixels at once",
    ),
    Attack("8192x8192", _recipe(width=8192, height=8192), "16 million pixels"),
    Attack(
        "16 pictures of 2560x2048",
        _recipe(batch_size=16, num_images=16, width=2560, height=2048),
        "million pixels at once",
    ),
    Attack("10^9 pictures", _recipe(num_images=10**9), "num_images"),
    Attack("the picture 5 of 4", _recipe(num_images=4, index=5), "only 4"),
    Attack("a batch of 65", _recipe(batch_size=65), "batch_size"),
    Attack("2000 steps", _recipe(steps=2000), "steps"),
]
_TOLD = [
    *(
        Attack(f"the version {version!r}", _recipe(versions={"torch": version}), "versions")
        for version in ("\x1b[2J", "2.10\n2.11", "2.10\u202e", "\x9b")
    ),
    Attack(
        "a batch of 64 for one picture of 8192x1952",
        _recipe(references=[], batch_size=64, width=8192, height=1952),
        "[1]",
        "read",
    ),
    Attack(
        "64 pictures of 1024x1024 for one",
        _recipe(references=[], batch_size=64, num_images=64, width=1024, height=1024),
        "batch of 64",
        "read",
    ),
    Attack(
        "4 pictures of 8192x1952 for one",
        _recipe(references=[], num_images=4, width=8192, height=1952),
        "batch of 4",
        "read",
    ),
]


# ── files that a recipe names ───────────────────────────────────────────────────────────────────


def _names(make: Callable[[Path], str], field: str = "pictures") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        record = {"name": make(folder), "hash": "0" * 64, "spec": {}}
        pictures = {"pictures": []} if field == "face_embeddings" else {}
        entry = _entry(**{**pictures, field: record if field == "mask" else [record]})
        starts = field in ("init_image", "control_image")
        return (_recipe(references=[], **{field: record}) if starts else entry)(folder)

    return write


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def _sparse(folder: Path) -> str:
    with (folder / "large").open("wb") as stream:
        stream.truncate(2**40)
    return str(folder / "large")


def _linked(target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "link").symlink_to(target)
        return str(folder / "link")

    return make


_NAMED: dict[str, tuple[Callable[[Path], str], str]] = {
    "a pipe": (_pipe, "pipe or device"),
    "a file of a terabyte": (_sparse, "MiB"),
    "/dev/zero": (lambda _: "/dev/zero", "pipe or device"),
    "a link to /dev/zero": (_linked("/dev/zero"), "pipe or device"),
    "a link to itself": (_linked("link"), "cannot be read"),
    "a folder": (str, "folder"),
    "a private file": (lambda _: "/etc/passwd", "has changed"),
    "a file above": (lambda _: "../../../../../../etc/passwd", "has changed"),
    "a NUL": (lambda _: "a\0b", "cannot be read"),
    "a name of 4000 letters": (lambda _: "a" * 4000, "cannot be read"),
    "escapes": (lambda _: "\x1b]52;c;x\x07\u202egnp.\n", "no such file"),
}
_MODELS = {
    "4000 letters": "a" * 4000,
    "a NUL": "a\0b",
    "a device": "/dev/zero",
    "nobody's home": "~nosuchuser/x",
    "a folder above": "../..",
}
_FILES = [
    *(
        Attack(
            f"{field}: {name}",
            _entry(pictures=[], **{field: {"name": path, "hash": "2" * 16, "spec": {}}}),
        )
        for field in ("encoder", "faces")
        for name, path in _MODELS.items()
    ),
    *(
        Attack(f"{field}: {name}", _names(make, field), says)
        for field in ("pictures", "mask", "init_image")
        for name, (make, says) in _NAMED.items()
    ),
    *(
        Attack(f"{field}: {name}", _names(make, field), says)
        for field in ("face_embeddings", "negative_reference", "reference_mask")
        for name, (make, says) in [*_NAMED.items()][:3]
    ),
    *(
        Attack(
            f"a name on another machine, {name!r}",
            _names(lambda _, name=name: name),
            "a name is a path",
        )  # type: ignore[misc]
        for name in ("http://x/a.png", "file:///etc/passwd", "//server/a.png", r"\\server\a.png")
    ),
]


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────

_TEXT = json.dumps(_RECIPE)


def _chunks(*extra: bytes, after: bytes = b"") -> Callable[[Path], Path]:
    return lambda folder: content(png(*extra, after=after), "a.png")(folder)


def _bomb(kind: bytes, size: int, key: bytes = _KEY) -> bytes:
    between = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    return chunk(kind, key + between + zlib.compress(bytes(size), 9))


def _many_bombs(folder: Path) -> Path:
    """Each as large as it may be."""
    tokens = [_bomb(b"zTXt", 10**6, b"imageprompt-tokens-%d" % i) for i in range(40)]
    return content(png(_itxt(_TEXT), *tokens), "a.png")(folder)


def _raw(*parts: bytes) -> Callable[[Path], Path]:
    return content(b"".join(parts), "a.png")


_PNG = [
    *(
        Attack(
            f"a bomb of {size >> 20} MB as {kind.decode()}",
            lambda folder, k=kind, s=size: _chunks(_bomb(k, s))(folder),
            "a text of more",
        )  # type: ignore[misc]
        for kind in (b"zTXt", b"iTXt")
        for size in (2**21, 2**26)
    ),
    Attack("40 bombs of 1 MB", _many_bombs, "unpacked bytes"),
    Attack("2000 chunks before it", _chunks(chunk(b"prVt") * 2000, _itxt(_TEXT)), "items"),
    Attack("100,000 texts with its key", _chunks(_itxt(b"{}") * 100_000), "two texts"),
    Attack("two recipes", _chunks(_itxt(_TEXT), _itxt(_TEXT)), "two texts"),
    Attack(
        "a wrong checksum",
        _raw(PNG_START, header(), chunk(b"iTXt", _KEY + b"\0\0\0\0\0" + _TEXT.encode(), crc=1)),
        "damaged",
    ),
    Attack(
        "a chunk that claims 4 GB",
        _raw(PNG_START, header(), chunk(b"iTXt", _KEY, length=2**32 - 1)),
        "bytes",
    ),
    Attack(
        "a chunk that claims 10 MB",
        _raw(PNG_START, header(), chunk(b"iTXt", _KEY, length=10**7)),
        "damaged",
    ),
    Attack("cut in its text", lambda folder: _raw(png(_itxt(_TEXT))[:200])(folder), "damaged"),
    Attack(
        "cut in its deflated text",
        _raw(
            PNG_START,
            header(),
            chunk(b"iTXt", _KEY + b"\0\1\0\0\0" + zlib.compress(_TEXT.encode())[:60]),
        ),
        "cut short",
    ),
    Attack("a text that is no deflate", _chunks(chunk(b"zTXt", _KEY + b"\0\0garbage")), "PNG"),
    Attack("a text without separators", _chunks(chunk(b"iTXt", _KEY))),
    Attack("a text of other bytes", _chunks(_itxt(b"\xff\xfe\xfd")), "PNG"),
    Attack("behind the pixels", _chunks(after=_itxt(_TEXT)), "carries no"),
    Attack("only a signature", _raw(PNG_START), "carries no"),
    Attack("no PNG", _raw(b"\xff\xd8\xff" + _TEXT.encode()), "PNG"),
    Attack("an empty file", _raw(b""), "PNG"),
    Attack(
        "a picture of 2^31 pixels a side, not decoded",
        lambda folder: content(png(_itxt(_TEXT), head=header(2**31 - 1, 2**31 - 1)), "a.png")(
            folder
        ),
        "a cat",
        "read",
    ),
    Attack("a pipe", lambda folder: Path(_pipe(folder)), "pipe or device"),
    Attack("/dev/zero", lambda _: Path("/dev/zero"), "pipe or device"),
    Attack("a file of a terabyte", lambda folder: Path(_sparse(folder)), "PNG"),
    Attack("a folder", lambda folder: folder, "folder"),
]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────


def _stored(names: dict[str, Any], size: int = 0, **metadata: str) -> bytes:
    text = json.dumps({"__metadata__": {"kind": "image-prompt", **metadata}, **names}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def _tokens(data: bytes | str) -> Callable[[Path], Path]:
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data

    def write(folder: Path) -> Path:
        texts = _itxt(_TEXT), _itxt(encoded, b"imageprompt-tokens")
        return content(png(*texts), "a.png")(folder)

    return write


def _zip_of_views(folder: Path) -> Path:
    """61 names for one deflated storage, as torch.save would write it: 7.5 kB, 1.6 GB."""
    count = 26 * 2**18
    names = ["tokens", *(f"{kind}.{i}" for i in range(30) for kind in "kv")]
    views = {name: forged.tensor((1, 1, count), (count, count, 1), count) for name in names}
    return _tokens(forged.torch_file(views, {"0": forged.bomb(26)}))(folder)


_FLOATS = {"dtype": "F32", "shape": [1, 4, 8], "data_offsets": [0, 128]}
_TOKENS = [
    Attack("a torch zip of 61 names", _zip_of_views, "not a safetensors file"),
    Attack(
        "a pickle", _tokens(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."), "not a safetensors file"
    ),
    Attack("a zip", _tokens(b"PK\x03\x04" + bytes(600)), "not a safetensors file"),
    Attack("a picture", _tokens(png()), "not a safetensors file"),
    Attack("not base64", _tokens("#" * 100), "damaged"),
    Attack("base64 of 1000 parts", _tokens("QQ==" * 250), "damaged"),
    Attack("nothing", _tokens(b""), "not a saved image prompt"),
    Attack("a header of 2^63 bytes", _tokens(struct.pack("<Q", 2**63) + b"{}"), "not a"),
    Attack(
        "tokens of a terabyte",
        _tokens(
            _stored(
                {"tokens": {"dtype": "F32", "shape": [1, 2**20, 2**20], "data_offsets": [0, 2**42]}}
            )
        ),
        "cut off",
    ),
    Attack(
        "another kind", _tokens(_stored({"tokens": _FLOATS}, 128, kind="image-style")), "metadata"
    ),
    Attack("no tokens", _tokens(_stored({}))),
    Attack(
        "other tensors",
        _tokens(
            _stored({"tokens": _FLOATS, "other": {**_FLOATS, "data_offsets": [128, 256]}}, 256)
        ),
        "not part of a prompt",
    ),
    Attack(
        "tokens of one dimension",
        _tokens(_stored({"tokens": {**_FLOATS, "shape": [32]}}, 128)),
        "at most",
    ),
    Attack(
        "no rows",
        _tokens(_stored({"tokens": {**_FLOATS, "shape": [0, 4, 8], "data_offsets": [0, 0]}})),
        "at most",
    ),
    Attack(
        "tokens of bytes",
        _tokens(_stored({"tokens": {**_FLOATS, "dtype": "U8", "shape": [1, 4, 32]}}, 128)),
        "at most",
    ),
    Attack(
        "null tokens of another shape",
        _tokens(
            _stored(
                {
                    "tokens": _FLOATS,
                    "null_tokens": {**_FLOATS, "shape": [1, 8, 4], "data_offsets": [128, 256]},
                },
                256,
            )
        ),
        "not the shape of the tokens",
    ),
    Attack("NaN", _tokens(_stored({"tokens": _FLOATS}) + b"\xff" * 128), "NaN"),
]

_IMPORTS = ("imageprompt.generation.replay", "imageprompt.encoding.image_prompt", "pydantic")

DOORS = (
    Door("recipe, its JSON", _read, _JSON, _IMPORTS),
    Door("recipe, sizes", _read, _SIZES, _IMPORTS),
    Door("recipe, what is told", _use, _TOLD, _IMPORTS),
    Door("recipe, files that it names", _use, _FILES, _IMPORTS),
    Door("recipe, its PNG", _read, _PNG, _IMPORTS),
    Door("recipe, its tokens", _use, _TOKENS, _IMPORTS),
)
