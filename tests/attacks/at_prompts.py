"""Saved image prompts: safetensors files that people exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import forged
from .attack import Attack, Door, content
from .picture_files import png
from .tensor_files import Tensors, write, write_raw

_KIND = {"kind": "image-prompt"}
_TOKENS = ("F32", (1, 4, 8))


def _load(path: Any, out: Path) -> object:
    from imageprompt.encoding.image_prompt import ImagePrompt

    prompt = ImagePrompt.load(path)
    return f"{prompt} {prompt.precomputed_kv is not None}"


def _file(tensors: Tensors, metadata: Mapping[str, Any] | None = None) -> Callable[[Path], Path]:
    about = _KIND if metadata is None else metadata
    return lambda folder: write(folder / "a.safetensors", tensors, about)


def _raw(header: str, size: int = 0, length: int | None = None) -> Callable[[Path], Path]:
    return lambda folder: write_raw(folder / "a.safetensors", header, size, length=length)


def _tokens(dtype: str, *shape: int) -> Callable[[Path], Path]:
    return _file({"tokens": (dtype, shape)})


def _sites(count: int, dtype: str, *shape: int) -> Callable[[Path], Path]:
    pairs = {f"{kind}.{i}": (dtype, shape) for i in range(count) for kind in "kv"}
    return _file({"tokens": _TOKENS, **pairs}, _KIND | {"prepared": "x"})


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.safetensors")
    return folder / "a.safetensors"


def _link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.safetensors").symlink_to(target)
        return folder / "a.safetensors"

    return make


def _views(folder: Path) -> Path:
    count = 26 * 2**18
    views = {f"k.{i}": forged.tensor((1, 1, count), (count, count, 1), count) for i in range(61)}
    return content(forged.torch_file(views, {"0": forged.bomb(26)}), "a.safetensors")(folder)


def _sharded(folder: Path) -> Path:
    write(folder / "x-00001-of-00001.safetensors", {"tokens": _TOKENS}, _KIND)
    index = '{"weight_map": {"tokens": "x-00001-of-00001.safetensors"}}'
    return content(index, "x.safetensors.index.json")(folder)


_LARGE = {
    "2000 prompts": (2000, 4, 8),
    "5000 tokens": (1, 5000, 8),
    "a width of 20,000": (1, 4, 20_000),
    "65 MiB": (1, 2080, 8192),
    "64 MiB and more": (1000, 4, 4200),
    "two dimensions": (4, 8),
    "four dimensions": (1, 1, 4, 8),
    "no prompts": (0, 4, 8),
    "no tokens": (1, 0, 8),
    "no width": (1, 4, 0),
}
_ATTACKS = [
    *(
        Attack(f"tokens: {name}", _tokens("F32", *shape), "at most")
        for name, shape in _LARGE.items()
    ),
    *(
        Attack(f"tokens of {dtype}", _tokens(dtype, 1, 4, 8), "at most")
        for dtype in ("I64", "U8", "BOOL", "F64")
    ),
    *(
        Attack(f"K' and V': {name}", _sites(1, "F32", *shape), "at most")
        for name, shape in _LARGE.items()
    ),
    Attack("K' and V' of bytes", _sites(1, "U8", 1, 4, 8), "at most"),
    Attack("200 MiB in 10 sites, each allowed", _sites(10, "F32", 1, 1280, 2048), "MiB"),
    Attack("5000 sites", _sites(5000, "F32", 1, 1, 1), "", "read"),
    Attack("30,000 sites", _sites(30_000, "F32", 1, 1, 1), ""),
    Attack("K' without V'", _file({"tokens": _TOKENS, "k.1": _TOKENS}), "has no 'v.1'"),
    Attack("V' without K'", _file({"tokens": _TOKENS, "v.1": _TOKENS}), "not part of a prompt"),
    Attack("no tokens but null tokens", _file({"null_tokens": _TOKENS}), "has no 'tokens'"),
    Attack(
        "null tokens of another shape",
        _file({"tokens": _TOKENS, "null_tokens": ("F32", (1, 8, 4))}),
        "null tokens",
    ),
    *(
        Attack(f"a tensor called {name!r:.30}", _file({"tokens": _TOKENS, name: _TOKENS}))
        for name in (
            "other",
            "",
            "../tokens",
            "\x1b[2J",
            "k." * 400,
            "tokens\0",
            "\u202enekot",
            "Tokens",
        )
    ),
    Attack("nothing", _file({}), "has no 'tokens'"),
    Attack("no metadata", _file({"tokens": _TOKENS}, {}), "metadata"),
    Attack("a style", _file({"tokens": _TOKENS}, {"kind": "image-style"}), "metadata"),
    Attack(
        "3 MB of metadata",
        _file({"tokens": _TOKENS}, _KIND | {"variant": "x" * 3 * 10**6}),
        "kB of metadata",
    ),
    Attack(
        "100,000 entries of metadata",
        _file({"tokens": _TOKENS}, _KIND | {str(i): "x" for i in range(100_000)}),
        "kB of metadata",
    ),
    Attack(
        "metadata of numbers",
        _file({"tokens": _TOKENS}, _KIND | {"variant": 1}),
        "table of strings",
    ),
    Attack(
        "metadata with escapes",
        _file({"tokens": _TOKENS}, _KIND | {"variant": "\x1b]0;x\x07" * 100}),
        r"\x1b",
        "read",
    ),
    Attack("a header 100,000 deep", _raw('{"tokens":' * 100_000), "deep"),
    Attack(
        "a header with NaN",
        _raw('{"tokens":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4),
    ),
    Attack(
        "a shape of 400 digits",
        _raw('{"tokens":{"dtype":"F32","shape":[1' + "0" * 400 + '],"data_offsets":[0,4]}}', 4),
    ),
    Attack(
        "a negative shape",
        _raw('{"tokens":{"dtype":"F32","shape":[-1,-4],"data_offsets":[0,16]}}', 16),
    ),
    Attack(
        "a shape of 10^5 ones",
        _raw('{"tokens":{"dtype":"F32","shape":[' + "1," * 10**5 + '1],"data_offsets":[0,4]}}', 4),
    ),
    Attack(
        "the same name twice",
        _raw(
            '{"tokens":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"tokens":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
        ),
        "twice",
    ),
    Attack(
        "tensors that share their bytes",
        _raw(
            '{"tokens":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]},"null_tokens":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}}',
            4,
        ),
        "overlap",
    ),
    Attack("a header of 2^62 bytes", _raw("{}", 8, 2**62), ""),
    Attack("a header longer than the file", _raw("{}", 0, 10**6)),
    Attack("a torch zip of 61 names", _views, "not a safetensors file"),
    Attack(
        "a pickle",
        content(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "a.safetensors"),
        "not a safetensors file",
    ),
    Attack("a picture", content(png(), "a.safetensors"), "not a safetensors file"),
    Attack("empty", content(b"", "a.safetensors"), "not a safetensors file"),
    Attack("an index of shards", _sharded, "not a safetensors file"),
    Attack("a folder", lambda folder: folder, "folder"),
    Attack("a pipe", _pipe, "pipe"),
    Attack("/dev/zero", lambda _: Path("/dev/zero")),
    Attack("a link to /dev/zero", _link("/dev/zero")),
    Attack("a link to itself", _link("a.safetensors"), "cannot be read"),
    Attack("a NUL in the name", lambda _: Path("a\0b"), "cannot be read"),
]

DOORS = (
    Door("image prompt file", _load, _ATTACKS, ("imageprompt.encoding.image_prompt", "torch")),
)
