"""Names of styles, the library's folder, and its lock: one process writes at a time."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imageprompt.core.atomic_files import check_folder, locked, sweep
from imageprompt.core.errors import NotFoundError, OptionError

MAX_NAME = 100  # characters
MAX_NAME_BYTES = 200  # in UTF-8; file systems allow 255, and temporary files have longer names
MAX_TAG, MAX_TAGS = 60, 50
_FORBIDDEN = '/\\:*?"<>|'
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{i}" for port in ("com", "lpt") for i in range(10)
}


def checked_name(name: object) -> str:
    """The name in Unicode's composed form (NFC). Raises OptionError for an unsafe one."""
    if not isinstance(name, str):
        raise OptionError(f"style name of type {type(name).__name__}", reason="not a text")
    name = unicodedata.normalize("NFC", name)
    if reason := _fault(name):
        raise OptionError(
            f"style name {name[:MAX_NAME]!r}",
            reason=reason,
            hint="Use letters, digits, spaces, '-' and '_'.",
        )
    return name


def _fault(name: str) -> str:
    """Why this cannot be a file name on every system; "" if it can."""
    forbidden = [character for character in name if character in _FORBIDDEN]
    faults = {
        "the name is empty": not name,
        f"longer than {MAX_NAME} characters or {MAX_NAME_BYTES} bytes": len(name) > MAX_NAME
        or len(name.encode(errors="replace")) > MAX_NAME_BYTES,
        "contains characters that cannot be printed": not name.isprintable(),
        f"a file name cannot contain {forbidden[0] if forbidden else ''}": bool(forbidden),
        "a name cannot start with '.' or '-'": name.startswith((".", "-")),
        "a name cannot start or end with a space, or end with '.'": name != name.strip()
        or name.endswith("."),
        # Windows ignores spaces before the suffix, and takes superscript digits for digits
        "Windows reserves this name for a device": folded(name.partition(".")[0].rstrip())
        in _DEVICES,
    }
    return next((reason for reason, broken in faults.items() if broken), "")


def checked_tags(tags: object) -> tuple[str, ...]:
    """The tags without duplicates, in order. Raises OptionError."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise OptionError(f"tags {tags!r:.60}", reason="not a list of texts")
    found = tuple(dict.fromkeys(_tag(tag) for tag in tags))
    if len(found) > MAX_TAGS:
        raise OptionError(f"{len(found)} tags", reason=f"a style can have at most {MAX_TAGS}")
    return found


def _tag(tag: object) -> str:
    plain = unicodedata.normalize("NFC", tag).strip() if isinstance(tag, str) else ""
    if not plain or len(plain) > MAX_TAG or not plain.isprintable() or "," in plain:
        raise OptionError(
            f"tag {tag!r:.80}",
            reason=f"not 1 to {MAX_TAG} printable characters without commas",
        )
    return plain


def folded(text: str) -> str:
    """For comparison: ignores case and the Unicode form."""
    return unicodedata.normalize("NFKC", text).casefold()


def same_name(name: str, names: Iterable[str]) -> str | None:
    """The first of `names` that equals `name`, or that some file systems confuse with it."""
    return next((other for other in names if folded(other) == folded(name)), None)


def no_such_style(name: str, names: Iterable[str], folder: object) -> NotFoundError:
    """An error that suggests the name that was probably meant."""
    known = {folded(other): other for other in names}
    near = difflib.get_close_matches(folded(name), known, n=1, cutoff=0.5)
    hint = "Add one: imageprompt library add NAME PICTURE."
    if known:
        hint = "See imageprompt library list."
    if near:
        hint = f"Did you mean {known[near[0]]!r}?"
    return NotFoundError(f"style {name!r}", reason=f"not in {folder}", hint=hint)


VARIABLE = "IMAGEPROMPT_LIBRARY"
PRECOMPUTED = ".prepared"  # the folder of precomputed K', V' beside the styles
SUFFIX = ".safetensors"
MAX_STYLES = 10_000
"""In a folder. Describing one takes about 0.2 ms."""
_LOCK = ".lock"
_LOCK_TIMEOUT = 30.0  # seconds; a write takes milliseconds


def default_folder() -> Path:
    """$IMAGEPROMPT_LIBRARY, or `imageprompt/library` in the platform's folder for user data.

    Raises OptionError for a user without a home folder.
    """
    configured = os.environ.get(VARIABLE)
    if configured:
        return expanded(configured)
    try:
        return _data_folder() / "imageprompt" / "library"
    except RuntimeError:
        raise OptionError(
            "the style library",
            reason="you have no home folder",
            hint=f"Set {VARIABLE} to a folder.",
        ) from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the home folder for ~. Raises OptionError for a user that does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(
            f"path {os.fspath(path)!r}",
            reason="there is no such home folder",
            hint="Write the path in full.",
        ) from error


def _data_folder() -> Path:
    if sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data


def names_in(folder: Path) -> list[str]:
    """The names of the styles in a folder, in alphabetical order; none if there is no folder.

    Raises OptionError for a folder that cannot be read, and for more than MAX_STYLES.
    """
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries]
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []  # the first style will create it
        raise OptionError(
            f"library {str(folder)!r}",
            reason=f"cannot be read ({getattr(error, 'strerror', None) or error})",
            hint="Check its path and permissions.",
        ) from error
    names = [file[: -len(SUFFIX)] for file in files if file.endswith(SUFFIX)]
    if len(names) > MAX_STYLES:
        raise OptionError(
            f"library {str(folder)!r}",
            reason=f"has {len(names)} styles; the limit is {MAX_STYLES}",
            hint="Move some to another folder.",
        )
    return sorted((name for name in names if not name.startswith(".")), key=folded)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Lock the folder for writing; creates it, and removes temporary files of killed processes.

    Raises OptionError if it cannot be written, or another process holds the lock for too long.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if has_precomputed(folder):
        sweep(folder / PRECOMPUTED)
    with locked(
        folder / _LOCK,
        f"library {str(folder)!r}",
        timeout=_LOCK_TIMEOUT,
        reason=f"locked by another process for {_LOCK_TIMEOUT:g} s",
    ):
        yield


def has_precomputed(folder: Path) -> bool:
    """Is there a folder of precomputed K', V'? A link is not: it may lead anywhere."""
    precomputed = folder / PRECOMPUTED
    return precomputed.is_dir() and not precomputed.is_symlink()


def precomputed_files(folder: Path, style_hash: str) -> list[Path]:
    """The files of precomputed K', V' for tokens of this hash."""
    if not has_precomputed(folder):
        return []
    return list((folder / PRECOMPUTED).glob(f"{style_hash[:32]}-*{SUFFIX}"))
