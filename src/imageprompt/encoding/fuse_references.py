"""Mixing: the encoded references of every prompt, as a EncodeOptions wants them: what is projected.

Weights of references side by side are not the features' but the tokens': projectors norm what they
read and make, so that a weight on features does nothing for Plus and the opposite of what is meant
for base (measured on the bundled stack: dev/LOG.md). K' and V' are linear in the tokens: at weight
0 nothing of a reference is left.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from imageprompt.core.errors import EncoderError, PromptError
from imageprompt.encoding.encoders import Encoder
from imageprompt.encoding.encoders.clip_text import open_text_encoder
from imageprompt.encoding.features import Group, check_counts, count, mapped
from imageprompt.encoding.fusion import ATTENTION, CONCAT, attention_weights, fuse
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import References


def mixed(
    groups: list[Group],
    seen: References | None,
    mixture: EncodeOptions,
    encoder: Encoder | None,
    base: object,
) -> tuple[list[Group], Tensor | None]:
    """Words subtracted, then weighed, then fused: [n, ...] of each prompt -> [n or 1, ...].

    Second, the weights of the tokens of references side by side, [P, n]; None where all are 1.
    `seen` is what the encoder was shown (None for ready-made features); `base` is searched for a
    text encoder where words are wanted and the mixture brings none. Raises OptionError,
    EncoderError, PromptError.
    """

    def words(text: Any, width: int) -> Tensor:
        found = _words(text, len(groups), mixture.text_encoder or base, encoder)
        if found.shape[-1] != width:
            raise EncoderError(
                f"text features {found.shape[-1]} wide",
                reason=f"the references are seen as vectors {width} wide",
                hint="Give those of the text encoder that shares their space.",
            )
        return found.expand(len(groups), -1)

    weights = _weights(groups, seen, mixture, encoder, words)
    if mixture.subtract_text is not None and isinstance(groups[0], Tensor):
        texts = words(mixture.subtract_text, groups[0].shape[-1]) * mixture.subtract_strength
        groups = [_less(group, text) for group, text in zip(groups, texts, strict=True)]
    fused = [
        mapped(group, partial(fuse, fusion=mixture.fusion, weights=row))
        for group, row in zip(groups, weights, strict=True)
    ]
    check_counts(fused)
    beside = [row for row in weights if row is not None and mixture.fusion == CONCAT]
    return fused, torch.stack(beside) if beside else None


def _less(group: Group, text: Tensor) -> Group:
    return mapped(group, lambda part: part - text.to(part))


def _weights(
    groups: list[Group],
    seen: References | None,
    mixture: EncodeOptions,
    encoder: Encoder | None,
    words: Any,
) -> list[Tensor | None]:
    """One number for each reference of each prompt; tiles have that of their picture."""
    if mixture.fusion == ATTENTION:
        vectors = _vectors(groups, seen, mixture, encoder)
        texts: Any = [None] * len(groups)
        if mixture.text is not None:
            texts = words(mixture.text, vectors[0].shape[-1])
        return [attention_weights(x, text) for x, text in zip(vectors, texts, strict=True)]
    found: list[Tensor | None] = []
    for i, group in enumerate(groups):
        tiles = [1] * count(group) if seen is None else seen.counts[i]
        row = mixture.row(i, len(groups), len(tiles))
        each = None if row is None else torch.tensor(row)
        found.append(None if each is None else each.repeat_interleave(torch.tensor(tiles)))
    return found


def _vectors(
    groups: list[Group], seen: References | None, mixture: EncodeOptions, encoder: Encoder | None
) -> list[Tensor]:
    """One vector [n, F] for each reference, to compare them by.

    Pictures are compared by their `image_embeds`, faces by their embeddings; ready-made features of
    patches by the mean patch, which no text can be compared with.
    """
    parts = [group if isinstance(group, Tensor) else group[0] for group in groups]
    if all(part.ndim == 2 for part in parts):
        return parts
    if seen is not None and encoder is not None:
        return seen.encoded(encoder, "image_embeds")
    if mixture.text is not None:
        raise EncoderError(
            "text= beside ready-made features of patches",
            reason="they share no space with words",
            hint="Give the pictures, or leave the text out.",
        )
    return [part.mean(1) for part in parts]


def _words(text: Any, prompts: int, source: object, encoder: Encoder | None) -> Tensor:
    """Text features [P or 1, E] in the space of the encoder's embeddings."""
    if isinstance(text, Tensor):
        found = text.reshape(-1, text.shape[-1])
    elif encoder is None:
        raise EncoderError(
            "words beside references",
            reason="without an image encoder it is not known what shares a space with it",
            hint="Pass encoder= to attach(), or ready-made text features.",
        )
    else:
        tower = open_text_encoder(source, encoder)
        found = tower.embed([text] if isinstance(text, str) else list(text))
    if len(found) not in (1, prompts):
        raise PromptError(
            f"{len(found)} texts for {prompts} prompt(s)",
            reason="one for each prompt, or one for all",
            hint="Give as many as there are prompts.",
        )
    return found
