"""Face embeddings: read from files, arrays or pictures; checked, and normalised if needed.

An embedding is ArcFace's description of one aligned face, 512 numbers. FaceID adapters and portrait
read it at length 1, portrait-unnorm as the recogniser makes it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageprompt.checkpoint.read.arrays import read_arrays
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import (
    AdapterFileError,
    EncoderError,
    NotFoundError,
    PictureError,
    PromptError,
)
from imageprompt.core.spec import AdapterSpec
from imageprompt.encoding.encoders.contract import FaceChoice
from imageprompt.encoding.references import Pictures, by_prompt
from imageprompt.variants.tensor_shapes import FACE_DIM

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.face_encoder import Face, FaceEncoder

MAX_FACES = 256
LENGTH_TOLERANCE = 1e-2  # half precision and rounding; ArcFace's own are 10 to 30 long
_HINT = "Save it with numpy.save as [512] for one face, or as [faces, 512]."

Embedding = str | os.PathLike[str] | Tensor | NDArray[Any]
"""A file, or an array [512] or [n, 512]."""
Embeddings = Embedding | Sequence[Embedding] | Sequence[Sequence[Embedding]]
"""One, a list (the faces of one prompt), or a list of lists (of several prompts)."""


def read_embeddings(path: str | os.PathLike[str]) -> Tensor:
    """[n, 512] float32, unchanged, from a .npy, .safetensors, torch or JSON file.

    Raises NotFoundError, PictureError.
    """
    file = Path(path)
    label = f"face embeddings {str(file)!r}"
    try:
        arrays = read_arrays(file, MAX_FACES * FACE_DIM)
    except AdapterFileError as error:
        raise _refused(label, error.reason.removeprefix("not an adapter file: ")) from None
    return torch.from_numpy(_stack_rows(arrays, label))


def load_embeddings(source: object) -> Tensor:
    """[n, 512] from a file or an array. Raises NotFoundError, PictureError."""
    if isinstance(source, str | os.PathLike):
        return read_embeddings(source)
    label = f"face embeddings of type {type(source).__name__}"
    if isinstance(source, Tensor) and source.is_floating_point():
        source = source.detach().float().cpu().numpy()
    if not isinstance(source, np.ndarray) or source.dtype.kind != "f":
        raise _refused(label, "neither a file nor an array of floating-point numbers")
    return torch.from_numpy(_stack_rows([source.astype(np.float32)], label))


def save_embeddings(path: Path, faces: Sequence[Face], *, raw: bool = False) -> None:
    """Write the embeddings of faces as [n, 512] in .npy, at length 1 unless `raw`.

    Raises NotFoundError if the folder does not exist.
    """
    rows = _rows_of(faces)
    rows = rows if raw else torch.nn.functional.normalize(rows, dim=-1)
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), reason="no such folder", hint="Create it first.")
    content = io.BytesIO()
    np.save(content, rows.numpy())
    with write_atomically(path) as temporary:
        temporary.write_bytes(content.getvalue())


def prompt_embeddings(embeddings: Embeddings, spec: AdapterSpec) -> list[Tensor]:
    """The faces of every prompt as this adapter reads them: [n, 512] each, or raw [n, 1, 512].

    Scales embeddings to length 1 if the adapter needs that, with one warning. Raises NotFoundError,
    PictureError.
    """
    groups = [torch.cat([load_embeddings(one) for one in group]) for group in by_prompt(embeddings)]
    lengths = torch.cat([rows.norm(dim=-1) for rows in groups])
    normalised = (lengths - 1).abs() <= LENGTH_TOLERANCE
    if not spec.feature.normalises_faces:
        if normalised.any():
            raise PictureError(
                "face embeddings of length 1",
                reason=f"{spec.variant} reads them as the recogniser makes them, 10 to 30 long",
                hint="Give insightface's face.embedding, not its normed_embedding.",
            )
    elif normalised.all():
        return groups
    else:
        worst = float(lengths[(lengths - 1).abs().argmax()])
        warnings.warn(
            f"{int((~normalised).sum())} face embedding(s) of length {worst:.3g} were scaled to 1, "
            f"as {spec.variant} needs",
            stacklevel=2,
        )
    return [_as_input(rows, spec) for rows in groups]


def faces_in(
    pictures: Pictures | None, encoder: FaceEncoder | None, face: FaceChoice, spec: AdapterSpec
) -> tuple[list[Tensor], list[list[Image]]]:
    """The faces in every prompt's pictures as this adapter reads them, [n, 512] each, and the crops
    of those faces. Raises PictureError, EncoderError."""
    groups = by_prompt(pictures)
    if encoder is None:
        raise EncoderError(
            f"pictures for a {spec.variant} adapter",
            reason="it reads face embeddings, which need a face recogniser",
            hint="Give insightface's model pack, attach(pipe, faces=PACK) or --faces PACK, or "
            "ready-made embeddings.",
        )
    found = [[one for source in group for one in encoder.choose(source, face)] for group in groups]
    rows = [_as_input(_rows_of(faces), spec) for faces in found]
    return rows, [[one.crop() for one in faces] for faces in found]


def check_crops(faces: list[int], crops: list[int], spec: AdapterSpec) -> None:
    """Raises PromptError for prompts with different numbers of embeddings and of face crops."""
    if faces != crops:
        raise PromptError(
            f"{sum(faces)} face embedding(s) beside {sum(crops)} picture(s)",
            reason=f"{spec.variant} reads one picture of each face",
            hint="Give the faces' crops in the order of their embeddings.",
        )


def _rows_of(faces: Sequence[Face]) -> Tensor:
    """[n, 512] of detected faces; a pack may hold a recogniser of another width."""
    return torch.from_numpy(_stack_rows([face.embedding.numpy() for face in faces], "found faces"))


def _stack_rows(arrays: Sequence[NDArray[np.float32]], label: str) -> NDArray[np.float32]:
    """[n, 512] of all arrays. Raises PictureError."""
    for array in arrays:
        if array.ndim not in (1, 2) or array.shape[-1] != FACE_DIM or 0 in array.shape:
            shape = list(array.shape)
            raise _refused(label, f"the shape is {shape}, not [{FACE_DIM}] or [faces, {FACE_DIM}]")
    rows = np.concatenate([array.reshape(-1, FACE_DIM) for array in arrays]) if arrays else None
    if rows is None or len(rows) > MAX_FACES:
        count = 0 if rows is None else len(rows)
        raise _refused(label, f"{count} faces, not 1 to {MAX_FACES}")
    odd = [i for i, row in enumerate(rows) if not (np.isfinite(row).all() and row.any())]
    if odd:
        problem = "zero" if not rows[odd[0]].any() else "not finite"
        raise _refused(label, f"face {odd[0]} is {problem}")
    return np.ascontiguousarray(rows)


def _as_input(rows: Tensor, spec: AdapterSpec) -> Tensor:
    """[n, 512] at length 1; or raw, as sequences of one face, [n, 1, 512]."""
    if spec.feature.normalises_faces:
        return torch.nn.functional.normalize(rows, dim=-1)
    return rows[:, None]


def _refused(what: str, reason: str) -> PictureError:
    return PictureError(what, reason=reason, hint=_HINT)
