"""faceid-plus-v2: as faceid-plus, with the face embedding's tokens added to the result."""

from __future__ import annotations

from dataclasses import dataclass

from imageprompt.variants.faceid_plus import FaceIDPlus


@dataclass(frozen=True)
class FaceIDPlusV2(FaceIDPlus):
    name: str = "faceid-plus-v2"
    summary: str = "as faceid-plus, the identity's tokens added to the result (the shortcut)"
    shortcut: bool = True


VARIANT = FaceIDPlusV2()
