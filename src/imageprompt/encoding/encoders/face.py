"""Faces in pictures: boxes, key points, crops and ArcFace embeddings, by insightface.

insightface is an optional extra, imported when it is used, and reads the user's own model pack: a
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

from imageprompt.core.errors import EncoderError, NotFoundError, OptionError, PictureError
from imageprompt.encoding.images.open_image import PictureSource, describe, open_picture

if TYPE_CHECKING:
    from torch import Tensor

CROP = 224  # px; what FaceID-plus' image encoder is shown

# Where ArcFace wants eyes, nose and corners of the mouth in a crop of 112 pixels.
_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
           (70.7299, 92.2041))  # fmt: skip
_POINTS_SIDE = 112


def aligned(picture: Image.Image, points: NDArray[Any], side: int = CROP) -> Image.Image:
    """The face of these key points [5, 2] upright in a square: the published 224 norm-crop.

    It is turned, scaled and moved so that the points come nearest to where ArcFace has them, in
    least squares; black is what lies outside. Raises PictureError for points that are no face's.
    """
    wanted = np.asarray(_POINTS) @ [1, 1j] * (side / _POINTS_SIDE)
    found = np.asarray(points, np.float64) @ [1, 1j]  # a similarity is z -> turn * z + move
    spread = found - found.mean()
    size = float((abs(spread) ** 2).sum())
    if not np.isfinite(size) or size == 0:
        raise PictureError("key points of a face", reason="they lie in one place, or nowhere")
    turn = (spread.conj() * (wanted - wanted.mean())).sum() / size
    move = wanted.mean() - turn * found.mean()
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(_sampled(np.asarray(picture), (column + 1j * row - move) / turn))


def _sampled(pixels: NDArray[np.uint8], places: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] at places x + iy, between them bilinear, outside black."""
    height, width = pixels.shape[:2]
    framed = np.pad(pixels, ((1, 1), (1, 1), (0, 0))).astype(np.float64)
    x, y = np.clip(places.real, -1, width) + 1, np.clip(places.imag, -1, height) + 1
    left, top = np.minimum(x.astype(int), width), np.minimum(y.astype(int), height)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    upper = framed[top, left] * (1 - right_share) + framed[top, left + 1] * right_share
    lower = framed[top + 1, left] * (1 - right_share) + framed[top + 1, left + 1] * right_share
    mixed: NDArray[np.float64] = np.rint(upper * (1 - lower_share) + lower * lower_share)
    return mixed.astype(np.uint8)


