"""Texts of strangers in what the commands print: stdout, stderr, JSON, and drawn labels.

Each text is put wherever a stranger can put one (names of files, tensors, styles, keys of configs,
arguments), and must come out on one line, in characters that a terminal only shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .attack import Attack, Door

MARK = "FORGED"
"""What a text tries to have at the beginning of a line, or hidden, or turned round."""

TEXTS = {
    "clears the screen": f"a\x1b[2J\x1b[H{MARK}",
    "sets the title": f"a\x1b]0;{MARK}\x07",
    "a link by OSC 8": f"a\x1b]8;;http://evil.example\x1b\\{MARK}\x1b]8;;\x1b\\",
    "C1 control": f"a\x9b31m{MARK}",
    "a new line": f"a\n{MARK}",
    "carriage return": f"a\r{MARK}",
    "backspaces": f"a\b\b\b\b{MARK}",
    "vertical tab and form feed": f"a\v{MARK}\f",
    "next line": f"a\x85{MARK}",
    "line and paragraph separator": f"a\u2028{MARK}\u2029",
    "turned round": f"a\u202e{MARK}\u2066",
    "delete": f"a\x7f{MARK}",
    "tag characters": f"a\U000e0041\U000e007f{MARK}",
    "lone surrogate": f"a\udc9b{MARK}",
}


BUG = "This is a bug"
"""What a command says about an exception that nobody has foreseen."""

FEW = ("clears the screen", "C1 control", "a new line", "turned round", "lone surrogate")
"""Where a whole command runs: one of each kind."""


class TerminalError(AssertionError):
    """Something came out that a terminal acts on."""


def checked(text: str) -> str:
    """The text, if a terminal only shows it, and no line of it is a stranger's."""
    for line in text.split("\n"):
        if not line.isprintable():
            raise TerminalError(f"raw in the output: {line[:200]!r}")
        if line.lstrip(' "').startswith(MARK):
            raise TerminalError(f"a line of its own: {line[:200]!r}")
    return text


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def run(*arguments: str) -> str:
    """What a command prints on both streams, checked; SystemExit after an error, as ever."""
    from imageprompt.cli import main

    with captured() as (out, err):
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
    checked(out.getvalue())
    if BUG in checked(err.getvalue()):
        raise TerminalError(err.getvalue())
    if "--json" in arguments and out.getvalue():
        json.loads(out.getvalue())
    sys.stderr.write(err.getvalue())
    if code not in (0, 1):
        raise SystemExit(code)
    return f"{out.getvalue()}{err.getvalue()}"


def texts(
    make: Callable[[str], Callable[[Path], Any]] | None = None,
    few: bool = True,
    **attack: Any,
) -> tuple[Attack, ...]:
    """One attack for each text, or a few; `make` puts it into a file, or it is given as it is."""

    def bare(text: str) -> Callable[[Path], str]:
        return lambda _: text

    found = {"outcome": "read", "says": MARK} | attack
    return tuple(
        Attack(name, (make or bare)(text), **found)
        for name, text in TEXTS.items()
        if name in FEW or not few
    )


# ── adapter files ───────────────────────────────────────────────────────────────────────────────


def _adapter() -> tuple[dict[str, Any], dict[str, str]]:
    """The header of the bundled adapter."""
    from imageprompt.core import bundled

    data = bundled.adapter("base").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.pop("__metadata__", {})
    return header, metadata


def _written(path: Path, header: dict[str, Any]) -> Path:
    """A safetensors file of zeros with this header."""
    text = json.dumps(header).encode()
    size = max(e["data_offsets"][1] for name, e in header.items() if name != "__metadata__")
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)
    return path


