"""Encoding: references to tokens and null tokens, for one adapter's projector and an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imageprompt.encoders import Encoder
from imageprompt.errors import EncoderError, PictureError, PromptError
from imageprompt.features import (
    Features,
    Group,
    count,
    first,
    groups_of,
    joined,
    zeros_like,
)
from imageprompt.features import check as check_features
from imageprompt.fingerprint import fingerprint, versions
from imageprompt.prompt import ImagePrompt
from imageprompt.spec import AdapterSpec
from imageprompt.suitability import encoded_part

if TYPE_CHECKING:
    from imageprompt.encoders.pictures import PictureSource

Pictures = Sequence["PictureSource"] | Sequence[Sequence["PictureSource"]]
"""References of one prompt, or a list of several prompts'."""


class Encoding:
    """What turns references into an image prompt; owned by an Adapter.

    `projector` is the adapter's own module and `encoder` the one it is attached with, or None.
    """

    def __init__(self, spec: AdapterSpec, projector: nn.Module) -> None:
        self.spec = spec
        self.projector = projector
        self.encoder: Encoder | None = None
        self._encoded_null: Tensor | None = None  # the encoder's features of the null picture
        self._null: tuple[Any, Tensor] | None = None  # its tokens, and the weights that made them
        self._fingerprint: tuple[Any, str] | None = None

    def open(self, encoder: Encoder) -> None:
        """Read pictures with this encoder from now on."""
        self.encoder, self._encoded_null, self._null = encoder, None, None

    def encode(
        self, pictures: Pictures | None, features: Features | None, null_features: Group | None
    ) -> ImagePrompt:
        """As `Adapter.encode`."""
        if (pictures is None) == (features is None):
            raise PromptError(
                "encode()", rule="it takes either pictures or features", remedy="Give one of them."
            )
        with torch.no_grad():
            groups = groups_of(features) if features is not None else self._encoded(pictures)
            check_features(groups, self.spec)
            n = count(groups[0])
            tokens = self.project(joined(groups))
            tokens = tokens.reshape(len(groups), -1, tokens.shape[-1])
            null = self._null_tokens(null_features, first(groups[0]))
            if null is not None:
                null = null.expand(len(groups), -1, -1).repeat(1, n, 1)
        return ImagePrompt(tokens, null, self._metadata(n))

    def project(
        self, features: Group, *, null: bool = False, strength: float | Tensor = 1.0
    ) -> Tensor:
        """As `Adapter.project`."""
        if null and self.spec.null_rule == "zero features":
            features = zeros_like(features)
        weight = next(self.projector.parameters())
        parts = (features,) if isinstance(features, Tensor) else features
        placed = [part.to(weight.device, weight.dtype) for part in parts]
        if isinstance(strength, Tensor):
            strength = strength.to(weight.device, weight.dtype)
        beside = () if len(placed) == 1 else (strength,)
        tokens: Tensor = self.projector(*placed, *beside)
        return tokens

    def fingerprint(self) -> str:
        """As `Adapter.fingerprint`."""
        state = versions(self.projector.parameters())
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint(self.projector.state_dict()))
        return self._fingerprint[1]

    def _metadata(self, references: int) -> dict[str, str]:
        metadata = {
            "variant": self.spec.variant,
            "projector": self.fingerprint(),
            "references": str(references),
        }
        if self.encoder is not None:
            metadata["encoder"] = self.encoder.fingerprint
        return metadata

    # ── features ────────────────────────────────────────────────────────────────────────────────

    def _encoded(self, pictures: Any) -> list[Group]:
        """Features of every prompt's references, [n, ...] each."""
        from imageprompt.encoders.pictures import open_picture

        if "face_embeds" in self.spec.feature:
            raise EncoderError(
                f"pictures for a {self.spec.variant} adapter",
                rule="it reads face embeddings, which an image encoder does not make",
                remedy="Make them with a face recogniser (ArcFace) and pass encode(features=...).",
            )
        groups = _picture_groups(pictures)
        encoder = self._need_encoder("pictures")
        opened = [open_picture(picture) for group in groups for picture in group]
        features = encoder.encode(opened, self.spec.feature)
        return list(torch.split(features, [len(group) for group in groups]))

    def _null_tokens(self, null_features: Group | None, like: Group) -> Tensor | None:
        """Tokens [1, N, W] of "no picture", by the variant's rule; None if they cannot be had.

        The null picture is the same for every prompt, so its tokens are made once.
        """
        if null_features is not None:
            check_features([null_features], self.spec)
            return self.project(first(null_features))
        features = self._null_features(like)
        if features is None:
            return None
        parts = (features,) if isinstance(features, Tensor) else features
        state = (
            tuple(part.shape for part in parts),
            *versions(self.projector.parameters()),
        )
        if self._null is None or self._null[0] != state:
            self._null = (state, self.project(features))
        return self._null[1]

    def _null_features(self, like: Group) -> Group | None:
        """Of one reference like this one; a face's embedding is zeroed in any case."""
        if self.spec.null_rule == "zero features":
            return zeros_like(like)
        if self._encoded_null is None and self.encoder is not None:
            self._encoded_null = self.encoder.encode_null(encoded_part(self.spec.feature))
        if self._encoded_null is None or isinstance(like, Tensor):
            return self._encoded_null
        return torch.zeros_like(like[0]), self._encoded_null

    def _need_encoder(self, what: str) -> Encoder:
        if self.encoder is None:
            raise EncoderError(
                f"no image encoder for {what}",
                rule=f"{self.spec.feature} {self.spec.feature_width} wide are needed",
                remedy="Pass encoder= to attach(), or ready-made features= to encode().",
            )
        return self.encoder


def _picture_groups(pictures: Any) -> list[list[PictureSource]]:
    """[[...], ...]: the references of every prompt. Raises PictureError when there is none."""
    if not isinstance(pictures, list | tuple):
        pictures = [pictures]
    nested = [isinstance(entry, list | tuple) for entry in pictures]
    groups = [list(entry) for entry in pictures] if all(nested) else [list(pictures)]
    if not pictures or any(not group for group in groups) or (any(nested) and not all(nested)):
        raise PictureError(
            "references",
            rule="a list of pictures, or one non-empty list for each prompt",
            remedy="Give at least one picture: encode([picture]) or encode([[a], [b]]).",
        )
    return groups
