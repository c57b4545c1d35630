"""CLIP text towers with projection: text features in the space of an encoder's `image_embeds`.

Only two towers that were trained together share a space: equal widths prove nothing.
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

# (hidden width, layers) of the image tower -> those of the text tower trained with it, and their
# name: the families whose towers are published on their own.
_TRAINED_TOGETHER = {
    (1024, 24): ((768, 12), "CLIP ViT-L/14"),
    (1280, 32): ((1024, 24), "CLIP ViT-H/14"),
    (1664, 48): ((1280, 32), "CLIP bigG"),
}
_HINT = (
    "Pass text_encoder= the CLIPTextModelWithProjection and tokenizer trained with it, or "
    "ready-made text features."
)


@dataclass(frozen=True)
class TextTower:
    """A CLIPTextModelWithProjection with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Last dimension of the embedding."""
        return int(self.model.text_projection.weight.shape[0])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """`text_embeds` [n, E], not normalised. Warns once about texts that are truncated."""
        import torch

        limit = self.model.config.max_position_embeddings
        lengths = [len(self.tokenizer(text).input_ids) for text in texts]
        if long := [length for length in lengths if length > limit]:
            which = (
                f"{len(long)} of {len(lengths)} texts, up to" if len(lengths) > 1 else "a text of"
            )
            warnings.warn(
                f"{which} {max(long)} tokens, truncated to {limit} for the text encoder",
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
    """The text tower that shares a space with an image encoder.

    `source` is a TextTower, a (model, tokenizer) pair or a folder with both, which are trusted if
    the widths agree; or a pipeline, one of whose text encoders must be of the same published family
    as the image encoder (SDXL's `text_encoder_2` and CLIP bigG). Raises EncoderError.
    """
    width = encoder.width("image_embeds")
    if isinstance(source, TextTower | tuple | str | os.PathLike):
        tower = _from_source(source)
        if tower.width != width:
            raise EncoderError(
                f"a text encoder with embeddings {tower.width} wide",
                reason=f"those of the image encoder are {width} wide, so they share no space",
                hint=_HINT,
            )
        return tower
    for tower in _from_pipeline(source):
        if tower.width == width and _family(tower, encoder):
            return tower
    raise EncoderError(
        "text in the image encoder's space",
        reason=f"no text encoder of this base shares a space with image_embeds {width} wide",
        hint=_HINT,
    )


def _from_source(source: Any) -> TextTower:
    if isinstance(source, str | os.PathLike):
        return _load(source)
    tower = source if isinstance(source, TextTower) else TextTower(*source[:2])
    if not _has_projection(tower.model) or not callable(tower.tokenizer):
        raise EncoderError(
            f"text encoder {type(tower.model).__name__}",
            reason="not a CLIPTextModelWithProjection with its tokenizer",
            hint="Give the pair (model, tokenizer), or a folder with both.",
        )
    return tower


def _load(source: str | os.PathLike[str]) -> TextTower:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from imageprompt.encoding.encoders._folder import part_config, silent_transformers

    folder = locate_folder(source)
    model_class: Any = CLIPTextModelWithProjection
    try:
        with silent_transformers():  # what is missing is raised as an error below
            model, report = model_class.from_pretrained(
                folder,
                config=part_config(model_class, folder, "text_config"),
                local_files_only=True,
                output_loading_info=True,
            )
        missing = sorted(report["missing_keys"])
        reason = f"{missing[0]} is missing" if missing else ""
        tokenizer = (
            None if missing else CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise EncoderError(
            f"text encoder {str(source)!r}",
            reason=f"not a CLIPTextModelWithProjection with its tokenizer ({reason})",
            hint="Give a folder with both.",
        )
    return TextTower(model.eval(), tokenizer)


def _from_pipeline(pipe: object) -> Iterator[TextTower]:
    parts = getattr(pipe, "components", None) or {}
    for name, model in parts.items():
        if name.startswith("text_encoder") and _has_projection(model):
            tokenizer = parts.get(name.replace("text_encoder", "tokenizer"))
            if tokenizer is not None:
                yield TextTower(model, tokenizer)


def _has_projection(model: object) -> bool:
    return hasattr(getattr(model, "text_projection", None), "weight")


def _family(tower: TextTower, encoder: Encoder) -> str:
    """The published family that both towers belong to by their shapes; "" if none."""
    image = getattr(getattr(encoder, "model", None), "config", None)
    text = tower.model.config
    shape = (getattr(image, "hidden_size", 0), getattr(image, "num_hidden_layers", 0))
    partner, name = _TRAINED_TOGETHER.get(shape, ((0, 0), ""))
    return name if partner == (text.hidden_size, text.num_hidden_layers) else ""
