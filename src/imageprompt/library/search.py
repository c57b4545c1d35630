"""Search for styles: by picture, by name and tag, and by text if the encoder reads text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from imageprompt.checkpoint.tensor_bytes import finite
from imageprompt.core.errors import EncoderError
from imageprompt.encoding.encoders.contract import pooled_feature
from imageprompt.library.paths import folded
from imageprompt.library.style import Style

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.encoding.encoders import Encoder
    from imageprompt.encoding.images.open_image import PictureSource

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SIMILAR = 0.75  # difflib ratio of a typo, such as "porcelin"
_TYPO = 0.7  # factor for the score of such a match


@dataclass(frozen=True)
class SearchHit:
    """A style, its score, and what matched: "picture", "words" (cosines), "name" or "tag"."""

    style: Style
    score: float
    by: str

    def as_dict(self) -> dict[str, Any]:
        return {"style": self.style.name, "score": round(self.score, 4), "by": self.by}


@dataclass(frozen=True)
class SearchResults:
    """Hits, best first; what was compared; and the names of styles that could not be."""

    hits: tuple[SearchHit, ...]
    used: str
    skipped: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        hits = [hit.as_dict() for hit in self.hits]
        return {"found": hits, "used": self.used, "skipped": list(self.skipped)}


def is_text(what: object) -> TypeGuard[str]:
    """Is it a text to search for, not an existing file or the name of a picture?"""
    if not isinstance(what, str) or Path(what).suffix.lower() in _PICTURE_SUFFIXES:
        return False
    try:
        return not Path(what).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return True


def by_name(styles: Sequence[Style], text: str) -> list[SearchHit]:
    """Styles whose name or tags match words of the text; more words give a higher score."""
    found = []
    for style in styles:
        fields = [("name", style.name), *(("tag", tag) for tag in style.tags)]
        whole = _best(text, fields)
        words = [_best(word, fields) for word in text.split()]
        mean = sum(score for score, _ in words) / max(1, len(words))
        by = max(words, key=itemgetter(0), default=whole)[1]
        score, by = max(whole, (mean, by), key=itemgetter(0))
        if score > 0:
            found.append(SearchHit(style, score, by))
    return _best_first(found)


def by_embedding(
    styles: Sequence[Style], query: Tensor, encoder: str, by: str
) -> tuple[list[SearchHit], list[str]]:
    """Cosine similarities of `query` [1, E] and each style's nearest reference.

    Also the names of styles that have no embedding of this encoder.
    """
    from torch.nn.functional import normalize

    from imageprompt.checkpoint.torch_io import tensor_of

    query = normalize(query.float().cpu(), dim=-1)
    found, skipped = [], []
    for style in styles:
        stored = style.tensors.get("embedding")
        same = style.encoder is not None and style.encoder.hash == encoder
        if stored is None or not same or stored.shape[1] != query.shape[1] or not finite(stored):
            skipped.append(style.name)
            continue
        rows = normalize(tensor_of(stored).float(), dim=-1)
        found.append(SearchHit(style, float((rows @ query.T).max()), by))
    return _best_first(found), skipped


def _best_first(found: list[SearchHit]) -> list[SearchHit]:
    return sorted(found, key=lambda hit: (-hit.score, folded(hit.style.name)))


def _best(text: str, fields: Sequence[tuple[str, str]]) -> tuple[float, str]:
    """The score of the best matching field, and its kind; the first one on a tie."""
    return max(((_match(text, field), by) for by, field in fields), key=itemgetter(0))


def _match(text: str, field: str) -> float:
    """1 if equal, 0.9 for a prefix or a whole word, 0.8 for a part, less for a typo, else 0."""
    text, field = folded(text), folded(field)
    if text == field:
        return 1.0
    if text and (field.startswith(text) or text in field.split()):
        return 0.9
    if text and text in field:
        return 0.8
    ratio = difflib.SequenceMatcher(None, text, field).ratio()
    return _TYPO * ratio if ratio >= _SIMILAR else 0.0


# ── embeddings ──────────────────────────────────────────────────────────────────────────────────


def pooled_embeddings(pictures: Sequence[Image], encoder: Encoder | None) -> Tensor | None:
    """[n, E], with the encoder's own preprocessing; None if it has no pooled embedding."""
    if encoder is None or not pictures:
        return None
    feature = pooled_feature(encoder)
    return None if feature is None else encoder.encode(list(pictures), feature)


def embed_picture(picture: PictureSource, encoder: Any) -> tuple[Tensor, str]:
    """[1, E], and the encoder's fingerprint. Raises PictureError, EncoderError."""
    from imageprompt.encoding.images.open_image import open_picture

    opened = _open_encoder(encoder)
    rows = pooled_embeddings([open_picture(picture)], opened)
    if rows is None:
        raise EncoderError(
            "search by picture",
            reason="this encoder has no pooled embedding",
            hint="Search for names and tags.",
        )
    return rows, opened.fingerprint


def embed_text(text: str, text_encoder: Any, encoder: Any) -> tuple[Tensor, str]:
    """[1, E] in the image encoder's space, and that encoder's fingerprint. Raises EncoderError."""
    from imageprompt.encoding.text_encoder import open_text_encoder

    opened = _open_encoder(encoder)
    return open_text_encoder(text_encoder, opened).embed([text]), opened.fingerprint


def _open_encoder(encoder: Any) -> Encoder:
    from imageprompt.encoding.encoders import open_encoder

    if encoder is None:
        raise EncoderError(
            "search by content",
            reason="needs the image encoder that made the styles",
            hint="Give --encoder (encoder= in Python).",
        )
    return open_encoder(encoder)
