"""A stand-in for insightface's FaceAnalysis: its faces are rectangles of a few pure colours.

Like the original, it reads BGR pixels, its faces have bbox, kps, det_score, embedding and
normed_embedding, they are not sorted by size, and a face that fills its picture is not found.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
MARGIN = 4  # px between a face and the edges of the picture
LENGTH = 20.0  # of a raw embedding
POINTS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])  # of the box


@dataclass
class Found:
    bbox: Any
    kps: Any
    det_score: float
    embedding: Any

    @property
    def normed_embedding(self) -> Any:
        return self.embedding / np.linalg.norm(self.embedding)


class Analysis:
    """`get` finds the rectangles, in the order of COLOURS."""

    def get(self, bgr: Any) -> list[Found]:
        found = []
        for name, rgb in COLOURS.items():
            rows, columns = np.nonzero((bgr == rgb[::-1]).all(-1))
            if len(rows) == 0:
                continue
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            room = np.concatenate([box[:2], np.array(bgr.shape[1::-1]) - box[2:]])
            if (room >= MARGIN).all():
                size = box[2:] - box[:2]
                kps = (box[:2] + POINTS * size).astype(np.float32)
                found.append(Found(box.astype(np.float32), kps, 0.9, embedding(name)))
        return found


def embedding(name: str) -> Any:
    """[512] float32, raw: the identity of a colour."""
    row = np.random.default_rng(list(COLOURS).index(name)).standard_normal(512)
    return (row * LENGTH / np.linalg.norm(row)).astype(np.float32)


def picture(**boxes: tuple[int, int, int, int]) -> Image.Image:
    """96x80 grey with a face of each colour in its box."""
    image = Image.new("RGB", (96, 80), (90, 90, 90))
    for name, box in boxes.items():
        image.paste(COLOURS[name], box)
    return image


def install(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Install a package insightface with this class; returns the arguments that FaceAnalysis gets,
    and `models`, which tests may change."""
    known: dict[str, Any] = {"models": {"detection": 1, "recognition": 1}}

    class FaceAnalysis(Analysis):
        def __init__(self, name: str, **options: Any) -> None:
            print("find model")  # like versions before 1.0
            known.update(name=name, **options)
            self.models = known["models"]
            assert "detection" in self.models

        def prepare(self, ctx_id: int, det_size: tuple[int, int]) -> None:
            known["det_size"] = det_size

    module = types.ModuleType("insightface.app")
    module.FaceAnalysis = FaceAnalysis  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", module)
    return known
