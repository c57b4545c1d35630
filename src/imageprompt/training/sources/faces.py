"""Face embeddings that were computed before: .npy, safetensors, or torch files, never unpickled."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.errors import PictureError
from imageprompt.training.sources.blobs import Blob

_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_REMEDY = "Save it with numpy.save as 512 numbers, or as [faces, 512]."


def read_embedding(blob: Blob) -> NDArray[np.float32]:
    """One face's embedding [d], or several faces' [k, d]. Raises PictureError."""
    data = blob.read()
    try:
        values = np.asarray(_values(data), np.float32)
    except Exception as error:  # numpy, torch and safetensors each have errors of their own
        raise PictureError(
            blob.label,
            rule=f"it holds no face embedding ({type(error).__name__}: {error})",
            remedy=_REMEDY,
        ) from error
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim not in (1, 2) or 0 in values.shape or not np.isfinite(values).all():
        raise PictureError(
            blob.label,
            rule=f"a face embedding is [d] or [faces, d] and finite, this is {list(values.shape)}",
            remedy=_REMEDY,
        )
    return values


def _values(data: bytes) -> Any:
    if data.startswith(_NUMPY):
        return np.load(io.BytesIO(data), allow_pickle=False)
    import torch

    if data.startswith(_ZIP) or data[:1] == b"\x80":
        with torch.serialization.safe_globals(_array_parts()):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    else:
        from safetensors.torch import load

        (found,) = load(data).values()
    return found.float().numpy() if isinstance(found, torch.Tensor) else found


def _array_parts() -> list[Any]:
    """What a numpy array in a torch file consists of: the reference's scripts save such ones."""
    from numpy._core import multiarray

    kinds = {type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64)}
    rebuild = multiarray._reconstruct
    old = (rebuild, "numpy.core.multiarray._reconstruct")  # files of numpy 1
    return [rebuild, old, np.ndarray, np.dtype, *kinds]