PACKS = Path("~/.insightface/models")
"""Where insightface keeps its model packs, a folder each."""
LOOK_AT = 640  # px; the square that the detector scales a picture into
PADDING = 0.5  # of each side: a face that fills its picture is found once there is room round it
LARGEST, ALL = "largest", "all"
Choice = str | int
"""Which faces of a picture: "largest", "all", or one by its index (0 is the largest)."""


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture; `index` counts from the largest."""

    index: int
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the picture; it may reach beyond its edges."""
    score: float
    """How sure the detector is, 0..1."""
    points: NDArray[np.float32]
    """[5, 2]: eyes, nose, corners of the mouth, in pixels."""
    embedding: Tensor
    """[512], raw: portrait-unnorm reads it so, the other variants its direction."""
    picture: Image.Image = field(repr=False)

    def crop(self, side: int = CROP) -> Image.Image:
        """The face upright in a square, as FaceID-plus' image encoder is shown it."""
        return aligned(self.picture, self.points, side)

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
    """Pictures -> faces. `analysis` is an insightface.app.FaceAnalysis, prepared, or its like."""

    def __init__(self, analysis: Any) -> None:
        self.analysis = analysis

    @classmethod
    def load(cls, pack: str | os.PathLike[str]) -> FaceEncoder:
        """From a model pack: its folder, or the name of one under ~/.insightface/models.

        Raises NotFoundError, EncoderError.
        """
        folder = _pack_folder(pack)
        kind = _face_analysis()
        modules = ["detection", "recognition"]
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # older ones tell all they do
                # a folder that is there: by a name it knows insightface would download one
                analysis = kind(name=str(folder), allowed_modules=modules)
                analysis.prepare(ctx_id=0, det_size=(LOOK_AT, LOOK_AT))
            lacking = [name for name in modules if name not in analysis.models]
            why = f"it has no model for {lacking[0]}" if lacking else ""
        except Exception as error:  # asserts, and whatever onnxruntime raises
            why = f"insightface cannot open it ({_first_line(error)})"
        if why:
            raise EncoderError(
                f"model pack {str(folder)!r}",
                reason=why,
                hint="It needs the .onnx files of a face detector and of ArcFace.",
            )
        return cls(analysis)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the recogniser's file; "" where there is none to be seen."""
        recogniser = getattr(self.analysis, "models", {}).get("recognition")
        file = getattr(recogniser, "model_file", None)
        if file is None or not Path(file).is_file():
            return ""
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def find(self, picture: PictureSource) -> list[Face]:
        """All faces of a picture, the largest first; looked for again with black round it if there
        seems to be none. Raises PictureError for a picture that cannot be read."""
        opened = open_picture(picture)
        pad = int(PADDING * opened.width), int(PADDING * opened.height)
        return self._look(opened, (0, 0)) or self._look(opened, pad)

    def choose(self, picture: PictureSource, which: Choice = LARGEST) -> list[Face]:
        """Those faces of a picture. Raises PictureError where there is none, or not that one."""
        check_choice(which)
        found = self.find(picture)
        if not found:
            raise PictureError(
                describe(picture),
                reason="no face was found in it, nor with room round it",
                hint="Give a picture with a face that is larger, sharper or less turned away.",
            )
        if which == ALL:
            return found
        index = 0 if which == LARGEST else int(which)
        if index >= len(found):
            raise PictureError(
                f"face {index} of {describe(picture)}",
                reason=f"it has {len(found)}, counted from 0, the largest",
                hint="Choose another one; `imageprompt faces` lists them.",
            )
        return [found[index]]

    def _look(self, picture: Image.Image, pad: tuple[int, int]) -> list[Face]:
        """The faces of a picture with so many black pixels on either side of it."""
        import torch

        pixels = np.asarray(picture)[:, :, ::-1]  # it reads BGR
        pixels = np.pad(pixels, ((pad[1], pad[1]), (pad[0], pad[0]), (0, 0)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what its libraries deprecate is not the user's
                seen = [one for one in self.analysis.get(pixels) if _is_whole(one)]
        except Exception as error:  # whatever its networks and their runtime raise
            raise EncoderError(
                f"insightface on {describe(picture)}",
                reason=f"it failed ({_first_line(error)})",
                hint="Try another picture, or another model pack.",
            ) from error
        seen.sort(key=_area, reverse=True)
        return [
            Face(
                index=index,
                box=tuple(float(x) for x in one.bbox[:4] - np.tile(pad, 2)),  # type: ignore[arg-type]
                score=float(one.det_score),
                points=np.asarray(one.kps, np.float32) - np.asarray(pad, np.float32),
                embedding=torch.from_numpy(np.array(one.embedding, np.float32).reshape(-1)),
                picture=picture,
            )
            for index, one in enumerate(seen)
        ]


def open_faces(source: object) -> FaceEncoder:
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
        reason="it finds no faces",
        hint="Give insightface's model pack (a folder), or a FaceAnalysis that is prepared.",
    )


def check_choice(which: object) -> None:
    """Raises OptionError for what chooses no face."""
    known = which in (LARGEST, ALL) if isinstance(which, str) else type(which) is int and which >= 0
    if not known:
        raise OptionError(
            f"face {which!r}",
            reason="it is 'largest', 'all', or the index of one (0 is the largest)",
        )


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
    given = Path(pack).expanduser()
    named = (PACKS / given).expanduser()
    folder = next((place for place in (given, named) if place.is_dir()), None)
    if folder is None:
        raise NotFoundError(
            f"model pack {os.fspath(pack)!r}",
            reason=f"no such folder, nor one of that name in {PACKS}",
            hint="Put insightface's pack there (such as buffalo_l, unpacked); none is fetched.",
        )
    if not any(folder.glob("*.onnx")):
        raise EncoderError(
            f"model pack {str(folder)!r}",
            reason="there are no .onnx files in it",
            hint="Unpack insightface's pack into this folder.",
        )
    return folder.resolve()


def _is_whole(face: Any) -> bool:
    """Are there key points and an embedding? A pack's addons may leave the latter out."""
    return getattr(face, "kps", None) is not None and getattr(face, "embedding", None) is not None


def _area(face: Any) -> float:
    left, top, right, bottom = (float(edge) for edge in face.bbox[:4])
    return (right - left) * (bottom - top)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
