"""Encoding: references to tokens and null tokens, for one adapter's projector and an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.core.errors import EncoderError, PromptError
from imageprompt.core.fingerprint import fingerprint, versions
from imageprompt.core.spec import AdapterSpec, ImageFeature
from imageprompt.encoding.encoders import Encoder
from imageprompt.encoding.encoders.face import LARGEST, Choice, FaceEncoder
from imageprompt.encoding.face_embeddings import (
    Embeddings,
    check_crops,
    check_faces,
    embeddings_of,
    faces_in,
    reads_pictures,
)
from imageprompt.encoding.features import (
    Features,
    Group,
    check_shapes,
    count,
    first,
    groups_of,
    joined,
    zeros_like,
)
from imageprompt.encoding.fuse_references import mixed
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import Pictures, References


class Encoding:
    """What turns references into an image prompt; owned by an Adapter.

    `projector` is the adapter's own module and `encoder` the one it is attached with, or None.
    """

    def __init__(self, spec: AdapterSpec, projector: nn.Module) -> None:
        self.spec = spec
        self.projector = projector
        self.encoder: Encoder | None = None
        self.faces: FaceEncoder | None = None
        self.base: object = None  # what the adapter is attached to, with its text encoders
        self._encoded_null: Tensor | None = None  # the encoder's features of the null picture
        self._null: tuple[Any, Tensor] | None = None  # its tokens, and the weights that made them
        self._fingerprint: tuple[Any, str] | None = None

    def open(self, encoder: Encoder) -> None:
        """Read pictures with this encoder from now on."""
        self.encoder, self._encoded_null, self._null = encoder, None, None

    def encode(
        self,
        pictures: Pictures | None,
        features: Features | None,
        null_features: Group | None,
        mixture: EncodeOptions,
        *,
        embeddings: Embeddings | None = None,
        face: Choice = LARGEST,
    ) -> ImagePrompt:
        """As `Adapter.encode`."""
        if (pictures is None and embeddings is None) == (features is None):
            raise PromptError(
                "encode()", reason="it takes either pictures or features", hint="Give one of them."
            )
        mixture.check(self.spec, pictures, null_features)
        framed = mixture.framing is not None or mixture.reference_mask is not None
        check_faces(self.spec, pictures, embeddings, face, framed=framed)
        with torch.no_grad():
            if features is not None:
                groups, seen = groups_of(features), None
            elif self.spec.feature.reads_faces:
                groups, seen = self._encoded_faces(pictures, embeddings, face, mixture)
            else:
                groups, seen = self._encoded(pictures, mixture)
            check_shapes(groups, self.spec)
            read, shares = mixed(groups, seen, mixture, self.encoder, self.base)
            tokens = self._side_by_side(read, mixture)
            null = self._null_rows(null_features, read, seen, mixture)
            if shares is not None:
                each = shares.to(tokens).repeat_interleave(tokens.shape[1] // shares.shape[1], 1)
                tokens = tokens * each[..., None]
                null = None if null is None else null * each[..., None]
        numbers = sorted({count(group) for group in groups})
        said = {"references": ", ".join(map(str, numbers)), **mixture.words()}
        return ImagePrompt(tokens, null, self._metadata() | said, features=read)

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

    def _metadata(self) -> dict[str, str]:
        metadata = {"variant": self.spec.variant, "projector": self.fingerprint()}
        if self.encoder is not None:
            metadata["encoder"] = self.encoder.fingerprint
        if self.faces is not None and self.faces.fingerprint:
            metadata["faces"] = self.faces.fingerprint
        return metadata

    def _side_by_side(self, groups: Sequence[Group], mixture: EncodeOptions) -> Tensor:
        """[P, n N, W] of n references for each of P prompts."""
        tokens = self.project(joined(groups), strength=mixture.face_strength)
        return tokens.reshape(len(groups), -1, tokens.shape[-1])

    @property
    def _image_feature(self) -> ImageFeature:
        """What the image encoder is asked for, where one is read."""
        assert self.spec.feature.image is not None
        return self.spec.feature.image

    def _encoded(
        self, pictures: Pictures | None, mixture: EncodeOptions
    ) -> tuple[list[Group], References]:
        """Features of every prompt's references, [n, ...] each, and what the encoder was shown."""
        encoder = self._need_encoder()
        seen = References.of(pictures, encoder, mixture.framing, mixture.reference_mask)
        return list(seen.encoded(encoder, self._image_feature)), seen

    def _encoded_faces(
        self,
        pictures: Pictures | None,
        embeddings: Embeddings | None,
        face: Choice,
        mixture: EncodeOptions,
    ) -> tuple[list[Group], References | None]:
        """Embeddings of every prompt's faces, given or found in the pictures; for FaceID-plus
        beside what the encoder makes of the faces' crops."""
        if embeddings is not None:
            crops: Any = pictures
            rows = embeddings_of(embeddings, self.spec)
        else:
            rows, crops = faces_in(pictures, self.faces, face, self.spec)
        if not reads_pictures(self.spec):
            return list(rows), None
        shown, seen = self._encoded(crops, mixture)
        check_crops([len(group) for group in rows], [count(group) for group in shown], self.spec)
        return [(r, s) for r, s in zip(rows, shown, strict=True) if isinstance(s, Tensor)], seen

    # ── no picture ──────────────────────────────────────────────────────────────────────────────

    def _null_rows(
        self,
        null_features: Group | None,
        read: list[Group],
        seen: References | None,
        mixture: EncodeOptions,
    ) -> Tensor | None:
        """Null tokens in the shape of the tokens, [P, n N, W]; None if they cannot be had."""
        shown = self._shown_as_null(seen, mixture)
        prompts, n, like = len(read), count(read[0]), first(read[0])
        if shown is None:
            null = self._null_tokens(null_features, like, mixture.face_strength)
            return None if null is None else null.expand(prompts, -1, -1).repeat(1, n, 1)
        negative = shown.encoded(self._need_encoder(), self._image_feature)
        if len(negative) not in (1, prompts):
            raise PromptError(
                f"negative pictures for {len(negative)} prompts",
                reason=f"there are {prompts} prompt(s)",
                hint="Give one list for each prompt, or one picture for all.",
            )
        groups: list[Group] = [_paired(group, n) for group in negative]
        if not isinstance(like, Tensor):  # a face's embedding is zeroed in any case
            faces = torch.zeros_like(like[0]).expand(n, -1)
            groups = [(faces, group) for group in groups if isinstance(group, Tensor)]
        return self._side_by_side(groups, mixture).expand(prompts, -1, -1)

    def _shown_as_null(self, seen: References | None, mixture: EncodeOptions) -> References | None:
        """Pictures in the place of no picture, where the user wants some."""
        shown = seen
        if mixture.negative is not None:
            shown = References.of(mixture.negative, self._need_encoder(), mixture.framing)
        elif not mixture.noise:
            return None
        if mixture.noise and shown is not None:
            shown = shown.noisy(self._need_encoder(), mixture.noise, mixture.noise_seed)
        return shown

    def _null_tokens(
        self, null_features: Group | None, like: Group, strength: float
    ) -> Tensor | None:
        """Tokens [1, N, W] of "no picture", by the variant's rule; None if they cannot be had.

        The null picture is the same for every prompt, so its tokens are made once.
        """
        if null_features is not None:
            check_shapes([null_features], self.spec)
            return self.project(first(null_features), strength=strength)
        features = self._null_features(like)
        if features is None:
            return None
        parts = (features,) if isinstance(features, Tensor) else features
        state = (
            strength,
            tuple(part.shape for part in parts),
            *versions(self.projector.parameters()),
        )
        if self._null is None or self._null[0] != state:
            self._null = (state, self.project(features, strength=strength))
        return self._null[1]

    def _null_features(self, like: Group) -> Group | None:
        """Of one reference like this one; a face's embedding is zeroed in any case."""
        if self.spec.null_rule == "zero features":
            return zeros_like(like)
        if self._encoded_null is None and self.encoder is not None:
            self._encoded_null = self.encoder.encode_null(self._image_feature)
        if self._encoded_null is None or isinstance(like, Tensor):
            return self._encoded_null
        return torch.zeros_like(like[0]), self._encoded_null

    # ── checks ──────────────────────────────────────────────────────────────────────────────────

    def _need_encoder(self) -> Encoder:
        if self.encoder is None:
            raise EncoderError(
                "no image encoder for pictures",
                reason=f"{self.spec.feature} {self.spec.feature_dim} wide are needed",
                hint="Pass encoder= to attach(), or ready-made features= to encode().",
            )
        return self.encoder


def _paired(group: Tensor, references: int) -> Tensor:
    """Negative pictures' features [k, ...] -> [n, ...]: one beside each reference.

    The last is repeated where there are fewer; beside mixed references their mean stands. Raises
    PromptError where there are more negative pictures than references side by side.
    """
    if references == 1:
        return group.mean(0, keepdim=True)
    if len(group) > references:
        raise PromptError(
            f"{len(group)} negative pictures for {references} references",
            reason="side by side, each has its own; the last is repeated",
            hint="Give no more than there are references.",
        )
    return torch.cat([group, group[-1:].expand(references - len(group), *group.shape[1:])])
