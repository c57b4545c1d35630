"""CLIP text towers with projection: words in the space of a CLIP picture encoder's `image_embeds`.

Only the two towers that were trained together share a space: equal widths prove nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import EncoderError
from imageprompt.core.hub import locate_folder

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.encoding.encoders.contract import Encoder

# (hidden width, layers) of the picture tower -> of the text tower trained with it, and what it is
# called: the families whose towers are published on their own.
_TRAINED_TOGETHER = {
    (1024, 24): ((768, 12), "CLIP ViT-L/14"),
    (1280, 32): ((1024, 24), "CLIP ViT-H/14"),
    (1664, 48): ((1280, 32), "CLIP bigG"),
}
_REMEDY = (
    "Give text_encoder= the CLIPTextModelWithProjection and tokenizer it was trained with, "
    "or ready-made text features."
)


@dataclass(frozen=True)
class TextTower:
    """A CLIPTextModelWithProjection with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Of the embedding; the projection's rows."""
        return int(self.model.text_projection.weight.shape[0])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """`text_embeds` [n, E], as they come: not normed. Says so where a text is cut."""
        import torch

        limit = self.model.config.max_position_embeddings
        for text in texts:
            length = len(self.tokenizer(text).input_ids)
            if length > limit:
                warnings.warn(
                    f"a text of {length} tokens is cut to {limit} for the text encoder",
                    stacklevel=2,
                )
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=limit,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            return self.model(ids.to(self.model.device)).text_embeds  # type: ignore[no-any-return]


def open_text_encoder(source: object, encoder: Encoder) -> TextTower:
    """The text tower that shares a space with a picture encoder.

    `source` is a TextTower, a (model, tokenizer) pair or a folder that holds both, which are taken
    at their word if the widths agree; or a pipeline, of whose text encoders one must be of the
    same published family as the picture encoder (SDXL's `text_encoder_2` and CLIP bigG). Raises
    EncoderError.
    """
    width = encoder.width("image_embeds")
    if isinstance(source, TextTower | tuple | str | os.PathLike):
        tower = _given(source)
        if tower.width != width:
            raise EncoderError(
                f"a text encoder whose embeddings are {tower.width} wide",
                reason=f"the image encoder's are {width} wide: they share no space",
                hint=_REMEDY,
            )
        return tower
    for tower in _of_pipeline(source):
        if tower.width == width and _family(tower, encoder):
            return tower
    raise EncoderError(
        "words in the image encoder's space",
        reason=f"no text encoder of this base shares a space with its {width} wide image_embeds",
        hint=_REMEDY,
    )


def _given(source: Any) -> TextTower:
    if isinstance(source, str | os.PathLike):
        return _stored(source)
    tower = source if isinstance(source, TextTower) else TextTower(*source[:2])
    if not _projects(tower.model) or not callable(tower.tokenizer):
        raise EncoderError(
            f"text encoder {type(tower.model).__name__}",
            reason="not a CLIPTextModelWithProjection with its tokenizer",
            hint="Give the pair (model, tokenizer), or a folder that holds both.",
        )
    return tower


def _stored(source: str | os.PathLike[str]) -> TextTower:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    folder = locate_folder(source)
    kind: Any = CLIPTextModelWithProjection
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        lacking = sorted(report["missing_keys"])
        reason = f"it has no {lacking[0]}" if lacking else ""
        tokenizer = (
            None if lacking else CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise EncoderError(
            f"text encoder {str(source)!r}",
            reason=f"not a CLIPTextModelWithProjection with its tokenizer ({reason})",
            hint="Give a folder that holds both.",
        )
    return TextTower(model.eval(), tokenizer)


def _of_pipeline(pipe: object) -> Iterator[TextTower]:
    parts = getattr(pipe, "components", None) or {}
    for name, model in parts.items():
        if name.startswith("text_encoder") and _projects(model):
            tokenizer = parts.get(name.replace("text_encoder", "tokenizer"))
            if tokenizer is not None:
                yield TextTower(model, tokenizer)


def _projects(model: object) -> bool:
    return hasattr(getattr(model, "text_projection", None), "weight")


def _family(tower: TextTower, encoder: Encoder) -> str:
    """The published family that both towers have the shape of; empty where there is none."""
    pictures = getattr(getattr(encoder, "model", None), "config", None)
    words = tower.model.config
    shape = (getattr(pictures, "hidden_size", 0), getattr(pictures, "num_hidden_layers", 0))
    partner, name = _TRAINED_TOGETHER.get(shape, ((0, 0), ""))
    return name if partner == (words.hidden_size, words.num_hidden_layers) else ""
