"""Identity embeddings of faces: from files, arrays or pictures; checked, and normed if need be.

An embedding is what ArcFace makes of one aligned face, 512 numbers. FaceID adapters and portrait
read it at length 1, portrait-unnorm as it came.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
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
from imageprompt.encoding.encoders.face import LARGEST, Choice, Face, FaceEncoder, check_choice
from imageprompt.encoding.references import Pictures, groups_of

MAX_FACES = 256
WIDTH = 512
LENGTH_TOLERANCE = 1e-2  # half precision and rounding; ArcFace's raw ones are 10 to 30 long
_REMEDY = "Save it with numpy.save as 512 numbers a face, or as [faces, 512]."

Embedding = str | os.PathLike[str] | Tensor | NDArray[Any]
"""A file, or an array [512] or [n, 512]."""
Embeddings = Embedding | Sequence[Embedding] | Sequence[Sequence[Embedding]]
"""One, or a list: the faces of one prompt; a list of lists: several prompts'."""


def read_embeddings(path: str | os.PathLike[str]) -> Tensor:
    """[n, 512] float32, as they are in a .npy, .safetensors, torch or JSON file.

    Raises NotFoundError, PictureError.
    """
    file = Path(path)
    try:
        arrays = read_arrays(file, MAX_FACES * WIDTH)
    except AdapterFileError as error:
        why = error.reason.removeprefix("not an adapter file: ")
        raise _refused(f"face embeddings {str(file)!r}", why) from None
    return torch.from_numpy(_rows(arrays, f"face embeddings {str(file)!r}"))


def save_embeddings(path: Path, faces: Sequence[Face], *, raw: bool = False) -> None:
    """Write the embeddings of faces as [n, 512] in .npy, at length 1 unless they are wanted raw."""
    rows = _stacked(faces)
    rows = rows if raw else torch.nn.functional.normalize(rows, dim=-1)
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), reason="no such folder", hint="Create it first.")
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows.numpy())


def reads_pictures(spec: AdapterSpec) -> bool:
    """Does this adapter of faces read features of their pictures, beside the embeddings?"""
    return spec.projector.face_dim > 0


def embeddings_of(given: Embeddings, spec: AdapterSpec) -> list[Tensor]:
    """The faces of every prompt as this adapter reads them, [n, 512] each or raw [n, 1, 512].

    What is not of length 1 is scaled to it where the adapter wants that, with one warning. Raises
    NotFoundError, PictureError.
    """
    read = [torch.cat([rows_given(one) for one in group]) for group in groups_of(given)]
    lengths = torch.cat([rows.norm(dim=-1) for rows in read])
    normed = (lengths - 1).abs() <= LENGTH_TOLERANCE
    if not spec.feature.normalises_faces and normed.any():
        raise PictureError(
            "face embeddings of length 1",
            reason=f"{spec.variant} reads them as the recogniser made them, 10 to 30 long",
            hint="Give insightface's face.embedding, not its normed_embedding.",
        )
    if spec.feature.normalises_faces and not normed.all():
        worst = float(lengths[(lengths - 1).abs().argmax()])
        warnings.warn(
            f"{int((~normed).sum())} face embedding(s) of length {worst:.3g} were scaled to 1, "
            f"as {spec.variant} reads them",
            stacklevel=2,
        )
    return (
        read
        if spec.feature.normalises_faces and normed.all()
        else [_as_read(r, spec) for r in read]
    )


def faces_in(
    pictures: Pictures | None, finder: FaceEncoder | None, which: Choice, spec: AdapterSpec
) -> tuple[list[Tensor], list[list[Image]]]:
    """The faces in every prompt's pictures as this adapter reads them, [n, 512] each, and each face
    upright in a square. Raises PictureError, EncoderError."""
    groups = groups_of(pictures)
    if finder is None:
        raise EncoderError(
            f"pictures for a {spec.variant} adapter",
            reason="it reads embeddings of faces, which a face recogniser makes",
            hint="Give insightface's model pack, attach(pipe, faces=PACK) or --faces PACK, or "
            "their embeddings.",
        )
    found = [
        [face for source in group for face in finder.choose(source, which)] for group in groups
    ]
    rows = [_as_read(_stacked(faces), spec) for faces in found]
    return rows, [[face.crop() for face in faces] for faces in found]


