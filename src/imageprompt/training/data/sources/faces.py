"""Face embeddings that were computed before: .npy, safetensors, or torch files, never unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from imageprompt.checkpoint.read.arrays import read_arrays
from imageprompt.core.errors import AdapterFileError, NotFoundError, PictureError
from imageprompt.training.data.sources.blobs import Blob

MAX_NUMBERS = 256 * 512
_REMEDY = "Save it with numpy.save as 512 numbers, or as [faces, 512]."


def read_embedding(blob: Blob) -> NDArray[np.float32]:
    """One face's embedding [d], or several faces' [k, d]. Raises PictureError."""
    try:
        with _as_file(blob) as path:
            arrays = read_arrays(path, MAX_NUMBERS)
    except (AdapterFileError, NotFoundError) as error:
        why = error.reason.removeprefix("not an adapter file: ")
        raise PictureError(
            blob.label, reason=f"it holds no face embedding ({why})", hint=_REMEDY
        ) from None
    if len(arrays) != 1:
        raise PictureError(
            blob.label, reason=f"it holds {len(arrays)} arrays, not one", hint=_REMEDY
        )
    (values,) = arrays
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim not in (1, 2) or 0 in values.shape or not np.isfinite(values).all():
        raise PictureError(
            blob.label,
            reason=f"a face embedding is [d] or [faces, d] and finite, this is {list(values.shape)}",
            hint=_REMEDY,
        )
    return values


@contextmanager
def _as_file(blob: Blob) -> Iterator[Path]:
    """Its file; for a stretch of a shard one of its own, for the moment."""
    source = blob.source()
    if isinstance(source, Path):
        yield source
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "face"
        path.write_bytes(source)
        yield path
