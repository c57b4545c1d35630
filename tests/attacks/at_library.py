"""Style libraries: files that people exchange, folders that they copy, names that they type."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import forged
from .attack import Attack, Door, content, outside
from .picture_files import encoded, flat_jpeg, header, png, with_scans
from .tensor_files import Tensors, write, write_raw

_TOKENS: Tensors = {"tokens": ("F32", (1, 4, 8))}
_ABOUT: dict[str, Any] = {
    "format": 1,
    "name": "given",
    "tags": ["blue"],
    "encoder": None,
    "references": [],
    "adapter": {"name": "plus", "hash": "1" * 64, "spec": {"variant": "plus"}},
    "recipe": {},
    "hash": "",
    "created": "2026-01-01T00:00:00+00:00",
    "version": "0.1.0",
}


def _hash(tensors: Tensors) -> str:
    """Of tokens whose values are 0."""
    from imageprompt.library.style_file import StoredBytes, token_hash

    from .tensor_files import SIZES

    named = {key: tensors[key] for key in ("tokens", "null_tokens") if key in tensors}
    return token_hash(
        {
            key: StoredBytes(dtype, shape, bytes(SIZES[dtype] * shape[0] * shape[1] * shape[2]))
            for key, (dtype, shape) in named.items()
        }
    )


def _style(path: Path, about: Mapping[str, Any] | str = {}, tensors: Tensors = _TOKENS) -> Path:
    """A style of zeros; `about` changes its description, or replaces its text."""
    text = about
    if not isinstance(about, str):
        small = sum(shape[-1] for _, shape in tensors.values()) < 10**6
        right = {"hash": _hash(tensors) if small and "tokens" in tensors else "0" * 64}
        text = json.dumps({**_ABOUT, **right, **about})
    return write(path, tensors, {"kind": "image-style", "style": text})


def _about(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: _style(folder / "a.safetensors", changes)


def _text(text: str) -> Callable[[Path], Path]:
    return lambda folder: _style(folder / "a.safetensors", text)


def _value(key: str, value: str) -> Callable[[Path], Path]:
    """A value of the description, written by hand."""
    return _text(json.dumps({**_ABOUT, "hash": "0" * 64, key: "@"}).replace('"@"', value))


def _tensors(**more: tuple[str, tuple[int, ...]]) -> Callable[[Path], Path]:
    return lambda folder: _style(folder / "a.safetensors", {}, {**_TOKENS, **more})


def _thumbnail(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tensors = {**_TOKENS, "thumbnail": ("U8", (len(data),))}
        path = _style(folder / "a.safetensors", {"hash": _hash(_TOKENS)}, tensors)
        with path.open("r+b") as stream:
            stream.seek(-len(data), os.SEEK_END)
            stream.write(data)
        return path

    return make


def _import(path: Any, out: Path) -> object:
    from imageprompt.library import Library

    return repr(Library(out / "library").import_(path))


# ── style files ─────────────────────────────────────────────────────────────────────────────────

_NAMES = {
    "a path upwards": "../../evil",
    "an absolute path": "/tmp/evil",
    "a Windows path": r"..\evil",
    "a drive": "C:evil",
    "a stream": "evil:x",
    "a hidden file": ".lock",
    "an option": "-rf",
    "nothing": "",
    "a dot": ".",
    "a NUL": "a\0b",
    "a new line": "a\nb",
    "an escape": "\x1b]0;x\x07",
    "a C1 control": "a\x9bb",
    "turned round": "a\u202egnp",
    "a zero width space": "a\u200bb",
    "a tag character": "a\U000e0041",
    "half a pair": "a\ud800b",
    "300 letters": "a" * 300,
    "100 letters of 4 bytes": "\U0001f600" * 100,
    "a dot behind": "evil.",
    "a space behind": "evil ",
    "a space before": " evil",
    "a wildcard": "*",
    "a pipe": "a|b",
    "a device": "nul",
    "a device with a suffix": "CON.txt",
    "a device with a space": "aux .x",
    "a device of superscripts": "lpt\u00b9",
    "another device of superscripts": "COM\u00b2",
    "a third with a suffix": "com\u00b3.style",
    "the console's input": "CONIN$",
    "the console's output": "conout$",
    "a device in wide letters": "\uff23\uff2f\uff2e",
    "a number": 7,
    "a list": ["a"],
}
_FILES = [
    *(Attack(f"a name that is {what}", _about(name=name), "name") for what, name in _NAMES.items()),
    *(
        Attack(f"tags: {what}", _about(tags=tags), "tag")
        for what, tags in {
            "a text": "abc",
            "an escape": ["\x1b[31m"],
            "60 of them": [str(i) for i in range(60)],
            "10,000 of them": [str(i) for i in range(10_000)],
            "turned round": ["a\u202eb"],
            "nested": [["a"]],
        }.items()
    ),
    *(
        Attack(f"adapter: {what}", _about(adapter={**_ABOUT["adapter"], **changes}), says)
        for what, changes, says in (
            ("an escape in its name", {"name": "\x1b]52;c;x\x07"}, "printable"),
            ("turned round", {"name": "a\u202egnp.exe"}, "printable"),
            ("a new line in its name", {"name": "plus\nsafe: yes"}, "printable"),
            ("a name of 10^5 letters", {"name": "a" * 10**5}, "longer"),
            ("a name that is a list", {"name": []}, "adapter"),
            ("an address", {"name": "http://x/y"}, "Hub id"),
            ("a hash that is a path", {"hash": "../../etc/passwd"}, "hex"),
            ("an escape in its variant", {"spec": {"variant": "\x1b[2J"}}, "printable"),
            ("an escape in a key", {"spec": {"variant": "plus", "\x1b[2J": 1}}, "printable"),
            ("no variant", {"spec": {}}, "variant"),
            ("a variant that is a number", {"spec": {"variant": 1}}, "variant"),
            (
                "2000 entries",
                {"spec": {"variant": "x"} | {str(i): i for i in range(2000)}},
                "entries",
            ),
            ("lists 10 deep", {"spec": {"variant": "x", "y": [[[[[[[[[[1]]]]]]]]]]}}, "adapter"),
            ("an unknown key", {"path": "/etc"}, "name and hash"),
        )
    ),
    *(
        Attack(f"encoder: {what}", _about(encoder={"name": "x", "hash": "2" * 16, **changes}), says)
        for what, changes, says in (
            ("an escape in its name", {"name": "\x1b[2J"}, "printable"),
            ("a new line in its name", {"name": "a\r\nb"}, "printable"),
            ("an escape in its spec", {"spec": {"a": "\x9b2J"}}, "printable"),
            ("a hash that is a number", {"hash": 5}, "hex"),
        )
    ),
    *(
        Attack(f"references: {what}", _about(references=references), says)
        for what, references, says in (
            ("5000 of them", [{"name": "a", "hash": "0" * 64}] * 1001, "1000"),
            ("an escape", [{"name": "\x1b[2J", "hash": "0" * 64}], "printable"),
            ("an object", {"name": "a"}, "list"),
            ("texts", ["a"], "name and hash"),
        )
    ),
    *(
        Attack(f"recipe: {what}", _about(recipe=recipe), "recipe")
        for what, recipe in {
            "an escape": {"fusion": "\x1b[2J"},
            "an escape in a key": {"\x1b[2J": 1},
            "lists 6 deep": {"a": [[[[[[1]]]]]]},
            "5000 entries": {str(i): i for i in range(5000)},
            "10^30": {"a": 10**30},
            "a text of 10,000 letters": {"a": "x" * 10_000},
        }.items()
    ),
    Attack(
        "a base that is an address of 10^5 letters", _about(recipe={"base": "x" * 10**5}), "recipe"
    ),
    Attack("a description 100,000 deep", _text('{"a":' * 100_000)),
    Attack("a description of 2000 lists", _value("recipe", "[" * 2000 + "]" * 2000)),
    Attack("a number of 400 digits", _value("format", "1" * 400)),
    Attack("a number of 100,000 digits", _value("format", "1" * 100_000)),
    Attack("NaN", _value("recipe", '{"a": NaN}')),
    Attack("infinity", _value("recipe", '{"a": 1e999}')),
    Attack("a key twice", _text(json.dumps(_ABOUT)[:-1] + ', "name": "b"}'), "twice"),
    Attack("a description of 3 MB", _about(recipe={"a": ["x" * 4000] * 750}), "kB"),
    Attack("a description that is a list", _text("[]"), "object"),
    Attack("no description", _text(""), "description"),
    Attack("format 2", _about(format=2), "format"),
    Attack("an unknown key", _about(__init__=1), "unknown key"),
    Attack("a time of code", _about(created="now() or 1"), "ISO 8601"),
    Attack("a version of escapes", _about(version="\x1b[2J"), "version"),
    Attack("another hash", _about(hash="0" * 64), "do not match"),
    Attack("a hash of another length", _about(hash="0" * 63), "hex"),
    *(
        Attack(f"tensors: {what}", _tensors(**more), says)
        for what, more, says in (
            ("features of 200 MiB", {"features": ("F32", (100, 1024, 512))}, "MiB"),
            (
                "two parts of 100 MiB",
                {"features.0": ("F32", (100, 512, 512)), "features.1": ("F32", (100, 512, 512))},
                "MiB",
            ),
            ("an embedding of 10^9 columns", {"embedding": ("F32", (1, 10**7))}, "at most"),
            ("half of the features", {"features.0": ("F32", (1, 8))}, "incomplete"),
            ("null tokens of another type", {"null_tokens": ("F16", (1, 4, 8))}, "null tokens"),
            ("one more", {"other": ("F32", (1,))}, "not part of a style"),
            ("tokens of 2 prompts", {"tokens": ("F32", (2, 4, 8))}, "at most"),
            ("a thumbnail of 1 MB", {"thumbnail": ("U8", (10**6,))}, "at most"),
            ("a thumbnail of floats", {"thumbnail": ("F32", (64,))}, "at most"),
        )
    ),
    *(
        Attack(f"a thumbnail that is {what}", _thumbnail(data), says)
        for what, data, says in (
            ("a bomb", png(head=header(60_000, 60_000)), "million pixels"),
            ("2000x2000", png(head=header(2000, 2000)), "1024"),
            ("a JPEG of 64 million pixels", flat_jpeg(1600), "1024"),
            ("a JPEG of 5000 scans", with_scans(5000), "scans"),
            ("a WebP", encoded("WEBP"), "neither PNG nor JPEG"),
            ("a GIF", b"GIF89a" + bytes(50), "neither PNG nor JPEG"),
            ("cut short", encoded("PNG")[:300], "thumbnail"),
            ("noise", bytes(range(256)), "neither PNG nor JPEG"),
        )
    ),
    Attack(
        "a pickle",
        content(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "a.safetensors"),
        "not a safetensors",
    ),
    Attack(
        "a torch zip of views",
        content(
            forged.torch_file(
                {"tokens": forged.tensor((1, 1, 2**20), (1, 1, 1), 2**20)}, {"0": forged.bomb(4)}
            ),
            "a.safetensors",
        ),
        "not a safetensors",
    ),
    Attack("a picture", content(png(), "a.safetensors"), "not a safetensors"),
    Attack("a header of 2^62 bytes", lambda f: write_raw(f / "a.safetensors", "{}", length=2**62)),
    Attack("an adapter", lambda f: write(f / "a.safetensors", _TOKENS, {}), "metadata"),
    Attack("a pipe", lambda f: (os.mkfifo(f / "p"), f / "p")[1], "regular file"),
    Attack("/dev/zero", lambda _: Path("/dev/zero")),
    Attack("a folder", lambda f: f, "folder"),
    Attack("a user that is not there", lambda _: "~nosuchuser/a.safetensors", "home folder"),
    Attack("a name of 5000 letters", lambda _: "a" * 5000),
]


# ── a stranger's folder ─────────────────────────────────────────────────────────────────────────


def _list(folder: Any, out: Path) -> object:
    """All that reading a library does."""
    from imageprompt.library import Library

    library = Library(folder)
    found = [*map(repr, library.styles()), repr(library)]
    library.search("blue")
    return "; ".join(found)


def _good(folder: Path) -> Path:
    _style(folder / "good.safetensors", {"name": "good"})
    return folder


def _beside(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """The attack, in a folder with a good style."""

    def write_both(folder: Path) -> Path:
        make(folder)
        return _good(folder)

    return write_both


def _linked(name: str, target: Callable[[Path], str]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).symlink_to(target(folder))


def _style_outside(folder: Path) -> str:
    return str(_style(outside(folder) / "private.safetensors", {"name": "private"}))


def _full(folder: Path) -> Path:
    (folder / "0.safetensors").touch()
    for index in range(1, 10_001):  # links are made much faster than files
        os.link(f"{folder}/0.safetensors", f"{folder}/{index}.safetensors")
    return folder


def _junk(folder: Path) -> None:
    for index in range(2000):
        (folder / f"{index}.safetensors").write_bytes(b"junk")


def _file(folder: Path) -> Path:
    (folder / "library").write_text("x")
    return folder / "library"


_FOLDERS = [
    *(
        Attack(name, _beside(make), says, "quarantined")
        for name, make, says in (
            ("a pipe", lambda f: os.mkfifo(f / "x.safetensors"), "regular file"),
            ("a link to /dev/zero", _linked("x.safetensors", lambda _: "/dev/zero"), "leads out"),
            ("a link to a style outside", _linked("x.safetensors", _style_outside), "leads out"),
            (
                "a link to a secret",
                _linked("x.safetensors", lambda f: str(outside(f) / "secret.txt")),
                "leads out",
            ),
            (
                "a relative link upwards",
                _linked("x.safetensors", lambda _: "../outside/secret.txt"),
                "leads out",
            ),
            (
                "a link to itself",
                _linked("x.safetensors", lambda _: "x.safetensors"),
                "x.safetensors",
            ),
            ("a link to nothing", _linked("x.safetensors", lambda _: "gone"), "does not exist"),
            ("a folder", lambda f: (f / "x.safetensors").mkdir(), "folder"),
            ("2000 files of junk", _junk, "1980 more"),
            ("a name with an escape", lambda f: _style(f / "\x1b[2J.safetensors"), r"\x1b"),
            ("a name turned round", lambda f: _style(f / "a\u202eb.safetensors"), r"\u202e"),
            (
                "a name of other bytes",
                lambda f: Path(os.fsdecode(os.fsencode(f) + b"/\xff\xfe.safetensors")).write_bytes(
                    b""
                ),
                "skipped",
            ),
            ("a device", lambda f: _style(f / "lpt\u00b9.safetensors"), "device"),
            ("an empty file", lambda f: (f / "x.safetensors").touch(), "not a style"),
            ("a damaged description", lambda f: _style(f / "x.safetensors", "{"), "JSON"),
        )
    ),
    Attack("10,001 files", _full, "10001 styles"),
    Attack("a file in its place", _file, "cannot be read"),
    Attack("a pipe in its place", lambda f: (os.mkfifo(f / "p"), f / "p")[1], "cannot be read"),
    Attack(
        "a link to itself in its place",
        lambda f: (_linked("l", lambda _: "l")(f), f / "l")[1],
        "cannot be read",
    ),
    Attack("a NUL in its path", lambda _: "a\0b", "cannot be read"),
    Attack("a path of 5000 letters", lambda _: "a" * 5000, "cannot be read"),
    Attack("a user that is not there", lambda _: "~nosuchuser/library", "home folder"),
    Attack(
        "a style that says another name",
        lambda f: _style(f / "a.safetensors", {"name": "../b"}).parent,
        "'a'",
        "read",
    ),
]


# ── writing into a stranger's folder ────────────────────────────────────────────────────────────


def _write(folder: Any, out: Path) -> object:
    """All that writing into a library does; what lies outside is as it was."""
    from imageprompt.library import Library

    library, others = Library(folder), {*outside(Path(folder)).iterdir()}
    try:
        library.import_(_style(out / "new.safetensors", {"name": "new"}))
        library.export("new", out / "copy.safetensors")
        library.remove("good")
        library.import_(out / "copy.safetensors", "new", replace=True)
    finally:
        assert {*outside(Path(folder)).iterdir()} == others
    return library.names()


def _lock(target: Callable[[Path], str]) -> Callable[[Path], Path]:
    return _beside(_linked(".lock", target))


def _left_outside(folder: Path) -> None:
    """A file outside that is called as temporary ones are, and a link to its folder."""
    for name in (".a.01234567.tmp.safetensors", ".tmp123456"):
        (outside(folder) / name).write_text("somebody's")
    (folder / ".prepared").symlink_to(outside(folder))


_SECRET = "secret.txt"
_WRITTEN = [
    Attack("the lock is a link to a file", _lock(lambda f: str(outside(f) / _SECRET)), "link"),
    Attack("the lock is a link to nothing", _lock(lambda f: str(outside(f) / "new")), "link"),
    Attack("the lock is a link to itself", _lock(lambda _: ".lock"), "link"),
    Attack("the lock is a pipe", _beside(lambda f: os.mkfifo(f / ".lock")), "pipe"),
    Attack("the lock is a folder", _beside(lambda f: (f / ".lock").mkdir()), "folder"),
    Attack("precomputed files in a link", _beside(_left_outside), "new", "read"),
    Attack(
        "precomputed files in a link to itself",
        _beside(_linked(".prepared", lambda _: ".prepared")),
        "new",
        "read",
    ),
    Attack(
        "a file in place of precomputed files",
        _beside(lambda f: (f / ".prepared").touch()),
        "new",
        "read",
    ),
    Attack(
        "the new style is a link",
        _beside(_linked("new.safetensors", lambda f: str(outside(f) / _SECRET))),
        "exists already",
    ),
    Attack(
        "the new style is a pipe",
        _beside(lambda f: os.mkfifo(f / "new.safetensors")),
        "exists already",
    ),
    Attack(
        "the new style in other letters",
        _beside(lambda f: _style(f / "NEW.safetensors")),
        "confuse",
    ),
    Attack(
        "the new style in wide letters",
        _beside(lambda f: _style(f / "\uff4eew.safetensors")),
        "confuse",
    ),
    Attack(
        "the removed style is a link",
        lambda f: (_linked("good.safetensors", _style_outside)(f), f)[1],
        "new",
        "read",
    ),
    Attack(
        "a temporary file is a link",
        _beside(_linked(".a.01234567.tmp.safetensors", lambda f: str(outside(f) / _SECRET))),
        "new",
        "read",
    ),
    Attack(
        "a temporary file is a pipe",
        _beside(lambda f: os.mkfifo(f / ".a.01234567.tmp.safetensors")),
        "new",
        "read",
    ),
    Attack(
        "a temporary file is a folder",
        _beside(lambda f: (f / ".a.01234567.tmp.safetensors").mkdir()),
        "new",
        "read",
    ),
]


# ── a style that is rewritten in place ──────────────────────────────────────────────────────────


def _reread(path: Any, out: Path) -> object:
    """Open, let somebody rewrite it with its time restored, use."""
    from imageprompt.library.style_file import check_whole, read_style

    style, before = read_style(path), path.stat()
    with path.open("r+b") as stream:
        stream.seek(-64, os.SEEK_END)
        stream.write(bytes(64))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return repr(check_whole(style))


_REWRITTEN = [Attack("the same bytes, the same time", _about(), "changed after it was opened")]


# ── typed names ─────────────────────────────────────────────────────────────────────────────────


def _named(name: Any, out: Path) -> object:
    from imageprompt.library import Library

    return repr(Library(out).show(name))


_TYPED = [
    *(Attack(what, lambda _, name=name: name, "name") for what, name in _NAMES.items()),  # type: ignore[misc]
    Attack("a style that is not there", lambda _: "porcelain", "not in"),
]

_IMPORTS = (
    *("imageprompt.library", "imageprompt.library.thumbnail", "filelock", "PIL.PngImagePlugin"),
    *("imageprompt.encoding.images.file_limits", "PIL.JpegImagePlugin", "PIL.WebPImagePlugin"),
)

DOORS = (
    Door("style file", _import, _FILES, _IMPORTS),
    Door("library folder", _list, _FOLDERS, _IMPORTS),
    Door("library folder, written to", _write, _WRITTEN, _IMPORTS),
    Door("style, rewritten", _reread, _REWRITTEN, _IMPORTS),
    Door("style name", _named, _TYPED, _IMPORTS),
)
