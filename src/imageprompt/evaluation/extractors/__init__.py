"""One file per role of a feature extractor: what its weights are, and how pictures are prepared.

A file in this folder that ends in a constant `EXTRACTOR` is a role and needs no registration.
Files whose name starts with `_` are parts that roles share.
"""

from __future__ import annotations

from imageprompt.core.registry import Registry
from imageprompt.evaluation.extractors.contract import (
    Backbone,
    Extractor,
    ExtractorRole,
    PairBackbone,
    TextExtractor,
)

__all__ = [
    "EXTRACTORS",
    "Backbone",
    "Extractor",
    "ExtractorRole",
    "PairBackbone",
    "TextExtractor",
]

EXTRACTORS: Registry[ExtractorRole] = Registry(__name__, "EXTRACTOR")
