"""Every command with every impossible path, environment and stream: one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .at_terminal import captured, checked, run
from .attack import Attack, Door

# ── paths ───────────────────────────────────────────────────────────────────────────────────────


def missing(folder: Path) -> Path:
    return folder / "missing"


def a_folder(folder: Path) -> Path:
    path = folder / "folder"
    path.mkdir()
    return path


def a_pipe(folder: Path) -> Path:
    path = folder / "pipe"
    os.mkfifo(path)
    return path


def a_socket(folder: Path) -> Path:
    path = folder / "s"
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
    return path


def zeros(folder: Path) -> Path:
    return Path("/dev/zero")


def link_to_zeros(folder: Path) -> Path:
    path = folder / "link"
    path.symlink_to("/dev/zero")
    return path


def link_to_itself(folder: Path) -> Path:
    path = folder / "loop"
    path.symlink_to(path)
    return path


def broken_link(folder: Path) -> Path:
    path = folder / "broken"
    path.symlink_to("nowhere\x1b[2J")
    return path


def empty(folder: Path) -> Path:
    path = folder / "empty"
    path.touch()
    return path


def sparse(folder: Path) -> Path:
    path = folder / "sparse"
    with path.open("wb") as stream:
        stream.truncate(2**30 - 1)
    return path


def unreadable(folder: Path) -> Path:
    path = folder / "unreadable"
    path.write_bytes(b"secret")
    return _closed(path)


def _closed(path: Path) -> Path:
    path.chmod(0)
    return path


def unreadable_folder(folder: Path) -> Path:
    path = folder / "unreadable"
    path.mkdir()
    return _closed(path)


def named(name: str) -> Callable[[Path], str]:
    """A path that is not there."""
    return lambda folder: f"{folder}/{name}"


def text(path: str) -> Callable[[Path], str]:
    return lambda _: path


PATHS: dict[str, Callable[[Path], Any]] = {
    "missing": missing,
    "a pipe": a_pipe,
    "a socket": a_socket,
    "/dev/zero": zeros,
    "a link to /dev/zero": link_to_zeros,
    "a link to itself": link_to_itself,
    "a broken link": broken_link,
    "empty": empty,
    "a gigabyte of nothing": sparse,
    "unreadable": unreadable,
    "a name too long": named("n" * 300),
    "a path too long": named("/".join(["n" * 200] * 25)),
    "below a file": lambda folder: empty(folder) / "below",
    "NUL": named("a\0b"),
    "nobody's home": text("~nosuchuser/x"),
    "no name": text(""),
    "a URL": text("https://localhost:9/x.safetensors"),
    "a file URL": text("file:///etc/hostname"),
    "a Windows path": text(r"C:\Windows\x"),
}
FOLDER = {"a folder": a_folder, "an unreadable folder": unreadable_folder}
NAMES = {
    "missing": "missing",
    "a pipe": "pipe",
    "a socket": "/s",
    "/dev/zero": "/dev/zero",
    "a link to /dev/zero": "link",
    "a link to itself": "loop",
    "a broken link": "broken",
    "empty": "empty",
    "a gigabyte of nothing": "sparse",
    "unreadable": "unreadable",
    "a name too long": "nnnnnn",
    "a path too long": "nnnnnn",
    "below a file": "below",
    "NUL": r"a\x00b",
    "nobody's home": "~nosuchuser",
    "a URL": "localhost",
    "a file URL": "hostname",
    "a Windows path": "Windows",
    "a folder": "folder",
    "an unreadable folder": "unreadable",
}
"""What the error must name."""


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """For root no file is unreadable: it reads and writes only what its modes allow (Linux)."""
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept = (ctypes.c_uint32 * 6)()
    _LIBC.capget(head, kept)
    less = (ctypes.c_uint32 * 6)(*kept)
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    _LIBC.capset(head, less)
    try:
        yield
    finally:
        _LIBC.capset(head, kept)


_LIBC = ctypes.CDLL(None)


def use(*arguments: str) -> Callable[[Any, Path], str]:
    """The command with the path at {it}, the bundled adapter, and an empty folder for output."""

    def with_path(made: Any, out: Path) -> str:
        from imageprompt.core import bundled

        known = {"it": made, "out": out, "adapter": bundled.adapter("base")}
        with without_rights():
            return run(*(argument.format(**known) for argument in arguments))

    return with_path


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.effect_noise((70, 70), 90).save(path)
    return path


# ── where a path can be given ───────────────────────────────────────────────────────────────────

_FILES = ("imageprompt.cli.files", "imageprompt.checkpoint.validate", "imageprompt.checkpoint.diff")
_GENERATE = ("imageprompt.cli.generate", "imageprompt.generation.replay")
_LIBRARY = ("imageprompt.cli.library", "imageprompt.library.encoder_setup")
_TRAIN = ("imageprompt.cli.train", "imageprompt.training.train", "imageprompt.training.cache.build")

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("inspect", "{it}"): _FILES,
    ("inspect", "{adapter}", "--base", "{it}"): _FILES,
    ("validate", "{adapter}", "--base", "{it}"): _FILES,
    ("validate", "{adapter}", "--encoder", "{it}"): _FILES,
    ("convert", "{it}", "{out}/x.safetensors"): _FILES,
    ("diff", "{adapter}", "{it}"): _FILES,
    ("presets", "style transfer", "--base", "{it}"): _FILES,
    ("faces", "x.png", "--faces", "{it}"): ("imageprompt.cli.faces",),
    ("generate", "--reference", "{it}", "--output", "{out}"): _GENERATE,
    ("generate", "--recipe", "{it}", "--output", "{out}"): _GENERATE,
    ("generate", "--image-prompt", "{it}", "--output", "{out}"): _GENERATE,
    ("generate", "--scale", "0", "--base", "{it}", "--output", "{out}"): _GENERATE,
    ("library", "import", "{it}", "--library", "{out}"): _LIBRARY,
    ("library", "add", "x", "{it}", "--library", "{out}"): _LIBRARY,
    ("train", "{it}", "--dry-run"): _TRAIN,
    ("train", "{it}"): _TRAIN,
    ("build-cache", "{it}"): _TRAIN,
}
_MAY_BE_FOLDERS = ("--base", "--encoder", "--faces")


def paths(arguments: tuple[str, ...]) -> tuple[Attack, ...]:
    known = (PATHS | FOLDER).items()
    return tuple(Attack(name, make, NAMES.get(name, "")) for name, make in known)


LIBRARIES = {
    name: PATHS[name]
    for name in (
        "a pipe", "a socket", "/dev/zero", "a link to /dev/zero", "a link to itself", "empty",
        "a gigabyte of nothing", "a name too long", "a path too long", "below a file", "NUL",
        "nobody's home",
    )
}  # fmt: skip
"""What is no library; a path that is not there is an empty one."""


USES_LIBRARY = (
    ("library", "list"),
    ("library", "show", "x"),
    ("library", "search", "x"),
    ("library", "mix", "x", "y", "--as", "z"),
    ("library", "export", "x", "{out}/x.safetensors"),
    ("library", "remove", "x"),
    ("generate", "--style", "x", "--output", "{out}"),
)

# ── what is written ─────────────────────────────────────────────────────────────────────────────


def full_device(folder: Path) -> Path:
    """Everything that is written fails with ENOSPC."""
    path = folder / "full.safetensors"
    path.symlink_to("/dev/full")
    return path


def pipe_in_place(folder: Path) -> Path:
    path = folder / "pipe.safetensors"
    os.mkfifo(path)
    return path


OUTPUTS: dict[str, Callable[[Path], Any]] = {
    "a link to a device": full_device,
    "a pipe": pipe_in_place,
    "in a folder without rights": lambda folder: unreadable_folder(folder) / "x.safetensors",
    "below a device": text("/dev/full/x.safetensors"),
    "below a file": lambda folder: empty(folder) / "below.safetensors",
    "a name too long": named("n" * 300 + ".safetensors"),
    "a path too long": named("/".join(["n" * 200] * 25) + ".safetensors"),
    "NUL": named("a\0b.safetensors"),
    "nobody's home": text("~nosuchuser/x.safetensors"),
}
WRITERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("generate", "--scale", "0", "--output", "{it}"): _GENERATE,
    ("probe", "--output", "{it}"): ("imageprompt.cli.probe", "imageprompt.evaluation.probing"),
    ("demo", "--output", "{it}"): ("imageprompt.demo.showcase",),
    ("demo", "--draw", "{it}", "--num-scenes", "1"): ("imageprompt.demo.datasets",),
    ("convert", "{adapter}", "{it}"): _FILES,
    ("validate", "{adapter}", "--report", "{it}"): _FILES,
    ("validate", "{adapter}", "--report", "{it}/r.json"): _FILES,
    ("library", "remove", "x", "--library", "{it}"): _LIBRARY,
}

# ── streams ─────────────────────────────────────────────────────────────────────────────────────

SHORT = (
    ("--help",), ("--version",), ("hosts",), ("hosts", "--json"), ("variants",), ("presets",),
    ("doctor", "--quick"), ("completion", "bash"), ("inspect", "{adapter}"),
    ("train", "--example", "tiny-base"), ("nosuchcommand",), ("hosts", "--nosuchflag"),
    ("inspect", "missing\udc80"), ("inspect", "Z\xfcrich \U0001f353"),
    ("library", "list", "--library", "Z\xfcrich \U0001f353"),
)  # fmt: skip


_SHORT = tuple(f"imageprompt.cli.{name}" for name in ("tables", "doctor", "completion", "files"))


def with_streams(stdout: str, stderr: str, encoding: str = "utf-8") -> Callable[[Any, Path], str]:
    """A command whose streams are these files, or closed (""), as at the start of a process."""

    def use(arguments: Any, out: Path) -> str:
        from imageprompt.cli import main
        from imageprompt.core import bundled

        kept = {1: os.dup(1), 2: os.dup(2)}
        streams = sys.stdout, sys.stderr
        for number, place in ((1, stdout), (2, stderr)):
            os.close(number)
            name = "stdout" if number == 1 else "stderr"
            if not place:
                setattr(sys, name, None)
                continue
            flags = os.O_WRONLY | os.O_CREAT
            target = os.open(place.format(out=out), flags)
            if target != number:
                os.dup2(target, number)
                os.close(target)
            stream = io.TextIOWrapper(
                os.fdopen(number, "wb", closefd=False), encoding, errors="strict"
            )
            setattr(sys, name, stream)
        try:
            adapter = bundled.adapter("base")
            code = main([argument.format(adapter=adapter) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        finally:
            left = [sys.stdout, sys.stderr]
            for stream in left:
                stream.flush()  # as Python does at its end
            for number in kept:
                os.dup2(kept[number], number)
            sys.stdout, sys.stderr = streams
        written = "".join(
            checked(path.read_text(encoding)) for path in sorted(out.iterdir()) if path.is_file()
        )
        if "Traceback" in written:
            raise AssertionError(written)
        return f"exit code {code}\n{written}"

    return use


def commands(*known: tuple[str, ...], says: str = "", **attack: Any) -> tuple[Attack, ...]:
    def given(arguments: tuple[str, ...]) -> Callable[[Path], Any]:
        return lambda _: arguments

    options = {"outcome": "read"} | attack
    return tuple(Attack(" ".join(one), given(one), says, **options) for one in known)


def read_end_closed(arguments: Any, out: Path) -> str:
    """The command's stdout is a pipe that nobody reads."""
    pipe = out / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def leave() -> None:
        os.close(reader)

    kept, stream = os.dup(1), sys.stdout
    writer = os.open(pipe, os.O_WRONLY)
    leave()
    os.dup2(writer, 1)
    os.close(writer)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8")
    try:
        from imageprompt.cli import main
        from imageprompt.core import bundled

        try:
            code = main([one.format(adapter=bundled.adapter("base")) for one in arguments])
        except SystemExit as stopped:
            code = stopped.code
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        sys.stdout = stream
    return f"exit code {code}"