def check_crops(faces: list[int], crops: list[int], spec: AdapterSpec) -> None:
    """Raises PromptError where prompts have other numbers of embeddings than of pictures."""
    if faces != crops:
        raise PromptError(
            f"{sum(faces)} face embedding(s) beside {sum(crops)} picture(s)",
            reason=f"{spec.variant} reads one picture of each face",
            hint="Give the faces' crops in the order of their embeddings.",
        )


def check_faces(
    spec: AdapterSpec, pictures: object, embeddings: object, face: Choice, *, framed: bool
) -> None:
    """What the variant has no use for, or lacks; `framed` pictures are prepared or masked. Raises
    PromptError, OptionError."""
    check_choice(face)
    given, of_faces = embeddings is not None, spec.feature.reads_faces
    both, variant = reads_pictures(spec), f"a {spec.variant} adapter"
    for wrong, what, rule, remedy in (
        (
            given and not of_faces,
            f"face embeddings for {variant}",
            f"it reads {spec.feature} of pictures",
            "Give the pictures.",
        ),
        (
            given and pictures is not None and not both,
            f"pictures beside embeddings for {variant}",
            "it reads embeddings alone",
            "Give one of the two.",
        ),
        (
            given and pictures is None and both,
            f"embeddings without pictures for {variant}",
            "its image encoder is shown the faces as well",
            "Give their crops too: encode([crop], embeddings=...).",
        ),
        (
            framed and of_faces and not both,
            f"framing= or reference_mask= with {variant}",
            "it reads embeddings of faces, which are found in whole pictures",
            "Leave it out.",
        ),
        (
            face != LARGEST and (given or not of_faces),
            f"face={face!r}",
            "it chooses among the faces that are found in a picture",
            "Leave it out.",
        ),
    ):
        if wrong:
            raise PromptError(what, reason=rule, hint=remedy)


def rows_given(given: object) -> Tensor:
    """[n, 512] of a file or an array. Raises NotFoundError, PictureError."""
    if isinstance(given, str | os.PathLike):
        return read_embeddings(given)
    label = f"face embeddings of type {type(given).__name__}"
    if isinstance(given, Tensor) and given.is_floating_point():
        given = given.detach().float().cpu().numpy()
    if not isinstance(given, np.ndarray) or given.dtype.kind != "f":
        raise _refused(label, "they are a file, or an array of floating-point numbers")
    return torch.from_numpy(_rows([given.astype(np.float32)], label))


def _stacked(faces: Sequence[Face]) -> Tensor:
    """[n, 512] of faces that were found; a pack may hold another recogniser."""
    return torch.from_numpy(_rows([face.embedding.numpy() for face in faces], "faces as found"))


def _rows(arrays: Sequence[NDArray[np.float32]], label: str) -> NDArray[np.float32]:
    """[n, 512] of all arrays in a row. Raises PictureError."""
    for array in arrays:
        if array.ndim not in (1, 2) or array.shape[-1] != WIDTH or 0 in array.shape:
            shape = list(array.shape)
            raise _refused(label, f"an embedding is [{WIDTH}] or [faces, {WIDTH}], this is {shape}")
    rows = np.concatenate([array.reshape(-1, WIDTH) for array in arrays]) if arrays else None
    if rows is None or len(rows) > MAX_FACES:
        raise _refused(
            label, f"{0 if rows is None else len(rows)} faces; 1 to {MAX_FACES} are read"
        )
    odd = [i for i, row in enumerate(rows) if not (np.isfinite(row).all() and row.any())]
    if odd:
        raise _refused(
            label, f"face {odd[0]} is {'zero' if not rows[odd[0]].any() else 'not finite'}"
        )
    return np.ascontiguousarray(rows)


def _as_read(rows: Tensor, spec: AdapterSpec) -> Tensor:
    """[n, 512] normed; or raw, as the peer gives them: sequences of one face, [n, 1, 512]."""
    return (
        torch.nn.functional.normalize(rows, dim=-1)
        if spec.feature.normalises_faces
        else rows[:, None]
    )


def _refused(what: str, why: str) -> PictureError:
    return PictureError(what, reason=why, hint=_REMEDY)
