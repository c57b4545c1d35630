"""Encoding with the frozen models: VAE moments, text states and image features."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor

from imageprompt.checkpoint.identify.identify import identify
from imageprompt.checkpoint.read.open import locate_adapter, open_source
from imageprompt.core.errors import EncoderError, OptionError, PictureError, WrongBaseError
from imageprompt.core.fingerprint import fingerprint
from imageprompt.core.hub import PARTS, part_of
from imageprompt.core.spec import Feature, ImageFeature, NullRule
from imageprompt.encoding.encoders import Encoder
from imageprompt.hosts import denoiser_of
from imageprompt.loading import largest_side
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Features, RandomStreams
from imageprompt.training.data.latents import LatentScaling, Vae
from imageprompt.training.data.sources import Records
from imageprompt.training.data.views import PictureOptions, Size
from imageprompt.variants import VARIANTS, Variant, chosen_feature, encode_null
from imageprompt.variants.tensor_shapes import FACE_DIM

if TYPE_CHECKING:
    from PIL.Image import Image

_VERSION = 1  # of how pictures and captions are encoded here; a new one invalidates all entries


class FrozenModels(Protocol):
    """The frozen models that encode: a pipeline with its VAE, and an image encoder."""

    @property
    def pipe(self) -> Any: ...

    @property
    def encoder(self) -> Encoder | None: ...

    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and the denoiser's other conditions by text [n, ...]."""

    @property
    def text_limit(self) -> tuple[Any, int]:
        """The tokenizer of these states, and the number of its tokens that are read."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that `encode_text` may return."""

    @property
    def patch_size(self) -> int:
        """Latent positions on a side that the denoiser reads as one."""


class FeatureExtractors:
    """Encodes for one variant. All results are on the CPU, in the precision of their model.

    `model_ids` names each kind of entry by a hash of the models and settings that produce it, so
    that cached entries are found again, and never taken for those of another model.
    """

    def __init__(
        self,
        base: FrozenModels,
        variant: Variant,
        feature: Feature | None = None,
        *,
        latents: Literal["sample", "mean"] = "sample",
    ) -> None:
        """`feature` is another one than the variant's own.

        Raises OptionError for a variant that cannot be trained, WrongBaseError for a base without a
        VAE, or whose denoiser reads more than its latents, EncoderError without an encoder or for
        one that does not make the feature.
        """
        if variant.null_rule == "no tokens":
            raise OptionError(
                f"training of a {variant.name} adapter",
                reason="nothing in it stands for 'no picture', which training drops pictures for",
                hint="Choose another variant.",
            )
        self.feature: Feature = feature or variant.feature
        self.null_rule: NullRule = variant.null_rule
        self._base, self._latents = base, latents
        self.vae = Vae.of(base.pipe)
        _check_channels(base, self.vae.channels)
        if base.encoder is None and self.reads_pictures:
            raise EncoderError(
                "no image encoder",
                reason=f"{variant.name} adapters read {self.feature}",
                hint="Name its folder in `encoder`.",
            )
        if base.encoder is not None and self.reads_pictures:
            base.encoder.width(self._image_feature)

    @property
    def reads_pictures(self) -> bool:
        """Whether the image encoder is needed; a face embedding alone is read from its file."""
        return not self.feature.faces_only

    @property
    def reads_faces(self) -> bool:
        """Whether samples need a face embedding."""
        return self.feature.reads_faces

    # ── latents ─────────────────────────────────────────────────────────────────────────────────

    def latents(self, scaling: LatentScaling, moments: Tensor, streams: RandomStreams) -> Tensor:
        """The latents of these moments; the noise is drawn even if it has no part in them."""
        noise = streams.randn(scaling.channels(moments), *moments.shape[2:])
        return scaling.sample(moments, noise * (self._latents == "sample"))

    def check_sizes(self, sizes: Sequence[Size]) -> None:
        """Raises OptionError for pictures that the denoiser cannot cut into its patches, or for
        whose patches it has no positions."""
        multiple, largest = self.vae.factor * self._base.patch_size, largest_side(self._base.pipe)
        for width, height in sizes:
            if largest is not None and max(width, height) > largest:
                raise OptionError(
                    f"training pictures of {width} x {height}",
                    reason=f"this base knows positions for {largest} x {largest} pixels at most",
                    hint=f"Set resolution: {largest}, or less.",
                )
            if width % multiple or height % multiple:
                raise OptionError(
                    f"training pictures of {width} x {height}",
                    reason=f"this base needs sides that are multiples of {multiple}",
                    hint="Change resolution or buckets.",
                )

    def moment_bytes(self, sizes: Sequence[Size]) -> int:
        """Bytes of the largest moments of pictures of these sizes in pixels."""
        kinds = map(self.vae.moment_kind, sizes)
        return max(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)

    # ── text ────────────────────────────────────────────────────────────────────────────────────

    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and the denoiser's other conditions by text [n, ...]."""
        states, added = self._base.encode_text(list(captions))
        return states.cpu(), {name: value.cpu() for name, value in added.items()}

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Number of tokens of each caption with start and end, before truncation."""
        tokenizer, _ = self._base.text_limit
        encoded = tokenizer(list(captions), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in encoded.input_ids]

    @property
    def max_tokens(self) -> int:
        """Number of tokens that the text encoder reads."""
        return self._base.text_limit[1]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that `encode_text` may return beside the states."""
        return self._base.conditions

    # ── image features ──────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def encode_references(self, pictures: Sequence[Image]) -> Tensor:
        """The image encoder's features of RGB pictures of any size, [n, ...]."""
        return self._encoder.encode(pictures, self._image_feature).cpu()

    def null_features(self, faces: Tensor | None = None) -> Features:
        """Features of the null image by the variant's rule [1, ...]; `faces` gives their shape."""
        no_face = None
        if self.reads_faces:
            no_face = torch.zeros(1, FACE_DIM) if faces is None else torch.zeros_like(faces[:1])
        encoded = self.null_encoded if self.reads_pictures else None
        return combine_features(self.feature, encoded, no_face)

    @cached_property
    def null_encoded(self) -> Tensor:
        """The image encoder's features of the null image [1, ...]."""
        with torch.no_grad():
            return encode_null(self.null_rule, self._encoder, self._image_feature).cpu()

    @property
    def _encoder(self) -> Encoder:
        return cast(Encoder, self._base.encoder)

    @property
    def _image_feature(self) -> ImageFeature:
        """The part of the feature that the encoder computes."""
        assert self.feature.image is not None  # only read where there is an encoder
        return self.feature.image

    # ── identity ────────────────────────────────────────────────────────────────────────────────

    def identity(self) -> str:
        """Changes with everything that decides what is encoded."""
        return f"{self.feature} {self.null_rule} {json.dumps(self.model_ids, sort_keys=True)}"

    @cached_property
    def model_ids(self) -> dict[str, str]:
        """Kind -> 16 hex digits: "moments", "text" and, with an image encoder, "features"."""
        pipe = self._base.pipe
        names = [name for name in sorted(pipe.components) if name.startswith("text_encoder")]
        models = [getattr(pipe, name) for name in names if getattr(pipe, name) is not None]
        tokenizer, _ = self._base.text_limit
        found = {
            "moments": _hash(_VERSION, _weights_id(self.vae.model)),
            "text": _hash(
                _VERSION,
                *(_weights_id(one) for one in models),
                type(tokenizer).__name__,
                len(tokenizer),
                self.max_tokens,
            ),
        }
        if self.reads_pictures:
            model = getattr(self._encoder, "model", None)
            processor = getattr(self._encoder, "processor", None)
            settings = processor.to_dict() if processor is not None else {}
            found["features"] = _hash(
                _VERSION,
                self._encoder.fingerprint,
                str(getattr(model, "dtype", "")),
                self._image_feature,
                json.dumps(settings, default=str),
            )
        return found


