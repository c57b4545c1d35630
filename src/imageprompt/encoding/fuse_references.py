"""Fuse the encoded references of every prompt, as EncodeOptions say, before they are projected.

Weights of references side by side apply to the tokens, not to the features: projectors normalise
what they read and make, so a weight on features has no effect for Plus and the opposite of the
intended one for base (measured on the bundled stack: dev/LOG.md). K' and V' are linear in the
tokens: at weight 0 nothing of a reference is left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from imageprompt.core.errors import EncoderError, PromptError
from imageprompt.encoding.encoders import Encoder
from imageprompt.encoding.encoders.contract import pooled_feature
from imageprompt.encoding.features import Group, check_counts, map_parts, reference_count
from imageprompt.encoding.fusion import ATTENTION, CONCAT, attention_weights, fuse
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import References


def fuse_references(
    groups: list[Group],
    references: References | None,
    options: EncodeOptions,
    encoder: Encoder | None,
    base: object,
) -> tuple[list[Group], Tensor | None]:
    """Subtract text, weight, then fuse: features [n, ...] of each prompt -> [n or 1, ...].

    The second result is the weights of the tokens of references side by side, [P, n]; None if all
    are 1. `references` are the pictures behind the features (None for ready-made ones). `base` is
    searched for a text encoder if the options need one and bring none. Raises OptionError,
    EncoderError, PromptError.
    """

    def text_features(text: Any, width: int) -> Tensor:
        found = _text_features(text, len(groups), options.text_encoder or base, encoder)
        if found.shape[-1] != width:
            raise EncoderError(
                f"text features {found.shape[-1]} wide",
                reason=f"the references' vectors are {width} wide",
                hint="Use the text encoder that shares their space.",
            )
        return found.expand(len(groups), -1)

    weights = _weights(groups, references, options, encoder, text_features)
    if options.subtract_text is not None and isinstance(groups[0], Tensor):
        texts = text_features(options.subtract_text, groups[0].shape[-1])
        texts = texts * options.subtract_strength
        groups = [_subtract(group, text) for group, text in zip(groups, texts, strict=True)]
    fused = [
        map_parts(group, partial(fuse, fusion=options.fusion, weights=row))
        for group, row in zip(groups, weights, strict=True)
    ]
    check_counts(fused)
    of_tokens = [row for row in weights if row is not None and options.fusion == CONCAT]
    return fused, torch.stack(of_tokens) if of_tokens else None


def _subtract(group: Group, text: Tensor) -> Group:
    return map_parts(group, lambda part: part - text.to(part))


def _weights(
    groups: list[Group],
    references: References | None,
    options: EncodeOptions,
    encoder: Encoder | None,
    text_features: Callable[[Any, int], Tensor],
) -> list[Tensor | None]:
    """One weight for each reference of each prompt; tiles share that of their picture."""
    if options.fusion == ATTENTION:
        vectors = _vectors(groups, references, options, encoder)
        texts: Any = [None] * len(groups)
        if options.text is not None:
            texts = text_features(options.text, vectors[0].shape[-1])
        return [attention_weights(x, text) for x, text in zip(vectors, texts, strict=True)]
    weights: list[Tensor | None] = []
    for i, group in enumerate(groups):
        tiles = [1] * reference_count(group) if references is None else references.per_picture[i]
        row = options.weights_of(i, len(groups), len(tiles))
        per_picture = None if row is None else torch.tensor(row)
        weights.append(
            None if per_picture is None else per_picture.repeat_interleave(torch.tensor(tiles))
        )
    return weights


def _vectors(
    groups: list[Group],
    references: References | None,
    options: EncodeOptions,
    encoder: Encoder | None,
) -> list[Tensor]:
    """One vector [n, F] for each reference, to compare them by.

    Pictures are compared by their pooled features (with text by `image_embeds`), faces by their
    embeddings. Ready-made patch features are compared by their mean patch, which cannot be
    compared with text.
    """
    parts = [group if isinstance(group, Tensor) else group[0] for group in groups]
    if all(part.ndim == 2 for part in parts):
        return parts
    if references is not None and encoder is not None:
        pooled = None if options.text is not None else pooled_feature(encoder)
        return references.encode(encoder, pooled or "image_embeds")
    if options.text is not None:
        raise EncoderError(
            "text= beside ready-made patch features",
            reason="they share no space with text features",
            hint="Give the pictures, or leave the text out.",
        )
    return [part.mean(1) for part in parts]


def _text_features(text: Any, prompts: int, source: object, encoder: Encoder | None) -> Tensor:
    """Text features [P or 1, E] in the space of the encoder's embeddings."""
    if isinstance(text, Tensor):
        found = text.reshape(-1, text.shape[-1])
    elif encoder is None:
        raise EncoderError(
            "text beside references",
            reason="without an image encoder no text encoder can be matched to it",
            hint="Pass encoder= to attach(), or ready-made text features.",
        )
    else:
        from imageprompt.encoding.text_encoder import open_text_encoder

        tower = open_text_encoder(source, encoder)
        found = tower.embed([text] if isinstance(text, str) else list(text))
    if len(found) not in (1, prompts):
        raise PromptError(
            f"{len(found)} texts for {prompts} prompt(s)",
            reason="neither one for all prompts nor one for each",
            hint="Give as many as there are prompts.",
        )
    return found
