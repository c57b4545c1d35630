"""The bundled judge: which of the five words of a drawn scene a picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from imageprompt.core.errors import EncoderError
from imageprompt.demo.scenes import ATTRIBUTES, SIZE, VOCABULARY, named_words
from imageprompt.evaluation.extractors._weights import identity
from imageprompt.evaluation.extractors.contract import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.metrics.contract import Rows

NOT_NAMED = -1.0


class JudgeRole:
    """The index of each attribute's word."""

    name = "judge"
    summary = "the judge of the bundled stack, for drawn scenes; no other"

    def open(self, source: str | None, *, device: str | None = None) -> Backbone:
        if source is not None:
            raise EncoderError(
                f"judge {source!r}",
                reason="there is one only, that of the bundled stack",
                hint="Leave --extractor judge=... out.",
            )
        return BundledJudge()


class BundledJudge:
    """Pictures, and texts by their words -> [n, 5], in the order of ATTRIBUTES."""

    name = "bundled judge"
    preprocessing = f"{SIZE}x{SIZE}, aspect ratio not kept, box filter, 8 bits; x / 127.5 - 1"
    width = len(ATTRIBUTES)

    @cached_property
    def fingerprint(self) -> str:
        from imageprompt.core.fingerprint import fingerprint
        from imageprompt.demo.judge import load_judge

        return identity(fingerprint(load_judge().state_dict()), self.preprocessing)

    def encode(self, pictures: Sequence[Image]) -> Rows:
        from imageprompt.demo.judge import classify

        return np.stack([_row(words) for words in classify(pictures)])

    def encode_text(self, texts: Sequence[str]) -> Rows:
        """-1 for an attribute that the text does not name."""
        return np.stack([_row(named_words(text)) for text in texts])


def _row(words: Mapping[str, str]) -> Rows:
    return np.array(
        [VOCABULARY[one].index(words[one]) if one in words else NOT_NAMED for one in ATTRIBUTES],
        np.float32,
    )


EXTRACTOR = JudgeRole()