def tensor_name(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        header, _ = _adapter()
        end = max(entry["data_offsets"][1] for entry in header.values())
        header[text] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
        return _written(folder / "adapter.safetensors", header)

    return make


def metadata(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        header, known = _adapter()
        plain = text.replace("\udc9b", "\x9b")  # half a character is refused elsewhere
        header["__metadata__"] = known | {"author": plain, plain: "x"}
        return _written(folder / "adapter.safetensors", header)

    return make


def named(text: str, suffix: str = ".safetensors") -> Callable[[Path], Path]:
    """An adapter in a file with this name."""

    def make(folder: Path) -> Path:
        header, _ = _adapter()
        return _written(folder / f"{text.replace('/', '|')}{suffix}", header)

    return make


def _files(command: str, *more: str) -> Callable[[Any, Path], str]:
    return lambda made, out: run(command, str(made), *(part.format(out=out) for part in more))


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def picture(text: str, *, good: bool = True) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        path = folder / f"{text.replace('/', '|')}.png"
        if good:
            with path.open("wb") as stream:
                Image.effect_noise((70, 70), 90).save(stream, format="PNG")
        else:
            path.write_bytes(b"no picture")
        return path

    return make


def unreadable_picture(text: str) -> Callable[[Path], Path]:
    return picture(text, good=False)


# ── styles ──────────────────────────────────────────────────────────────────────────────────────


def _style(folder: Path, change: Callable[[dict[str, Any]], object], name: str) -> Path:
    """A style file whose description is changed."""
    import hashlib
    import struct

    tokens = struct.pack("<8f", *range(8))
    digest = hashlib.sha256(b"x").hexdigest()
    spec = {"variant": "base"}
    description: dict[str, Any] = {
        "format": 1,
        "version": "1.0",
        "name": "porcelain",
        "tags": ["blue"],
        "created": "2026-01-01T00:00:00+00:00",
        "adapter": {"name": "adapter", "hash": digest[:16], "spec": spec},
        "encoder": {"name": "encoder", "hash": digest[:16], "spec": {}},
        "references": [{"name": "vase.png", "hash": digest[:16]}],
        "recipe": {"fusion": "average"},
        "hash": digest,
    }
    change(description)
    header = {
        "__metadata__": {"kind": "image-style", "style": json.dumps(description)},
        "tokens": {"dtype": "F32", "shape": [1, 2, 4], "data_offsets": [0, 32]},
    }
    text = json.dumps(header).encode()
    path = folder / f"{name}.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + tokens)
    return path


def style_with(place: str) -> Callable[[str], Callable[[Path], Path]]:
    """A library with one style that has the text in one place of its description."""

    def put(text: str) -> Callable[[dict[str, Any]], object]:
        def change(description: dict[str, Any]) -> None:
            *parts, last = (int(key) if key.isdigit() else key for key in place.split("."))
            inner: Any = description
            for part in parts:
                inner = inner[part]
            inner[text if last == "KEY" else last] = text

        return change

    def make_for(text: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            _style(folder, put(text), "porcelain")
            return folder

        return make

    return make_for


def style_file_named(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _style(folder, lambda _: None, text.replace("/", "|"))
        return folder

    return make


PLACES = (
    "adapter.name",
    "encoder.name",
    "adapter.spec.variant",
    "references.0.name",
    "tags.0",
    "recipe.KEY",
)
"""Where a text is in the description of a style."""


def _library(*arguments: str) -> Callable[[Any, Path], str]:
    return lambda folder, _: run("library", *arguments, "--library", str(folder))


# ── configs, recipes, arguments ─────────────────────────────────────────────────────────────────


def config(key: bool) -> Callable[[str], Callable[[Path], Path]]:
    def make_for(text: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = folder / "config.yaml"
            entry = json.dumps(text)
            path.write_text(f"{entry}: 1\n" if key else f"data: x\noutput: x\nvariant: {entry}\n")
            return path

        return make

    return make_for


def recipe(text: str) -> Callable[[Path], Path]:
    """A picture whose recipe names an adapter so."""

    def make(folder: Path) -> Path:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("imageprompt", json.dumps({"format": 1, text: text}))
        path = folder / "recipe.png"
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)
        return path

    return make


def _argument(*arguments: str) -> Callable[[Any, Path], str]:
    """The command with the text at {it}; surrogates are how Python shows undecodable bytes."""
    return lambda text, _: run(*(part.replace("{it}", text) for part in arguments))


ARGUMENTS = (
    ("{it}",),
    ("--{it}",),
    ("hosts", "{it}"),
    ("hosts", "--{it}"),
    ("hosts", "--{it}=1"),
    ("generate", "--seed", "{it}"),
    ("generate", "--prompt", "x", "--size", "{it}"),
    ("generate", "--reference", "{it}.png"),
    ("inspect", "{it}"),
    ("inspect", "owner/{it}/x.safetensors"),
    ("library", "{it}"),
    ("library", "show", "{it}"),
    ("library", "mix", "{it}:x", "--as", "y"),
    ("presets", "{it}"),
    ("presets", "style transfer", "--base", "{it}"),
    ("train", "--example", "{it}"),
    ("train", "{it}.yaml"),
    ("completion", "{it}"),
    ("validate", "x.safetensors", "--report", "{it}/r.json"),
)


# ── what the console prints ─────────────────────────────────────────────────────────────────────


def _console(show: Callable[[Any, str], object]) -> Callable[[Any, Path], str]:
    """Through one function of core/console, on whichever stream."""

    def use(text: str, _: Path) -> str:
        from imageprompt.core import console

        with captured() as (out, err):
            show(console, text)
        bars = err.getvalue().replace("\r", "\n").replace("\x1b[A", "")
        return checked(out.getvalue()) + checked(bars)

    return use


def _warned(_: Any, text: str) -> None:
    """A warning of any library, while a command runs."""
    from imageprompt import cli

    cli._configure()
    warnings.simplefilter("always")
    warnings.warn(f"{text} is odd", stacklevel=1)


def _logged(_: Any, text: str) -> None:
    """A record of any library's logger, while a command runs."""
    from imageprompt import cli

    cli._configure()
    logger = logging.getLogger("a.library")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.propagate = False
    logger.warning("weights of %s are missing", text)


def _thread(_: Any, text: str) -> None:
    """An exception that ends a thread, while a command runs."""
    import threading

    from imageprompt import cli

    cli._configure()

    def fail() -> None:
        raise ValueError(text)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def _bar(console: Any, text: str) -> None:
    with console.Bars(True) as bars:
        bars.update(f"reading {text}", 1, 2)
        bars.log(f"read {text}")


def _trained(_: Any, text: str) -> None:
    from imageprompt.training.loop.logging import log

    log(f"could not be read: {text}")


def _cached(_: Any, text: str) -> None:
    """What an earlier scan has kept in the cache: pictures that cannot be read."""
    from types import SimpleNamespace

    from imageprompt.cli import train
    from imageprompt.training.cache import build
    from imageprompt.training.config.config import TrainingConfig

    report = SimpleNamespace(
        existing={}, encoded={}, damaged=[text], broken=[f"{text}: gone"], samples=1, seconds=0.0
    )
    build.build_cache_for = lambda *_, **__: report
    TrainingConfig.load = lambda *_: None
    flags = {"set": [], "json": False, "verify": False, "dry_run": False, "ray": None}
    train._build_cache(SimpleNamespace(config="x", **flags))


def _label(text: str, _: Path) -> str:
    """On a contact sheet the text is drawn as it is printed."""
    from imageprompt.core.contact_sheet import Page
    from imageprompt.core.errors import printable

    pages = []
    for shown in (text, printable(" ".join(text.split()))):
        page = Page(400, 40)
        page.text(4, 4, shown, at="left")
        pages.append(page.image.tobytes())
    if pages[0] != pages[1]:
        raise TerminalError(f"drawn raw: {text!r}")
    return printable(text)


CONSOLE: dict[str, Callable[[Any, str], object]] = {
    "a table": lambda console, text: console.print_table([{"name": text, "tags": [text]}], False),
    "a table as JSON": lambda console, text: console.print_table([{text: text}], True),
    "lines": lambda console, text: console.print_lines(text, Path(f"folder/{text}")),
    "columns": lambda console, text: console.print_aligned([("name", text)]),
    "a note": lambda console, text: console.note(text),
    "a progress bar": _bar,
    "a warning": _warned,
    "a log record": _logged,
    "a thread that ends": _thread,
    "a line of a training": _trained,
    "broken samples in a cache": _cached,
}


# ── doors ───────────────────────────────────────────────────────────────────────────────────────

_FILES = (
    "imageprompt.cli.files",
    "imageprompt.checkpoint.inspect",
    "imageprompt.checkpoint.validate",
)
_CHECK = ("imageprompt.evaluation.image_quality.report",)
_TRAIN = ("imageprompt.cli.train", "imageprompt.training.estimate")

DOORS: tuple[Door, ...] = (
    *(
        Door(f"terminal: {' '.join(command)} {place}", _files(*command), texts(make), _FILES)
        for command in (("inspect",), ("inspect", "--json"))
        for place, make in (("file names", named), ("metadata", metadata))
    ),
    Door(
        "terminal: inspect tensor names",
        _files("inspect"),
        texts(tensor_name, outcome="refused"),
        _FILES,
    ),
    Door("terminal: validate tensor names", _files("validate"), texts(tensor_name), _FILES),
    *(
        Door(f"terminal: {' '.join(command)} {place}", _files(*command), texts(make), _CHECK)
        for command in (("check",), ("check", "--json"))
        for place, make in (("file names", picture), ("unreadable pictures", unreadable_picture))
    ),
    *(
        Door(
            f"terminal: library show {place}",
            _library("show", "porcelain"),
            texts(style_with(place), outcome="refused", says="style"),
            ("imageprompt.library",),
        )
        for place in PLACES
    ),
    *(
        Door(
            f"terminal: library list {place}",
            _library("list"),
            texts(style_with(place), says="porcelain"),
            ("imageprompt.library",),
        )
        for place in PLACES
    ),
    Door(
        "terminal: library list file names",
        _library("list"),
        texts(style_file_named, says=""),
        ("imageprompt.library",),
    ),
    *(
        Door(
            f"terminal: train config {place}",
            _files("train", "--dry-run"),
            texts(config(place == "keys"), outcome="refused", says="imageprompt: error"),
            _TRAIN,
        )
        for place in ("keys", "values")
    ),
    Door(
        "terminal: recipe keys",
        lambda made, out: run("generate", "--recipe", str(made), "--output", str(out)),
        texts(recipe, outcome="refused"),
        ("imageprompt.generation.replay",),
    ),
    *(
        Door(f"terminal: {' '.join(arguments)}", _argument(*arguments), texts(outcome="refused"))
        for arguments in ARGUMENTS
    ),
    *(
        Door(f"terminal: {name}", _console(show), texts(few=False))
        for name, show in CONSOLE.items()
    ),
    Door("terminal: a label", _label, texts(few=False), ("imageprompt.core.contact_sheet",)),
)
