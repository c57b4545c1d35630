"""Faces in pictures: boxes, key points, crops and ArcFace embeddings, by insightface.

insightface is an optional extra, imported on first use. It reads the user's own model pack: a
folder of .onnx files with a face detector and a recogniser. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageprompt.core.errors import EncoderError, NotFoundError, PictureError
from imageprompt.encoding.encoders.contract import ALL, LARGEST, FaceChoice, check_face_choice
from imageprompt.encoding.images.open_image import PictureSource, describe, open_picture

if TYPE_CHECKING:
    from torch import Tensor

PACKS = Path("~/.insightface/models")
"""Where insightface keeps its model packs, one folder each."""
CROP = 224  # px; what FaceID-plus' image encoder reads
DETECTION_SIZE = 640  # px; the square that the detector scales a picture to
PADDING = 0.5  # of each side: lets the detector find a face that fills its picture

# ArcFace's positions of eyes, nose and corners of the mouth in a crop of 112 pixels.
_ARCFACE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
                   (70.7299, 92.2041))  # fmt: skip
_ARCFACE_SIDE = 112


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture; `index` 0 is the largest."""

    index: int
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the picture; it may reach beyond its edges."""
    score: float
    """Confidence of the detector, 0..1."""
    points: NDArray[np.float32]
    """[5, 2]: eyes, nose, corners of the mouth, in pixels."""
    embedding: Tensor
    """[512], not normalised: portrait-unnorm reads it so, the other variants its direction."""
    picture: Image.Image = field(repr=False)

    def crop(self, side: int = CROP) -> Image.Image:
        """The face upright in a square, as FaceID-plus' image encoder reads it."""
        return align_face(self.picture, self.points, side)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the box."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def as_dict(self) -> dict[str, Any]:
        width, height = self.size
        return {
            "index": self.index,
            "box": [round(edge, 1) for edge in self.box],
            "size": [round(width, 1), round(height, 1)],
            "score": round(self.score, 4),
        }


