"""Pictures, masks and files: opened, and what a recipe keeps of each."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import PictureError
from imageprompt.core.untrusted import open_regular
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.images.open_image import PictureSource


def open_references(
    sources: Sequence[PictureSource],
) -> tuple[list[Image], tuple[AssetRecord, ...]]:
    """The pictures and their records; each file is read once. Raises PictureError."""
    from imageprompt.encoding.images.open_image import open_with_hash

    opened, records = [], []
    for source in sources:
        picture, digest = open_with_hash(source)
        opened.append(picture)
        records.append(AssetRecord(name=path_of(source), hash=digest))
    return opened, tuple(records)


def open_embeddings(sources: Sequence[Any]) -> tuple[AssetRecord, ...]:
    """The records of face embeddings: files or arrays.

    Raises NotFoundError, PictureError if one cannot be read.
    """
    if not sources:
        return ()
    from imageprompt.encoding.face_embeddings import load_embeddings

    for source in sources:
        load_embeddings(source)
    return tuple(record_of(source) for source in sources)


def record_of(source: Any) -> AssetRecord:
    """What a recipe keeps of a picture, mask, array or file: its path if it has one, its hash."""
    if isinstance(source, str | os.PathLike):
        return AssetRecord(name=os.fspath(source), hash=file_hash(Path(source)))
    import numpy

    if hasattr(source, "read"):  # an open file
        from imageprompt.encoding.images.arrays import read_file
        from imageprompt.encoding.images.open_image import MAX_FILE_BYTES, describe

        source = read_file(source, describe(source), MAX_FILE_BYTES + 1)
    if hasattr(source, "detach"):  # a tensor on any device
        source = source.detach().cpu().numpy()
    if isinstance(source, list | tuple):  # an array written as lists
        source = numpy.asarray(source)
    data = source.tobytes() if hasattr(source, "tobytes") else bytes(source)
    return AssetRecord(name=None, hash=hashlib.sha256(data).hexdigest())


def path_of(source: object) -> str | None:
    """The path of a file; None for an object in memory."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def resolve_file(record: AssetRecord, what: str, flag: str) -> str:
    """The path of a file in a recipe, if its content is unchanged. Raises PictureError."""
    shown = f"{what} {record.name!r:.300} of the recipe"
    hint = f"Give it again: {flag} FILE."
    if record.name is None:
        raise PictureError(shown, reason="was an object in memory, not a file", hint=hint)
    try:
        now = file_hash(Path(record.name))
    except FileNotFoundError:
        raise PictureError(shown, reason="no such file", hint=hint) from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise PictureError(shown, reason=f"cannot be read ({cause})", hint=hint) from None
    if now != record.hash:
        raise PictureError(shown, reason="the file has changed", hint=hint)
    return record.name


MAX_ASSET_BYTES = 512 * 2**20  # face embeddings may be larger than any picture


def file_hash(path: Path, limit: int | None = MAX_ASSET_BYTES) -> str:
    """The SHA-256 of a regular file, in hex. Raises OSError, ValueError for a NUL in the path.

    `limit` None is for a file that was read already, such as an adapter: some have gigabytes.
    """
    with open_regular(path) as stream:
        if limit is not None and os.fstat(stream.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit // 2**20} MiB")
        return hashlib.file_digest(stream, "sha256").hexdigest()