# ── environments ────────────────────────────────────────────────────────────────────────────────


def environment(**changes: str | None) -> Callable[[Any, Path], str]:
    """The command with these environment variables; None is one that is not set."""

    def use(arguments: Any, out: Path) -> str:
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        return _code_and_text(arguments)

    return use


def _code_and_text(arguments: Any) -> str:
    from imageprompt.cli import main
    from imageprompt.core import bundled

    with captured() as (out, err):
        try:
            code = main([one.format(adapter=bundled.adapter("base")) for one in arguments])
        except SystemExit as stopped:
            code = stopped.code or 0
    printed = checked(out.getvalue()) + checked(err.getvalue())
    if "Traceback" in printed or "This is a bug" in printed:
        raise AssertionError(printed)
    return f"exit code {code}\n{printed}"


def deleted_folder(arguments: Any, out: Path) -> str:
    """The current folder was deleted."""
    gone = out / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    return _code_and_text(arguments)


def read_only_folder(arguments: Any, out: Path) -> str:
    """The current folder cannot be written."""
    os.chdir("/proc")
    return _code_and_text(arguments)


def no_files_left(arguments: Any, out: Path) -> str:
    """No file can be opened any more (EMFILE)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        return _code_and_text(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


ENVIRONMENTS: dict[str, Callable[[Any, Path], str]] = {
    "no home": environment(HOME=None, XDG_DATA_HOME=None, XDG_CACHE_HOME=None, HF_HOME=None),
    "a home that is a file": environment(HOME="/dev/null"),
    "one column": environment(COLUMNS="1"),
    "no columns": environment(COLUMNS="0", LINES="0"),
    "minus one column": environment(COLUMNS="-1"),
    "a billion columns": environment(COLUMNS=str(10**9)),
    "columns in words": environment(COLUMNS="wide", LINES="high"),
    "a dumb terminal": environment(TERM="dumb", NO_COLOR="1"),
    "no locale": environment(LC_ALL="C", LANG="C"),
    "a deleted folder": deleted_folder,
    "a folder of /proc": read_only_folder,
    "no more open files": no_files_left,
}

# ── exceptions ──────────────────────────────────────────────────────────────────────────────────

RAISED: dict[str, tuple[Callable[[], BaseException], str, int]] = {
    "memory": (lambda: MemoryError(), "not enough memory", 2),
    "torch's memory": (
        lambda: RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "not enough memory",
        2,
    ),
    "a GPU's memory": (
        lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "not enough memory",
        2,
    ),
    "depth": (lambda: RecursionError("maximum recursion depth exceeded"), "nested", 2),
    "a full disk": (lambda: OSError(28, "No space left on device", "/x"), "Free some space", 2),
    "a name as bytes": (lambda: OSError(2, "No such file", b"/x\xff"), "/x", 2),
    "an error without words": (lambda: OSError(), "OSError", 2),
    "a strange number": (lambda: OSError(99999, "odd", "/x"), "odd", 2),
    "too many files": (lambda: OSError(24, "Too many open files"), "ulimit", 2),
    "unicode": (lambda: UnicodeEncodeError("ascii", "\u2028", 0, 1, "no"), "Unicode", 2),
    "bytes": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "Unicode", 2),
    "no home": (lambda: RuntimeError("Could not determine home directory."), "home folder", 2),
    "NUL": (lambda: ValueError("embedded null byte"), "NUL", 2),
    "no package": (lambda: ModuleNotFoundError("x", name="a\x1bpackage"), "not installed", 2),
    "a bug": (lambda: KeyError("a\x1b[2Jb\nc"), "IMAGEPROMPT_TRACEBACK", 2),
    "a bug with a huge message": (lambda: ValueError("\x9b" * 10**6), "bug", 2),
    "a bug whose text fails": (lambda: _Unprintable(), "_Unprintable", 2),
    "an interruption": (lambda: KeyboardInterrupt(), "interrupted", 130),
    "an exit": (lambda: SystemExit(3), "", 3),
    "a pipe": (lambda: BrokenPipeError(32, "Broken pipe"), "", 141),
    "a group": (lambda: ExceptionGroup("two", [ValueError("1"), OSError("2")]), "two", 2),
}


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def raising(name: Any, _: Path) -> str:
    """A command that meets an exception which nobody has foreseen."""
    from imageprompt import cli
    from imageprompt.cli import tables

    make, words, expected = RAISED[name]

    def fail(_: Any) -> int:
        raise make()

    tables._variants = fail
    with captured() as (out, err):
        try:
            code: Any = cli.main(["variants"])
        except SystemExit as stopped:
            code = stopped.code
    lines = checked(err.getvalue()).splitlines()
    if (
        code != expected
        or out.getvalue()
        or len(lines) > 1
        or max(map(len, lines), default=0) > 9000
    ):
        raise AssertionError((code, out.getvalue(), lines))
    if words not in err.getvalue():
        raise AssertionError(err.getvalue())
    return f"exit code {code}: {words}"


def with_traceback(name: Any, out: Path) -> str:
    """Asked for, a traceback is shown, and is printable."""
    os.environ["IMAGEPROMPT_TRACEBACK"] = "1"
    from imageprompt import cli
    from imageprompt.cli import tables

    def fail(_: Any) -> int:
        raise RAISED[name][0]()

    tables._variants = fail
    with captured() as (_, err):
        cli.main(["variants"])
    if "Traceback" not in checked(err.getvalue()):
        raise AssertionError(err.getvalue())
    return "shown"


def rows(names: Any) -> tuple[Attack, ...]:
    def given(name: str) -> Callable[[Path], str]:
        return lambda _: name

    return tuple(Attack(name, given(name), outcome="read") for name in names)


# ── names on the Hub ────────────────────────────────────────────────────────────────────────────

LOCATIONS = {
    "up": "owner/repo/../../etc/passwd",
    "up, later": "owner/repo/a/../../../x",
    "only up": "../../nosuchfolder",
    "the device namespace": r"\\.\pipe\x",
    "a URL": "https://evil.example/x.safetensors",
    "a URL without scheme": "//evil.example/x.safetensors",
    "a file URL": "file:///etc/passwd",
    "s3": "s3://bucket/key",
    "hf": "hf://owner/repo/x",
    "a Windows share": r"\\evil.example\share\x",
    "a Windows drive": r"C:\x",
    "a drive inside": "owner/repo/C:/x.safetensors",
    "an alternate stream": "owner/repo/x.safetensors:stream",
    "backslashes": r"owner/repo/..\..\x",
    "NUL": "owner/repo/a\0b",
    "a new line": "owner/repo/a\nb",
    "escape": "owner/repo/a\x1b[2J",
    "turned round": "owner/repo/a\u202eb",
    "a lone surrogate": "owner/repo/a\udc80",
    "full width": "\uff4fwner/repo/x",
    "an at sign": "owner/repo@main/x",
    "5000 characters": "o" * 5000,
    "5000 parts": "/".join("a" * 2500),
    "a million characters": "o" * 10**6,
    "nobody's home": "~nosuchuser/x",
    "dots": "a/..",
    "a dot": "./a/b",
    "spaces": " / ",
    "no name": "",
}
"""What is no name on the Hub: nothing is asked of it, though we are online."""

HUB_NAMES = {
    "query": "owner/repo/x?download=true",
    "fragment": "owner/repo/x#y",
    "percent": "owner/repo/%2e%2e/%2e%2e/x",
    "5000 characters of a repository": f"{'o' * 2500}/{'r' * 2500}/x",
}
"""What could be one, looked for without a connection."""

_SAYS = {"\\\\": "another computer", "": "no name was given", "~n": "~nosuchuser"}


def locate(text: Any, _: Path) -> str:
    """As file, folder and pipeline: not found, whether a download may be tried or not."""
    from huggingface_hub import constants

    from imageprompt.core import hub
    from imageprompt.core.errors import NotFoundError

    said = []
    constants.HF_HUB_OFFLINE = text in HUB_NAMES.values()
    for find in (hub.locate_file, hub.locate_folder, hub.locate_pipeline):
        for cached_only in (True, False):
            try:
                found = find(text, cached_only=cached_only)
                raise AssertionError(f"found {found}")
            except NotFoundError as error:
                said.append(str(error))
    if max(map(len, said)) > 5000:
        raise AssertionError(f"{max(map(len, said))} characters")
    return "\n".join(said)


# ── values of flags ─────────────────────────────────────────────────────────────────────────────

VALUES = {
    "nothing": "",
    "not a number": "nan",
    "infinity": "-inf",
    "1e999": "1e999",
    "5000 digits": "9" * 5000,
    "digits of another script": "\u0661\u0662",
    "an underscore": "1_000",
    "deep brackets": "[" * 5000,
    "deep JSON": '{"a":' * 5000,
    "colons": ":" * 5000,
    "commas": "," * 5000,
    "a million characters": "x" * 10**6,
    "a million numbers": "1," * 500_000,
    "half a character": "\udc9b",
    "escape": "\x1b[2J",
    "lines": "a\nb\r\nc",
}
FLAGGED = ("generate", "library add", "train", "presets", "probe", "demo", "validate", "convert")


def every_flag(command: Any, _: Path) -> str:
    """Every flag of a command with the value: taken as it is, or one line and exit code 2."""
    from imageprompt.cli.completion import full_parser

    name, value = command
    parser = full_parser()
    for part in name.split():
        group = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = group.choices[part]
    flags = [a for a in parser._actions if a.option_strings and a.nargs is None]
    if len(flags) < 2:
        raise AssertionError(flags)
    from imageprompt.core.errors import ImagePromptError

    for flag in flags:
        with captured() as (_, err), contextlib.suppress(ImagePromptError):
            try:
                parser.parse_known_args([f"{flag.option_strings[0]}={value}"])
            except SystemExit as stopped:
                if stopped.code != 2:
                    raise
        lines = checked(err.getvalue()).splitlines()
        if len(lines) > 1 or max(map(len, lines), default=0) > 5000:
            raise AssertionError((flag.option_strings, lines))
    return f"{len(flags)} flags"


DOORS: tuple[Door, ...] = (
    *(
        Door(
            f"command: {name} --FLAG=VALUE",
            every_flag,
            tuple(
                Attack(value, lambda _, given=(name, VALUES[value]): given, "flags", "read")
                for value in VALUES
            ),
            ("imageprompt.cli.completion",),
        )
        for name in FLAGGED
    ),
    *(
        Door(f"command: {' '.join(arguments)}", use(*arguments), paths(arguments), imports)
        for arguments, imports in COMMANDS.items()
    ),
    *(
        Door(
            f"command: {' '.join(arguments)} (written)",
            use(*arguments),
            tuple(Attack(name, make) for name, make in OUTPUTS.items()),
            imports,
        )
        for arguments, imports in WRITERS.items()
    ),
    Door(
        "command: check {it}",
        use("check", "{it}"),
        tuple(Attack(name, make, outcome="read", says="not read") for name, make in PATHS.items()),
        ("imageprompt.evaluation.image_quality.report",),
    ),
    *(
        Door(
            f"command: {' '.join(arguments)} --library {{it}}",
            use(*arguments, "--library", "{it}"),
            tuple(
                Attack(name, make, NAMES[name])
                for name, make in (LIBRARIES | {"unreadable": unreadable_folder}).items()
            ),
            _GENERATE if arguments[0] == "generate" else _LIBRARY,
        )
        for arguments in USES_LIBRARY
    ),
    *(
        Door(f"command: {name}", with_streams(*streams), commands(*SHORT, says=says))
        for name, streams, says in (
            ("stdout closed", ("", "{out}/err"), "exit code"),
            ("stderr closed", ("{out}/out", ""), "exit code"),
            ("both closed", ("", ""), "exit code"),
            ("stdout full", ("/dev/full", "{out}/err"), "exit code 2"),
            ("stderr full", ("{out}/out", "/dev/full"), "exit code"),
            ("both full", ("/dev/full", "/dev/full"), "exit code 2"),
            ("ASCII", ("{out}/out", "{out}/err", "ascii"), "exit code"),
            ("Latin 1", ("{out}/out", "{out}/err", "latin-1"), "exit code"),
        )
    ),
    Door("command: nobody reads", read_end_closed, commands(*SHORT[:10], says="exit code 141")),
    *(
        Door(f"command: {name}", make, commands(*SHORT, says="exit code"), _SHORT)
        for name, make in ENVIRONMENTS.items()
    ),
    Door("command: exceptions", raising, rows(RAISED), ("imageprompt.cli.tables",)),
    Door(
        "command: exceptions with a traceback",
        with_traceback,
        rows(("memory", "a bug", "a full disk", "a bug whose text fails")),
        ("imageprompt.cli.tables",),
    ),
    Door(
        "hub: names",
        locate,
        tuple(
            Attack(name, text(location), _SAYS.get(location[:2], ""), "read")
            for name, location in (LOCATIONS | HUB_NAMES).items()
        ),
        ("imageprompt.core.hub", "diffusers", "huggingface_hub"),
    ),
)