class FaceEncoder:
    """Pictures -> faces. `analysis` is a prepared insightface.app.FaceAnalysis, or its like."""

    def __init__(self, analysis: Any) -> None:
        self.analysis = analysis

    @classmethod
    def load(cls, pack: str | os.PathLike[str]) -> FaceEncoder:
        """Load a model pack: its folder, or the name of one under ~/.insightface/models.

        Raises NotFoundError, EncoderError.
        """
        folder = _pack_folder(pack)
        analysis_class = _face_analysis()
        modules = ["detection", "recognition"]
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # older versions print everything
                # an existing folder: insightface would download a pack that it knows by name
                analysis = analysis_class(name=str(folder), allowed_modules=modules)
                analysis.prepare(ctx_id=0, det_size=(DETECTION_SIZE, DETECTION_SIZE))
            missing = [name for name in modules if name not in analysis.models]
            reason = f"it has no model for {missing[0]}" if missing else ""
        except Exception as error:  # asserts, and whatever onnxruntime raises
            reason = f"insightface cannot open it ({_first_line(error)})"
        if reason:
            raise EncoderError(
                f"model pack {str(folder)!r}",
                reason=reason,
                hint="It needs the .onnx files of a face detector and of ArcFace.",
            )
        return cls(analysis)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the recogniser's file; "" if there is no such file."""
        recogniser = getattr(self.analysis, "models", {}).get("recognition")
        file = getattr(recogniser, "model_file", None)
        if file is None or not Path(file).is_file():
            return ""
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def find(self, picture: PictureSource) -> list[Face]:
        """All faces of a picture, the largest first.

        If none is found, a second pass adds a black border. Raises PictureError for a picture that
        cannot be read, EncoderError if insightface fails.
        """
        opened = open_picture(picture)
        border = int(PADDING * opened.width), int(PADDING * opened.height)
        return self._detect(opened, (0, 0)) or self._detect(opened, border)

    def choose(self, picture: PictureSource, face: FaceChoice = LARGEST) -> list[Face]:
        """The chosen faces of a picture. Raises PictureError if there is none, or not that one."""
        check_face_choice(face)
        found = self.find(picture)
        if not found:
            raise PictureError(
                describe(picture),
                reason="no face was found in it, even with a border added",
                hint="Give a picture with a face that is larger, sharper or less turned away.",
            )
        if face == ALL:
            return found
        index = 0 if face == LARGEST else int(face)
        if index >= len(found):
            raise PictureError(
                f"face {index} of {describe(picture)}",
                reason=f"it has {len(found)} face(s), counted from 0 (the largest)",
                hint="Choose another one; `imageprompt faces` lists them.",
            )
        return [found[index]]

    def _detect(self, picture: Image.Image, border: tuple[int, int]) -> list[Face]:
        """The faces of a picture, with so many black pixels on either side and above and below."""
        import torch

        pixels = np.asarray(picture)[:, :, ::-1]  # insightface reads BGR
        pixels = np.pad(pixels, ((border[1], border[1]), (border[0], border[0]), (0, 0)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside its libraries
                detected = [face for face in self.analysis.get(pixels) if _is_complete(face)]
        except Exception as error:  # whatever its networks and their runtime raise
            raise EncoderError(
                f"insightface on {describe(picture)}",
                reason=f"it failed ({_first_line(error)})",
                hint="Try another picture, or another model pack.",
            ) from error
        detected.sort(key=_area, reverse=True)
        return [
            Face(
                index=index,
                box=tuple(float(x) for x in face.bbox[:4] - np.tile(border, 2)),  # type: ignore[arg-type]
                score=float(face.det_score),
                points=np.asarray(face.kps, np.float32) - np.asarray(border, np.float32),
                embedding=torch.from_numpy(np.array(face.embedding, np.float32).reshape(-1)),
                picture=picture,
            )
            for index, face in enumerate(detected)
        ]


def open_face_encoder(source: object) -> FaceEncoder:
    """From a model pack (folder or name), an insightface FaceAnalysis, or one of ours.

    Raises NotFoundError, EncoderError.
    """
    if isinstance(source, FaceEncoder):
        return source
    if isinstance(source, str | os.PathLike):
        return FaceEncoder.load(source)
    if callable(getattr(source, "get", None)) and not isinstance(source, dict):
        return FaceEncoder(source)
    raise EncoderError(
        f"face encoder {type(source).__name__!r}",
        reason="not a model pack or a FaceAnalysis",
        hint="Give insightface's model pack (a folder), or a prepared FaceAnalysis.",
    )


def align_face(picture: Image.Image, points: NDArray[Any], side: int = CROP) -> Image.Image:
    """The face with these key points [5, 2], upright in a square: insightface's 224 norm-crop.

    The similarity transform is the least-squares fit of the points to ArcFace's positions. Pixels
    outside the picture are black. Raises PictureError for points that cannot be a face's.
    """
    target = np.asarray(_ARCFACE_POINTS) @ [1, 1j] * (side / _ARCFACE_SIDE)
    found = np.asarray(points, np.float64) @ [1, 1j]  # a similarity is z -> turn * z + move
    spread = found - found.mean()
    size = float((abs(spread) ** 2).sum())
    if not np.isfinite(size) or size == 0:
        raise PictureError("key points of a face", reason="not finite, or all in one place")
    turn = (spread.conj() * (target - target.mean())).sum() / size
    move = target.mean() - turn * found.mean()
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(_interpolated(np.asarray(picture), (column + 1j * row - move) / turn))


def _interpolated(pixels: NDArray[np.uint8], at: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] at positions x + iy: bilinear inside, black outside."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0))).astype(np.float64)
    x, y = np.clip(at.real, -1, width) + 1, np.clip(at.imag, -1, height) + 1
    left, top = np.minimum(x.astype(int), width), np.minimum(y.astype(int), height)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    upper = padded[top, left] * (1 - right_share) + padded[top, left + 1] * right_share
    lower = padded[top + 1, left] * (1 - right_share) + padded[top + 1, left + 1] * right_share
    mixed: NDArray[np.float64] = np.rint(upper * (1 - lower_share) + lower * lower_share)
    return mixed.astype(np.uint8)


def _face_analysis() -> Any:
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        missing = (error.name or "insightface").split(".")[0]
        raise EncoderError(
            "faces in pictures",
            reason=f"{missing} is not installed" if isinstance(error, ModuleNotFoundError)
            else f"insightface does not load ({_first_line(error)})",
            hint="pip install 'imageprompt[faces]', or give the faces' embeddings instead.",
        ) from None  # fmt: skip
    return FaceAnalysis


def _pack_folder(pack: str | os.PathLike[str]) -> Path:
    """Raises NotFoundError, EncoderError."""
    path = Path(os.path.expanduser(pack))  # noqa: PTH111 - never raises
    installed = (PACKS / path).expanduser()
    folder = next((folder for folder in (path, installed) if folder.is_dir()), None)
    if folder is None:
        raise NotFoundError(
            f"model pack {os.fspath(pack)!r}",
            reason=f"no such folder, and none of that name in {PACKS}",
            hint="Unpack insightface's pack there (such as buffalo_l); nothing is downloaded.",
        )
    if not any(folder.glob("*.onnx")):
        raise EncoderError(
            f"model pack {str(folder)!r}",
            reason="there are no .onnx files in it",
            hint="Unpack insightface's pack into this folder.",
        )
    return folder.resolve()


def _is_complete(face: Any) -> bool:
    """Has it key points and an embedding? A pack's add-ons may leave out the embedding."""
    return getattr(face, "kps", None) is not None and getattr(face, "embedding", None) is not None


def _area(face: Any) -> float:
    left, top, right, bottom = (float(edge) for edge in face.bbox[:4])
    return (right - left) * (bottom - top)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
