"""Where a library lies, and who may write to it: one process at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imageprompt.errors import OptionError
from imageprompt.files import check_folder

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
            rule=f"another process has held it for {_PATIENCE:g} s",
            remedy="Try again when it is done.",
        ) from error


def prepared_of(folder: Path, style_hash: str) -> list[Path]:
    """The files of K', V' that are kept for tokens of this hash."""
    return list((folder / PREPARED).glob(f"{style_hash[:32]}-*.safetensors"))
