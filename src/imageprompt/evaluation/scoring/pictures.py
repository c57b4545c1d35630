"""Pictures that are scored: files or pictures in memory, known by their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import read_regular
from imageprompt.encoding.images.open_image import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".bmp", ".tif", ".tiff"))

MAX_FILE = 2**28
"""Bytes of a picture's file."""


@dataclass(frozen=True)
class Picture:
    """A picture by path or in memory; it is opened when it is needed, each time anew."""

    source: Path | Image
    name: str

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Image, name: str = "") -> Picture:
        """From a path, or from a picture in memory with a name for messages."""
        if isinstance(source, str | os.PathLike):
            return cls(Path(source), name or str(source))
        return cls(source, name or "a picture in memory")

    @cached_property
    def hash(self) -> str:
        """32 hex digits over the bytes of the file, or over the pixels in memory.

        Raises PictureError.
        """
        if not isinstance(self.source, Path):
            picture = self.source.convert("RGB")
            return _hash(f"{picture.size}".encode() + picture.tobytes())
        try:
            return _hash(read_regular(self.source, MAX_FILE))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise PictureError(self.name, reason=f"cannot be read: {reason}") from error

    def open(self) -> Image:
        """An upright, opaque RGB picture. Raises PictureError."""
        return open_picture(self.source)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def pictures_in(path: str | os.PathLike[str]) -> list[Picture]:
    """The picture at a path, or all pictures of a folder and its folders, sorted by path.

    Their names are relative to the folder. Raises NotFoundError if there is nothing at the path,
    PictureError if the folder has no pictures.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise no_such_file(root)
    if not root.is_dir():
        return [Picture(root, root.name)]
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise PictureError(
            f"{root}",
            reason="no pictures in this folder",
            hint="Name one that has PNG, JPEG or WEBP files.",
        )
    return [Picture(file, file.relative_to(root).as_posix()) for file in files]


def paired(
    pictures: Sequence[Picture], references: Sequence[Picture]
) -> list[tuple[Picture, Picture]]:
    """Each picture with its reference: one for all, or the one of the same name without suffix.

    Raises OptionError that lists what has no counterpart.
    """
    if len(references) == 1:
        return [(picture, references[0]) for picture in pictures]
    if len(pictures) == 1:
        return [(pictures[0], reference) for reference in references]
    by_stem = {_stem(reference): reference for reference in references}
    missing = [picture.name for picture in pictures if _stem(picture) not in by_stem]
    stems = {_stem(picture) for picture in pictures}
    spare = [one.name for stem, one in by_stem.items() if stem not in stems]
    if missing or spare or len(by_stem) < len(references):
        alone = ", ".join([*missing, *spare][:10]) or "two references of one name"
        raise OptionError(
            f"{len(pictures)} pictures and {len(references)} references",
            reason=f"not in pairs: {alone}{' ...' if len(missing) + len(spare) > 10 else ''}",
            hint="Give the picture and its reference the same name, or compare whole sets.",
        )
    return [(picture, by_stem[_stem(picture)]) for picture in pictures]


def _stem(picture: Picture) -> str:
    return Path(picture.name).with_suffix("").as_posix()
