"""Faces by the real insightface, if installed, with tiny networks built by face_pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from face_pack import STRIDE, write_pack
from imageprompt.core.errors import EncoderError
from imageprompt.encoding.face_encoder import FaceEncoder, align_face
from tiny_stack import make_pipeline

pytest.importorskip("insightface")
pytestmark = pytest.mark.filterwarnings("ignore")  # from insightface and its dependencies

MAGENTA = (255, 0, 255)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "drawn")


@pytest.fixture(scope="module")
def faces(pack: Path) -> FaceEncoder:
    return FaceEncoder.load(pack)


def scene(*corners: tuple[int, int]) -> Image.Image:
    """Squares of one cell each, by their top left corners, on a noisy background."""
    pixels = np.random.default_rng(1).integers(0, 120, (640, 640, 3), np.uint8)
    for x, y in corners:
        pixels[y : y + STRIDE, x : x + STRIDE] = MAGENTA
    return Image.fromarray(pixels)


def direct(picture: Image.Image, faces: FaceEncoder) -> list[Any]:
    """What the reference code passes: BGR as OpenCV reads it."""
    return list(faces.analysis.get(np.asarray(picture)[:, :, ::-1].copy()))


def test_boxes_points_and_embeddings_are_insightfaces(faces: FaceEncoder) -> None:
    picture = scene((160, 160), (480, 320))
    found, theirs = faces.find(picture), direct(picture, faces)
    assert len(found) == len(theirs) == 2
    assert found[0].box in ((112, 112, 208, 208), (432, 272, 528, 368))
    for one in theirs:
        near = min(found, key=lambda face: abs(np.array(face.box) - one.bbox).sum())
        assert near.box == tuple(one.bbox.tolist())
        assert near.score == float(one.det_score)
        assert np.array_equal(near.points, one.kps)
        assert np.array_equal(near.embedding.numpy(), one.embedding)


def test_from_a_picture_to_tokens(faces: FaceEncoder, pack: Path) -> None:
    pipe, picture = make_pipeline(), scene((160, 160), (480, 320))
    adapter = ip.Adapter.create("faceid-plus-v2", denoiser=pipe.unet, encoder=pipe.image_encoder)
    adapter.attach(pipe, encoder=pipe.image_encoder, faces=pack)
    prompt = adapter.encode([picture], face="all")
    rows = torch.stack([torch.from_numpy(one.normed_embedding) for one in direct(picture, faces)])
    hidden = adapter.encoder.encode([f.crop() for f in faces.find(picture)], "hidden_states[-2]")
    wanted = adapter.encode(features=(rows, hidden))
    assert torch.allclose(prompt.tokens, wanted.tokens, atol=1e-5)
    adapter.detach()


def test_red_and_blue_are_not_mixed_up(faces: FaceEncoder) -> None:
    picture = scene((320, 320))
    red, green, blue = picture.split()
    tinted = Image.merge("RGB", (red.point(lambda x: x // 2 + 127), green, blue))
    one, other = (faces.find(p)[0].embedding for p in (picture, tinted))
    swapped = Image.merge("RGB", tinted.split()[::-1])
    wrong = faces.find(swapped)[0].embedding
    assert (one - other).abs().max() > 1e-3
    assert (other - wrong).abs().max() > 1e-3
    assert np.allclose(other.numpy(), direct(tinted, faces)[0].embedding)


def test_the_crop_is_insightfaces_norm_crop(faces: FaceEncoder) -> None:
    from insightface.utils import face_align

    gen = np.random.default_rng(3)
    coarse = Image.fromarray(gen.integers(0, 255, (20, 16, 3), np.uint8))
    picture = coarse.resize((640, 800), Image.Resampling.BICUBIC)
    base = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    for angle, size, move in (
        (0.0, 2.0, (150, 200)),
        (0.5, 3.1, (330, 90)),
        (-2.0, 1.2, (250, 700)),  # reaches beyond the edge
    ):
        turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = (base @ turn.T + move + gen.normal(0, 2, (5, 2))).astype(np.float32)
        theirs = face_align.norm_crop(np.asarray(picture), points, image_size=224).astype(int)
        ours = np.asarray(align_face(picture, points)).astype(int)
        assert abs(ours - theirs).max() <= 2  # OpenCV rounds positions to 1/32 pixel


def test_a_pack_without_a_recogniser(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "det.onnx").write_bytes((pack / "det.onnx").read_bytes())
    with pytest.raises(EncoderError, match="recognition"):
        FaceEncoder.load(tmp_path)
    (tmp_path / "det.onnx").write_bytes(b"no network")
    with pytest.raises(EncoderError, match="cannot open it"):
        FaceEncoder.load(tmp_path)


def test_the_fingerprint_is_the_recognisers(faces: FaceEncoder, pack: Path) -> None:
    assert len(faces.fingerprint) == 16
    assert faces.fingerprint == FaceEncoder.load(pack).fingerprint