def feature_to_read(config: TrainingConfig) -> Feature:
    """What the run's adapter reads: as in its file, or as chosen for a new one.

    Only names and shapes of the file are read. Raises OptionError if file and config disagree.
    """
    chosen = chosen_feature(VARIANTS[config.variant], config.feature)
    if config.adapter is None:
        return chosen
    file = config.adapter if config.pairs == "none" else part_of(config.adapter, PARTS[0])
    found = identify(open_source(locate_adapter(file)))
    if found.spec is None or found.spec.feature.is_vector != chosen.is_vector:
        return chosen  # what is wrong is said when it is loaded
    if config.feature is not None and found.spec.feature != chosen:
        raise OptionError(
            f"adapter {config.adapter!r}",
            reason=f"it reads {found.spec.feature}, but the config has feature {config.feature}",
            hint="Leave `feature` out, or start from new weights.",
        )
    return found.spec.feature


def _check_channels(base: FrozenModels, own: int) -> None:
    """Raises WrongBaseError if the denoiser reads other channels than those of latents."""
    config = getattr(denoiser_of(base.pipe), "config", {})
    read = config.get("in_channels", own)
    if read not in (own, own * base.patch_size**2):
        raise WrongBaseError(
            f"a {type(base.pipe).__name__} whose denoiser reads {read} channels",
            reason=f"latents have {own}: it reads another picture or a mask beside them",
            hint="Train on the base for text to picture.",
        )


def combine_features(feature: Feature, encoded: Tensor | None, faces: Tensor | None) -> Features:
    """A variant's features from the encoder's features [n, ...] and face embeddings [n, ..., d]."""
    if faces is not None and feature.normalises_faces:
        faces = torch.nn.functional.normalize(faces, dim=-1)
    parts = tuple(part for part in (faces, encoded) if part is not None)
    return parts if len(parts) > 1 else parts[0]


def stack_faces(embeddings: Sequence[Any], keys: Sequence[str]) -> Tensor:
    """Face embeddings [d] or [k, d] of several samples as one tensor. Raises PictureError."""
    shapes = [tuple(one.shape) for one in embeddings]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise PictureError(
            f"face embedding of {keys[odd]!r}",
            reason=f"its shape is {list(shapes[odd])}, that of {keys[0]!r} is {list(shapes[0])}",
            hint="Give every sample as many faces of one width.",
        )
    return torch.stack([torch.as_tensor(one) for one in embeddings])


def _weights_id(model: Any) -> str:
    """Changes with a model's weights and precision."""
    return f"{fingerprint(model.state_dict())} {model.dtype}"


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def dataset_fingerprint(
    records: Records, extractors: FeatureExtractors, options: PictureOptions
) -> str:
    """16 hex digits that change with the data, the models that encode it, or how it is cropped.

    The same with and without a cache.
    """
    parts = (records.fingerprint(), options.identity(), extractors.identity())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
