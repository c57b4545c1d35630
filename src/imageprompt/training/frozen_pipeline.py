"""The frozen half of training: a base and an image encoder, in the precision that they run in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import locate_folder
from imageprompt.encoding.encoders import Encoder, open_encoder
from imageprompt.hosts import denoiser_of
from imageprompt.loading import base_folder, device_of, load_base
from imageprompt.training.memory.activation_checkpointing import recompute_blocks
from imageprompt.training.memory.cpu_attention import compute_in_blocks

if TYPE_CHECKING:
    from imageprompt.encoding.encoders.clip import ClipEncoder

Precision = Literal["no", "fp16", "bf16"]
_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
TINY = "tiny"
"""What configs call the bundled base."""


@dataclass(frozen=True)
class FrozenPipeline:
    """A pipeline and an image encoder that nothing of is trained. Make one with `load`.

    Everything is in evaluation mode and wants no gradients; weights are in the precision asked for,
    but a VAE whose config says that half precision is not enough for it.
    """

    pipe: Any
    denoiser: Any
    scheduler: Any
    encoder: Encoder | None

    @classmethod
    def load(
        cls,
        base: Any,
        encoder: str | os.PathLike[str] | Any = None,
        *,
        precision: Precision = "bf16",
        device: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> FrozenPipeline:
        """From "tiny", a folder, a Hub id or a loaded pipeline, whose parts are cast and frozen.

        `encoder` None is the base's own image encoder, if it carries one. Raises NotFoundError,
        WrongBaseError, EncoderError, OptionError.
        """
        if precision not in _DTYPES:
            raise OptionError(
                f"mixed_precision: {precision!r}", reason=f"it is one of {', '.join(_DTYPES)}"
            )
        named = bundled.NAME if base == TINY else base
        folder = base_folder(named)
        kind = _DTYPES[precision] if folder is not None else None
        pipe = load_base(named, folder, dtype=kind, device=device, bars=False).pipe
        dtype: torch.dtype = getattr(torch, _DTYPES[precision])
        denoiser: Any = denoiser_of(pipe)
        _keep_precise_vae(pipe, folder)
        opened = _open_encoder(encoder, pipe, folder, dtype)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        if denoiser.dtype is not dtype:
            denoiser.to(dtype)
        compute_in_blocks(denoiser)
        if gradient_checkpointing:
            recompute_blocks(denoiser)
        return cls(pipe, denoiser, pipe.scheduler, opened)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and `text_embeds` [n, p] where the base has a pooled text (SDXL).

        Made by the pipeline itself, as in generation; what is too long is cut off.
        """
        from diffusers.utils import logging

        said = logging.get_verbosity()
        logging.set_verbosity_error()  # who encodes captions by the thousand counts the cut ones
        try:
            encoded = self.pipe.encode_prompt(
                prompt=list(captions),
                device=device_of(self.pipe),
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        finally:
            logging.set_verbosity(said)
        states, pooled = encoded[0], encoded[2] if len(encoded) > 2 else None
        return states, {} if pooled is None else {"text_embeds": pooled}


def _keep_precise_vae(pipe: Any, folder: Path | None) -> None:
    """A VAE that says of itself that it overflows in half precision (SDXL's) stays float32."""
    vae = getattr(pipe, "vae", None)
    if vae is None or vae.dtype is torch.float32:
        return
    config = vae.config
    said = "force_upcast" not in config.get("_use_default_values", ())
    if not (said and config.get("force_upcast")):
        return
    if folder is None:
        vae.to(torch.float32)
    else:  # from the file, not from weights that are rounded already
        precise = type(vae).from_pretrained(folder / "vae", local_files_only=True)
        pipe.register_modules(vae=precise.to(vae.device))


def _open_encoder(
    encoder: Any, pipe: Any, folder: Path | None, dtype: torch.dtype
) -> Encoder | None:
    """The encoder that is named, or else the base's own: loaded with it, or beside it."""
    from imageprompt.encoding.encoders.clip import ClipEncoder

    if encoder is not None and not isinstance(encoder, str | os.PathLike):
        return open_encoder(encoder)
    device = device_of(pipe)
    if encoder is not None:
        return _frozen(ClipEncoder.load(locate_folder(encoder), device=device, dtype=dtype))
    own = getattr(pipe, "image_encoder", None)
    if own is not None:
        return ClipEncoder(own, getattr(pipe, "feature_extractor", None))
    beside = None if folder is None else folder / "image_encoder"
    if beside is None or not (beside / "config.json").is_file():
        return None
    return _frozen(ClipEncoder.load(beside, device=device, dtype=dtype))


def _frozen(encoder: ClipEncoder) -> ClipEncoder:
    encoder.model.requires_grad_(False)
    return encoder
