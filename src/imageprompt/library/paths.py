"""Where a library lies, and who may write to it: one process at a time."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import NotFoundError, OptionError

MAX_NAME = 100  # characters
MAX_NAME_BYTES = 200  # in UTF-8; file systems take 255, and temporary files have longer names
MAX_TAG, MAX_TAGS = 60, 50
_FORBIDDEN = '/\\:*?"<>|'
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{i}" for port in ("com", "lpt") for i in range(10)
}


def checked_name(name: object) -> str:
    """The name in Unicode's composed form (NFC). Raises OptionError for one that is not safe."""
    if not isinstance(name, str):
        raise OptionError(f"style name of type {type(name).__name__}", reason="a name is a text")
    name = unicodedata.normalize("NFC", name)
    if reason := _fault(name):
        raise OptionError(
            f"style name {name[:MAX_NAME]!r}",
            reason=reason,
            hint="Use letters, digits, spaces, '-' and '_'.",
        )
    return name


def _fault(name: str) -> str:
    """Why this cannot be a file's name everywhere; "" if it can."""
    odd = [character for character in name if character in _FORBIDDEN]
    faults = {
        "a name has at least one character": not name,
        f"longer than {MAX_NAME} characters or {MAX_NAME_BYTES} bytes": len(name) > MAX_NAME
        or len(name.encode(errors="replace")) > MAX_NAME_BYTES,
        "it has characters that cannot be shown": not name.isprintable(),
        f"a file's name cannot have {odd[0] if odd else ''} in it": bool(odd),
        "a name begins with neither '.' nor '-'": name.startswith((".", "-")),
        "a name neither begins nor ends in a space, nor ends in '.'": name != name.strip()
        or name.endswith("."),
        "Windows keeps this name for a device": name.partition(".")[0].casefold() in _DEVICES,
    }
    return next((rule for rule, broken in faults.items() if broken), "")


def checked_tags(tags: object) -> tuple[str, ...]:
    """The tags, each once, in the order given. Raises OptionError."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise OptionError(f"tags {tags!r:.60}", reason="tags are a list of texts")
    found = tuple(dict.fromkeys(_tag(tag) for tag in tags))
    if len(found) > MAX_TAGS:
        raise OptionError(f"{len(found)} tags", reason=f"a style has at most {MAX_TAGS}")
    return found


def _tag(tag: object) -> str:
    plain = unicodedata.normalize("NFC", tag).strip() if isinstance(tag, str) else ""
    if not plain or len(plain) > MAX_TAG or not plain.isprintable() or "," in plain:
        raise OptionError(
            f"tag {tag!r:.80}",
            reason=f"a tag is a text of 1 to {MAX_TAG} characters that can be shown, without commas",
        )
    return plain


def folded(text: str) -> str:
    """For comparison: two texts that differ in case or in Unicode's form alone are the same."""
    return unicodedata.normalize("NFKC", text).casefold()


def namesake(name: str, names: Iterable[str]) -> str | None:
    """One of `names` that some file systems cannot tell from `name`, or that is `name`."""
    return next((other for other in names if folded(other) == folded(name)), None)


def no_such_style(name: str, names: Iterable[str], folder: object) -> NotFoundError:
    """Tells which name was likely meant."""
    known = {folded(other): other for other in names}
    near = difflib.get_close_matches(folded(name), known, n=1, cutoff=0.5)
    remedy = "Add one: imageprompt library add NAME PICTURE."
    if known:
        remedy = "imageprompt library list shows what there is."
    if near:
        remedy = f"Did you mean {known[near[0]]!r}?"
    return NotFoundError(f"style {name!r}", reason=f"it is not in {folder}", hint=remedy)


VARIABLE = "IMAGEPROMPT_LIBRARY"
PREPARED = ".prepared"  # the folder of K', V' beside the styles
_LOCK = ".lock"
_TEMPORARY = ".*.????????.tmp.safetensors"  # as `write_atomically` names them
_OF_SAFETENSORS = ".tmp??????"
_PATIENCE = 30.0  # seconds; a write takes milliseconds


def default_folder() -> Path:
    """$IMAGEPROMPT_LIBRARY, or `imageprompt/library` where the platform keeps users' data."""
    told = os.environ.get(VARIABLE)
    if told:
        return Path(told).expanduser()
    if sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "imageprompt" / "library"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder, made where it is missing; what killed processes left is swept first.

    Raises OptionError where nothing can be written, or another process holds it for too long.
    """
    from filelock import FileLock, Timeout

    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=_PATIENCE):
            kept = folder / PREPARED
            left = [path for place in (folder, kept) for path in place.glob(_TEMPORARY)]
            for path in (*left, *kept.glob(_OF_SAFETENSORS)):
                path.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise OptionError(
            f"library {str(folder)!r}",
            reason=f"another process has held it for {_PATIENCE:g} s",
            hint="Try again when it is done.",
        ) from error


def prepared_of(folder: Path, style_hash: str) -> list[Path]:
    """The files of K', V' that are kept for tokens of this hash."""
    return list((folder / PREPARED).glob(f"{style_hash[:32]}-*.safetensors"))
