"""Search: by pictures, by names and tags, and by words where the encoder knows words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from imageprompt.checkpoint.tensor_bytes import finite
from imageprompt.library.paths import folded
from imageprompt.library.style import Style

if TYPE_CHECKING:
    from torch import Tensor

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SIMILAR = 0.75  # of difflib: a slip of the pen, "porcelin"
_TYPO = 0.7  # what such a match is worth beside a real one


@dataclass(frozen=True)
class Found:
    """A style, how well it matches, and by what: "picture", "words" (cosines), "name" or "tag"."""

    style: Style
    score: float
    by: str

    def as_dict(self) -> dict[str, Any]:
        return {"style": self.style.name, "score": round(self.score, 4), "by": self.by}


@dataclass(frozen=True)
class Results:
    """The best first. `used` tells what was compared; `skipped` styles could not be."""

    found: tuple[Found, ...]
    used: str
    skipped: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        found = [one.as_dict() for one in self.found]
        return {"found": found, "used": self.used, "skipped": list(self.skipped)}


def is_text(what: object) -> TypeGuard[str]:
    """Is a text searched for? Not if it is a file that is there, or named like a picture."""
    if not isinstance(what, str) or Path(what).suffix.lower() in _PICTURES:
        return False
    try:
        return not Path(what).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return True


def by_name(styles: Sequence[Style], text: str) -> list[Found]:
    """Styles whose name or tags have words of the text, or nearly; the more of them, the better."""
    found = []
    for style in styles:
        fields = [("name", style.name), *(("tag", tag) for tag in style.tags)]
        wholly = _best(text, fields)
        words = [_best(word, fields) for word in text.split()]
        mean = sum(score for score, _ in words) / max(1, len(words))
        by = max(words, key=itemgetter(0), default=wholly)[1]
        score, by = max(wholly, (mean, by), key=itemgetter(0))
        if score > 0:
            found.append(Found(style, score, by))
    return _best_first(found)


def by_embedding(
    styles: Sequence[Style], wanted: Tensor, encoder: str, by: str
) -> tuple[list[Found], list[str]]:
    """Cosines to `wanted` [1, E], of each style's nearest reference; and whom it cannot compare."""
    from torch.nn.functional import normalize

    from imageprompt.checkpoint.write.storage import tensor_of

    wanted = normalize(wanted.float().cpu(), dim=-1)
    found, skipped = [], []
    for style in styles:
        stored = style.tensors.get("embedding")
        same = style.encoder is not None and style.encoder.hash == encoder
        if stored is None or not same or stored.shape[1] != wanted.shape[1] or not finite(stored):
            skipped.append(style.name)
            continue
        rows = normalize(tensor_of(stored).float(), dim=-1)
        found.append(Found(style, float((rows @ wanted.T).max()), by))
    return _best_first(found), skipped


def _best_first(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda one: (-one.score, folded(one.style.name)))


def _best(text: str, fields: Sequence[tuple[str, str]]) -> tuple[float, str]:
    """How well the best of the fields matches, and which kind it is; the first of equals."""
    return max(((_match(text, field), by) for by, field in fields), key=itemgetter(0))


def _match(text: str, field: str) -> float:
    """1 equal, 0.9 beginning of it or of a word in it, 0.8 in it, less for a slip, 0 none."""
    text, field = folded(text), folded(field)
    if text == field:
        return 1.0
    if text and (field.startswith(text) or text in field.split()):
        return 0.9
    if text and text in field:
        return 0.8
    ratio = difflib.SequenceMatcher(None, text, field).ratio()
    return _TYPO * ratio if ratio >= _SIMILAR else 0.0
