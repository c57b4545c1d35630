"""What a file really is when it holds no tensors that we read: told by content, never by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from imageprompt.core.errors import AdapterFileError

GIVE_AN_ADAPTER = "Give an image-prompt adapter file."
_PAGE = "Download the file itself, not its page."
_PICTURE = "Give it as the reference instead."
_UNPACK = "Unpack it and give the file inside."
_STARTS = (
    (b"version https://git-lfs", "a git-LFS pointer", "Fetch the file: git lfs pull."),
    (b"<!doctype html", "a web page", _PAGE),
    (b"<html", "a web page", _PAGE),
    (b"<svg", "an SVG drawing", "Give a PNG, JPEG or WEBP picture as the reference."),
    (b"<?xml", "an XML document", _PAGE),
    (b"\x89png", "a picture", _PICTURE),
    (b"\xff\xd8\xff", "a picture", _PICTURE),
    (b"gif8", "a picture", _PICTURE),
    (b"riff", "a picture or a sound", _PICTURE),
    (b"gguf", "a GGUF model", "Give an adapter in .safetensors or .bin."),
    (b"ggml", "a GGML model", "Give an adapter in .safetensors or .bin."),
    (b"\x89hdf", "an HDF5 file, as Keras writes them", GIVE_AN_ADAPTER),
    (b"\x93numpy", "one numpy array", GIVE_AN_ADAPTER),
    (b"%pdf", "a PDF document", GIVE_AN_ADAPTER),
    (b"\x7felf", "a program", GIVE_AN_ADAPTER),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"bzh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zxz", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7-zip archive", _UNPACK),
    (b"rar!", "a RAR archive", _UNPACK),
)
_ZIPS = (
    (r"(^|/)constants\.pkl$", "a TorchScript program", "Save its state_dict() instead."),
    (r"(^|/)archive_format$", "an exported torch program", "Save its state_dict() instead."),
    (r"\.npy$", "a numpy .npz archive", GIVE_AN_ADAPTER),
    (r"\.(safetensors|bin|pt|pth|ckpt)$", "a zip archive with weights inside", _UNPACK),
    (r"^\[Content_Types\]\.xml$", "an office document", GIVE_AN_ADAPTER),
    (r"^META-INF/", "a Java archive", GIVE_AN_ADAPTER),
)
_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\((dp|lp|i|S|c)|[}\]]q")


def refuse(path: Path, why: str, remedy: str = GIVE_AN_ADAPTER) -> NoReturn:
    """The one way in which a file is turned down here."""
    raise AdapterFileError(str(path), reason=f"not an adapter file: {why}", hint=remedy) from None


def looks_like_old_pickle(start: bytes) -> bool:
    """Protocols 0 and 1 have no magic number; torch never wrote them, but people with ideas do."""
    return _PICKLE.match(start) is not None


def explain_bytes(path: Path, start: bytes, size: int) -> NoReturn:
    """Turn down a file by its first bytes (at least 512 of them, or all)."""
    lowered = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what, remedy in _STARTS:
        if lowered.startswith(magic):
            refuse(path, f"it is {what}", remedy)
    if start[257:262] == b"ustar":
        refuse(path, "it is a tar archive", _UNPACK)
    if not start.strip(b"\0"):
        refuse(path, "it begins with zeros only, as a broken download does", "Download it again.")
    if lowered.startswith(b"{"):
        refuse(path, "it is JSON text, not weights", "Give the weights that it describes.")
    if _is_text(start):
        line = " ".join(start.decode(errors="replace").split())[:60]
        refuse(path, f"it is text ({line!r})", GIVE_AN_ADAPTER)
    refuse(path, f"its {size} bytes are no safetensors file and no torch file")


def explain_zip(path: Path, names: Iterable[str]) -> NoReturn:
    """Turn down a zip archive without a torch pickle, by its records."""
    names = list(names)
    for pattern, what, remedy in _ZIPS:
        if any(re.search(pattern, name) for name in names):
            refuse(path, f"it is {what}", remedy)
    first = ", ".join(repr(name[:60]) for name in names[:3])
    refuse(path, f"it is a zip archive that torch did not write ({first or 'empty'})")


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # a character cut at the end is still text
            return False
        text = start[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
