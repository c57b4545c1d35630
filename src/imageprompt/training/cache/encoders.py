"""What frozen models make of pictures and captions: VAE moments, text states, image features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from imageprompt.core.errors import EncoderError, OptionError, PictureError, WrongBaseError
from imageprompt.core.fingerprint import fingerprint
from imageprompt.core.spec import Feature, ImageFeature, NullRule
from imageprompt.encoding.encoders import Encoder
from imageprompt.training.data.dataset import Features
from imageprompt.training.data.framing import Size, to_pixels
from imageprompt.variants import Variant, encode_null
from imageprompt.variants.tensor_shapes import FACE_DIM

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # of how pictures and captions are prepared here; another one makes entries anew


class Frozen(Protocol):
    """The frozen parts of a base that encode: a pipeline with its VAE, and an image encoder."""

    @property
    def pipe(self) -> Any: ...

    @property
    def encoder(self) -> Encoder | None: ...

    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and `text_embeds` [n, p] where the denoiser wants them."""


@dataclass(frozen=True)
class Latents:
    """From what the VAE's encoder says to what the denoiser is trained on."""

    factor: float = 1.0
    shift: float = 0.0

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Moments [n, 2c, h, w] (mean, log variance) and noise [n, c, h, w] -> float32 latents."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return (mean + deviation * noise - self.shift) * self.factor


