"""Pictures and masks: opened, and what a recipe keeps of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import PictureError
from imageprompt.loading.recipe import Source

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.images.open_image import PictureSource


def open_references(sources: Sequence[PictureSource]) -> tuple[list[Image], tuple[Source, ...]]:
    """The pictures, opened, and what a recipe keeps of them. Raises PictureError."""
    from imageprompt.encoding.images.open_image import open_picture

    opened = [open_picture(source) for source in sources]
    kept = tuple(source_of(source) for source in sources)
    return opened, kept


def open_embeddings(sources: Sequence[Any]) -> tuple[Source, ...]:
    """What a recipe keeps of face embeddings: files or arrays. Raises NotFoundError, PictureError
    for those that cannot be read."""
    from imageprompt.encoding.face_embeddings import rows_given

    for source in sources:
        rows_given(source)
    return tuple(source_of(source) for source in sources)


def source_of(source: Any) -> Source:
    """What a recipe keeps of a picture, a mask or a file: its path if it has one, and its hash."""
    if isinstance(source, str | os.PathLike):
        return Source(name=os.fspath(source), hash=file_hash(Path(source)))
    import numpy

    if hasattr(source, "detach"):  # a tensor, wherever it lies
        source = source.detach().cpu().numpy()
    if isinstance(source, list | tuple):  # an array, written as lists
        source = numpy.asarray(source)
    data = source.tobytes() if hasattr(source, "tobytes") else bytes(source)
    return Source(name=None, hash=hashlib.sha256(data).hexdigest())


def same_file(source: Source, what: str, flag: str) -> str:
    """The path of what a recipe names, if it holds what it held. Raises PictureError."""
    shown = f"{what} {source.name!r} of the recipe"
    remedy = f"Give it again: {flag} FILE."
    if source.name is None:
        raise PictureError(shown, reason="it was an object in memory, not a file", hint=remedy)
    if not Path(source.name).is_file():
        raise PictureError(shown, reason="it is not there", hint=remedy)
    if file_hash(Path(source.name)) != source.hash:
        raise PictureError(shown, reason="it is not the picture it was", hint=remedy)
    return source.name


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
