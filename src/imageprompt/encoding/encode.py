"""ReferenceEncoder: references to image tokens and null tokens, for one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imageprompt.core.errors import EncoderError, OptionError, PromptError
from imageprompt.core.fingerprint import ContentWatch, fingerprint
from imageprompt.core.spec import AdapterSpec, ImageFeature
from imageprompt.encoding.encoders import Encoder
from imageprompt.encoding.encoders.contract import LARGEST, FaceChoice
from imageprompt.encoding.features import (
    Features,
    Group,
    as_groups,
    check_counts,
    check_shapes,
    concatenate,
    first_reference,
    reference_count,
)
from imageprompt.encoding.fusion import CONCAT
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import Pictures, References
from imageprompt.variants import encode_null, null_features

if TYPE_CHECKING:
    from imageprompt.encoding.face_embeddings import Embeddings
    from imageprompt.encoding.face_encoder import FaceEncoder


class ReferenceEncoder:
    """Turns references into image prompts; owned by an Adapter.

    `projector` is the adapter's own module. `encoder` is the image encoder that the adapter is
    attached with, `face_encoder` finds faces in pictures, and `base` is the pipeline that the
    adapter is attached to, searched for text encoders; each may be None.
    """

    def __init__(self, spec: AdapterSpec, projector: nn.Module) -> None:
        self.spec = spec
        self.projector = projector
        self.encoder: Encoder | None = None
        self.face_encoder: FaceEncoder | None = None
        self.base: object = None
        self._encoded_null: Tensor | None = None  # the encoder's features of the null picture
        self._null: tuple[Any, Tensor] | None = None  # weights' versions, and the null tokens
        self._fingerprint: tuple[Any, str] | None = None
        self._watch = ContentWatch()

    def set_encoder(self, encoder: Encoder) -> None:
        """Use this image encoder from now on."""
        self.encoder, self._encoded_null, self._null = encoder, None, None

    def encode(
        self,
        pictures: Pictures | None,
        features: Features | None,
        null_features: Group | None,
        options: EncodeOptions,
        *,
        embeddings: Embeddings | None = None,
        face: FaceChoice = LARGEST,
    ) -> ImagePrompt:
        """See `Adapter.encode`."""
        if (pictures is None and embeddings is None) == (features is None):
            raise PromptError(
                "encode()",
                reason="takes either pictures or ready-made features",
                hint="Give one of them.",
            )
        options.check(self.spec, pictures, null_features)
        options.check_faces(self.spec, pictures, embeddings, face)
        with torch.no_grad():
            if features is not None:
                groups, references = as_groups(features), None
            elif self.spec.feature.reads_faces:
                groups, references = self._encode_faces(pictures, embeddings, face, options)
            else:
                groups, references = self._encode_pictures(pictures, options)
            check_shapes(groups, self.spec)
            fused, weights = self._fuse(groups, references, options)
            tokens = self._project_groups(fused, options)
            null = self._null_tokens_like(fused, null_features, references, options)
            if weights is not None and (self.spec.is_timed or self.spec.null_rule == "no tokens"):
                raise OptionError(
                    f"weights of references for a {self.spec.variant} adapter",
                    reason="its tokens are made anew at every step"
                    if self.spec.is_timed
                    else "the base attends to its tokens as to words, however small they are",
                    hint="Choose another fusion than 'concat', or use the references with a scale "
                    "each.",
                )
            if weights is not None:
                per_reference = tokens.shape[1] // weights.shape[1]
                factors = weights.to(tokens).repeat_interleave(per_reference, 1)[..., None]
                tokens = tokens * factors
                null = None if null is None else null * factors
        counts = sorted({reference_count(group) for group in groups})
        metadata = {"references": ", ".join(map(str, counts)), **options.as_metadata()}
        return ImagePrompt(tokens, null, self._metadata() | metadata, features=fused)

    def project(
        self, features: Group, *, null: bool = False, strength: float | Tensor = 1.0
    ) -> Tensor:
        """See `Adapter.project`."""
        if null:
            encoded = features if isinstance(features, Tensor) else features[-1]
            no_picture = null_features(self.spec.null_rule, features, encoded)
            features = features if no_picture is None else no_picture
        if self.spec.is_timed:
            if isinstance(features, Tensor):
                return features
            raise EncoderError(
                f"features of a {self.spec.variant} adapter", reason="must be one tensor"
            )
        weight = next(self.projector.parameters())
        parts = (features,) if isinstance(features, Tensor) else features
        inputs = [part.to(weight.device, weight.dtype) for part in parts]
        if isinstance(strength, Tensor):
            strength = strength.to(weight.device, weight.dtype)
        extra = () if len(inputs) == 1 else (strength,)
        tokens: Tensor = self.projector(*inputs, *extra)
        return tokens

    def fingerprint(self) -> str:
        """See `Adapter.fingerprint`."""
        state = self._watch.state(self.projector.parameters())
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint(self.projector.state_dict()))
        return self._fingerprint[1]

    def _metadata(self) -> dict[str, str]:
        metadata = {"variant": self.spec.variant, "projector": self.fingerprint()}
        if self.encoder is not None:
            metadata["encoder"] = self.encoder.fingerprint
        if self.face_encoder is not None and self.face_encoder.fingerprint:
            metadata["faces"] = self.face_encoder.fingerprint
        return metadata

    def _project_groups(self, groups: Sequence[Group], options: EncodeOptions) -> Tensor:
        """Features of n references for each of P prompts -> tokens side by side, [P, n N, W]."""
        tokens = self.project(concatenate(groups), strength=options.face_strength)
        return tokens.reshape(len(groups), -1, tokens.shape[-1])

    # ── features ────────────────────────────────────────────────────────────────────────────────

    @property
    def _image_feature(self) -> ImageFeature:
        """The feature of the image encoder that the projector reads, if it reads one."""
        assert self.spec.feature.image is not None
        return self.spec.feature.image

    def _fuse(
        self, groups: list[Group], references: References | None, options: EncodeOptions
    ) -> tuple[list[Group], Tensor | None]:
        """See `fuse_references`, which side by side and without weights has nothing to do."""
        if options.fusion == CONCAT and options.weights is options.subtract_text is None:
            check_counts(groups)
            return groups, None
        from imageprompt.encoding.fuse_references import fuse_references

        return fuse_references(groups, references, options, self.encoder, self.base)

    def _encode_pictures(
        self, pictures: Pictures | None, options: EncodeOptions
    ) -> tuple[list[Group], References]:
        """Features of every prompt's references, [n, ...] each, and the references themselves."""
        encoder = self._need_encoder()
        references = References.open(pictures, encoder, options.framing, options.reference_mask)
        return list(references.encode(encoder, self._image_feature)), references

    def _encode_faces(
        self,
        pictures: Pictures | None,
        embeddings: Embeddings | None,
        face: FaceChoice,
        options: EncodeOptions,
    ) -> tuple[list[Group], References | None]:
        """Embeddings of every prompt's faces, given or found in the pictures.

        FaceID-plus also reads the image encoder's features of the face crops.
        """
        from imageprompt.encoding.face_embeddings import check_crops, faces_in, prompt_embeddings

        if embeddings is not None:
            crops: Any = pictures
            rows = prompt_embeddings(embeddings, self.spec)
        else:
            rows, crops = faces_in(pictures, self.face_encoder, face, self.spec)
        if self.spec.feature.faces_only:
            return list(rows), None
        encoded, references = self._encode_pictures(crops, options)
        check_crops(
            [len(group) for group in rows], [reference_count(g) for g in encoded], self.spec
        )
        pairs = zip(rows, encoded, strict=True)
        return [(row, part) for row, part in pairs if isinstance(part, Tensor)], references

    # ── no picture ──────────────────────────────────────────────────────────────────────────────

    def _null_tokens_like(
        self,
        fused: list[Group],
        null_features: Group | None,
        references: References | None,
        options: EncodeOptions,
    ) -> Tensor | None:
        """Null tokens in the shape of the tokens, [P, n N, W]; None without an encoder for them."""
        negative = self._negative_references(references, options)
        prompts, n, like = len(fused), reference_count(fused[0]), first_reference(fused[0])
        if negative is None:
            null = self._null_tokens(null_features, like, options.face_strength)
            return None if null is None else null.expand(prompts, -1, -1).repeat(1, n, 1)
        encoded = negative.encode(self._need_encoder(), self._image_feature)
        if len(encoded) not in (1, prompts):
            raise PromptError(
                f"negative pictures for {len(encoded)} prompts",
                reason=f"there are {prompts} prompt(s)",
                hint="Give one list for each prompt, or one picture for all.",
            )
        groups: list[Group] = [_one_for_each(group, n) for group in encoded]
        if not isinstance(like, Tensor):  # the null of a face embedding is always zero
            no_faces = torch.zeros_like(like[0]).expand(n, -1)
            groups = [(no_faces, group) for group in groups if isinstance(group, Tensor)]
        return self._project_groups(groups, options).expand(prompts, -1, -1)

    def _negative_references(
        self, references: References | None, options: EncodeOptions
    ) -> References | None:
        """The pictures that stand for "no picture", if the options ask for any."""
        if options.negative is not None:
            references = References.open(options.negative, self._need_encoder(), options.framing)
        elif not options.noise:
            return None
        if options.noise and references is not None:
            encoder = self._need_encoder()
            references = references.with_noise(encoder, options.noise, options.noise_seed)
        return references

    def _null_tokens(
        self, null_features: Group | None, like: Group, strength: float
    ) -> Tensor | None:
        """Tokens [1, N, W] of "no picture", by the variant's rule; None without an encoder for it.

        The null picture is the same for every prompt, so it is projected once.
        """
        if null_features is not None:
            check_shapes([null_features], self.spec)
            return self.project(first_reference(null_features), strength=strength)
        features = self._null_features(like)
        if features is None:
            return None
        parts = (features,) if isinstance(features, Tensor) else features
        state = (
            strength,
            tuple(part.shape for part in parts),
            *self._watch.state(self.projector.parameters()),
        )
        if self._null is None or self._null[0] != state:
            self._null = (state, self.project(features, strength=strength))
        return self._null[1]

    def _null_features(self, like: Group) -> Group | None:
        """Null features of one reference; those of a face embedding are always zero."""
        rule, encoder = self.spec.null_rule, self.encoder
        encodes = rule not in ("zero features", "no tokens")
        if self._encoded_null is None and encoder is not None and encodes:
            self._encoded_null = encode_null(rule, encoder, self._image_feature)
        return null_features(rule, like, self._encoded_null)

    def _need_encoder(self) -> Encoder:
        if self.encoder is None:
            raise EncoderError(
                "pictures without an image encoder",
                reason=f"this adapter reads {self.spec.feature}, {self.spec.feature_dim} wide",
                hint="Pass encoder= to attach(), or ready-made features= to encode().",
            )
        return self.encoder


def _one_for_each(group: Tensor, references: int) -> Tensor:
    """Features of k negative pictures [k, ...] -> [n, ...], one for each reference.

    If there are fewer negatives than references, the last one is repeated. A single (fused)
    reference gets their mean. Raises PromptError for more negatives than references side by side.
    """
    if references == 1:
        return group.mean(0, keepdim=True)
    if len(group) > references:
        raise PromptError(
            f"{len(group)} negative pictures for {references} references",
            reason="each reference side by side has one negative picture",
            hint="Give at most one for each reference; the last one is repeated.",
        )
    return torch.cat([group, group[-1:].expand(references - len(group), *group.shape[1:])])