class FeatureExtractors:
    """Encodes for one variant. All results are on the CPU, in the precision they were computed in.

    `recipes` names each kind by a hash of the models and settings that make it, so that what is
    kept of them can be found again, and is never taken for what another model made.
    """

    def __init__(self, base: Frozen, variant: Variant) -> None:
        self.feature: Feature = variant.feature
        self.null_rule: NullRule = variant.null_rule
        self._base = base
        self._vae: Any = getattr(base.pipe, "vae", None)
        if self._vae is None or not hasattr(self._vae.config, "scaling_factor"):
            raise WrongBaseError(
                "this base",
                reason="it has no VAE that makes latents of pictures",
                hint="Train on a latent diffusion pipeline.",
            )
        if base.encoder is None and self.reads_pictures:
            raise EncoderError(
                "no image encoder",
                reason=f"{variant.name} adapters read {self.feature}",
                hint="Name its folder in `encoder`.",
            )

    @property
    def reads_pictures(self) -> bool:
        """Is the image encoder needed? A face embedding alone is read from its file."""
        return not self.feature.faces_only

    @property
    def reads_faces(self) -> bool:
        return self.feature.reads_faces

    # ── latents ─────────────────────────────────────────────────────────────────────────────────

    @property
    def latents(self) -> Latents:
        config = self._vae.config
        return Latents(float(config.scaling_factor), float(getattr(config, "shift_factor", 0) or 0))

    @property
    def scale(self) -> int:
        """Pixels of a picture's side for one of its latents'."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    def moment_bytes(self, sizes: Sequence[Size]) -> int:
        """Bytes of the largest moments of pictures of these sizes."""
        area = max(width * height for width, height in sizes) // self.scale**2
        return 2 * int(self._vae.config.latent_channels) * area * int(self._vae.dtype.itemsize)

    @torch.no_grad()
    def moments(self, pictures: Sequence[Image]) -> Tensor:
        """RGB pictures of one size -> mean and log variance [n, 2c, h, w]."""
        pixels = to_pixels(pictures).to(self._vae.device, self._vae.dtype)
        found: Tensor = self._vae.encode(pixels).latent_dist.parameters
        if not torch.isfinite(found).all():
            raise OptionError(
                f"the VAE in {self._vae.dtype}".replace("torch.", ""),
                reason="it makes latents that are not finite",
                hint="Use mixed_precision: bf16 or no.",
            )
        return found.cpu()

    # ── text ────────────────────────────────────────────────────────────────────────────────────

    def text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and `text_embeds` [n, p] where the denoiser wants them."""
        states, added = self._base.encode_text(list(captions))
        return states.cpu(), {name: value.cpu() for name, value in added.items()}

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with start and end, before anything is cut off."""
        tokenizer = self._base.pipe.tokenizer
        found = tokenizer(list(captions), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found.input_ids]

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest caption that is not cut."""
        return int(self._base.pipe.tokenizer.model_max_length)

    # ── image features ──────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def image(self, pictures: Sequence[Image]) -> Tensor:
        """What the image encoder makes of RGB pictures of any size, [n, ...]."""
        return self._encoder.encode(pictures, self._encoded).cpu()

    def null(self, faces: Tensor | None = None) -> Features:
        """Features of "no picture" by the variant's rule [1, ...]; `faces` tells their size."""
        no_face = None
        if self.reads_faces:
            no_face = torch.zeros(1, FACE_DIM) if faces is None else torch.zeros_like(faces[:1])
        encoded = self.null_encoded if self.reads_pictures else None
        return joined(self.feature, encoded, no_face)

    @cached_property
    def null_encoded(self) -> Tensor:
        """What the image encoder says of the null picture [1, ...]."""
        with torch.no_grad():
            return encode_null(self.null_rule, self._encoder, self._encoded).cpu()

    @property
    def _encoder(self) -> Encoder:
        return cast(Encoder, self._base.encoder)

    @property
    def _encoded(self) -> ImageFeature:
        """What of the feature the encoder makes."""
        assert self.feature.image is not None  # asked only where the encoder is read
        return self.feature.image

    def identity(self) -> str:
        """Changes when anything does that decides what is encoded."""
        return f"{self.feature} {self.null_rule} {json.dumps(self.recipes, sort_keys=True)}"

    # ── names ───────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def recipes(self) -> dict[str, str]:
        """Kind -> 16 hex digits: "moments", "text" and, where there are any, "features"."""
        pipe = self._base.pipe
        texts = [name for name in sorted(pipe.components) if name.startswith("text_encoder")]
        models = [getattr(pipe, name) for name in texts if getattr(pipe, name) is not None]
        words, most = pipe.tokenizer, self.most_tokens
        found = {
            "moments": _hash(VERSION, _of(self._vae)),
            "text": _hash(
                VERSION, *(_of(one) for one in models), type(words).__name__, len(words), most
            ),
        }
        if self.reads_pictures:
            model = getattr(self._encoder, "model", None)
            kind = str(getattr(model, "dtype", ""))
            processor = getattr(self._encoder, "processor", None)
            settings = processor.to_dict() if processor is not None else {}
            found["features"] = _hash(
                VERSION,
                self._encoder.fingerprint,
                kind,
                self._encoded,
                json.dumps(settings, default=str),
            )
        return found


def joined(feature: Feature, encoded: Tensor | None, faces: Tensor | None) -> Features:
    """A variant's features from what the encoder says and the faces' embeddings."""
    if faces is not None and feature.normalises_faces:
        faces = torch.nn.functional.normalize(faces, dim=-1)
    parts = tuple(part for part in (faces, encoded) if part is not None)
    return parts if len(parts) > 1 else parts[0]


def faces_of(embeddings: Sequence[Any], keys: Sequence[str]) -> Tensor:
    """Face embeddings [d] or [k, d] of several samples as one tensor. Raises PictureError."""
    shapes = [tuple(one.shape) for one in embeddings]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise PictureError(
            f"face embedding of {keys[odd]!r}",
            reason=f"it is {list(shapes[odd])}, that of {keys[0]!r} is {list(shapes[0])}",
            hint="Give every sample as many faces of one width.",
        )
    return torch.stack([torch.as_tensor(one) for one in embeddings])


def _of(model: Any) -> str:
    """What a model computes depends on: weights and precision."""
    return f"{fingerprint(model.state_dict())} {model.dtype}"


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
