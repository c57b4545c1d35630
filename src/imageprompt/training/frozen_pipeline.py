"""The frozen part of training: a base and an image encoder, in the precision they run in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.encoding.encoders import Encoder, open_encoder, own_encoder
from imageprompt.hosts import Training, denoiser_of, host_of, training_of
from imageprompt.loading import (
    base_folder,
    device_of,
    load_base,
    quiet_loading,
    stated_text_tokens,
    usable_device,
)

Precision = Literal["no", "fp16", "bf16"]
_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class FrozenPipeline:
    """A frozen pipeline and image encoder; create it with `load`.

    All models are in evaluation mode and require no gradients. Weights have the requested
    precision, except for a VAE whose config asks for float32 (`force_upcast`).
    """

    pipe: Any
    denoiser: Any
    scheduler: Any
    encoder: Encoder | None
    training: Training
    max_length: int | None = None
    """Tokens that a transformer's long text encoder reads; None: the host's default."""

    @classmethod
    def load(
        cls,
        base: Any,
        encoder: str | os.PathLike[str] | Any = None,
        *,
        precision: Precision = "bf16",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        max_length: int | None = None,
        int8: bool = False,
    ) -> FrozenPipeline:
        """From "bundled", a folder, a Hub id or a loaded pipeline, which is cast and frozen itself.

        `encoder` None is the base's own image encoder, if it has one. `gradient_checkpointing`
        reduces memory at the cost of time, `int8` halves that of the denoiser's linear layers.
        Raises NotFoundError, WrongBaseError, AttachError, EncoderError, OptionError.
        """
        if precision not in _DTYPES:
            raise OptionError(
                f"mixed_precision: {precision!r}", reason=f"must be one of {', '.join(_DTYPES)}"
            )
        folder = base_folder(base)
        load_dtype = _DTYPES[precision] if folder is not None else None
        first = "cpu" if int8 and folder is not None else device  # it is made small there
        pipe = load_base(base, folder, dtype=load_dtype, device=first, bars=False).pipe
        dtype: torch.dtype = getattr(torch, _DTYPES[precision])
        denoiser: Any = denoiser_of(pipe)
        training = training_of(denoiser)
        _check_one_transformer(pipe)
        _keep_vae_in_float32(pipe, folder)
        if denoiser.dtype is not dtype:
            denoiser.to(dtype)
        if int8:
            from imageprompt.training.memory.int8 import store_as_int8

            store_as_int8(denoiser)
            if folder is not None:
                pipe.to(usable_device(device))
        with quiet_loading(True):
            image_encoder = _open_encoder(encoder, pipe, folder, dtype)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        is_unet = host_of(denoiser).name == "unet"
        if is_unet and dtype is torch.bfloat16 and denoiser.device.type == "cpu":
            from imageprompt.training.memory.cpu_attention import use_blocked_attention

            use_blocked_attention(denoiser)
        if gradient_checkpointing and is_unet:
            from imageprompt.training.memory import activation_checkpointing

            activation_checkpointing.enable_selective_checkpointing(denoiser)
        elif gradient_checkpointing:
            _enable_checkpointing(denoiser)
        max_length = max_length or stated_text_tokens(pipe)
        return cls(pipe, denoiser, pipe.scheduler, image_encoder, training, max_length)

    def check_guidance_scale(self, stated: float | None) -> None:
        """Raises OptionError for a guidance scale that this base would not read."""
        if stated is not None and not self.denoiser.config.get("guidance_embeds"):
            raise OptionError(
                f"guidance_scale: {stated:g}",
                reason="this base is not guidance-distilled, so it reads none in training",
                hint="Leave it out; validation has validation.guidance.",
            )

    def park(self, *, encoder: bool = True) -> None:
        """Move what a filled cache makes idle to main memory: VAE, text and image encoder.

        `encoder` False leaves the image encoder where the denoiser is.
        """
        self._move("cpu", encoder=encoder)

    @contextmanager
    def unparked(self) -> Iterator[None]:
        """In the block, everything is where the denoiser is; afterwards where it was."""
        device = self.denoiser.device
        before = {part: part.device for part in self._encoders() if part.device != device}
        self._move(device)
        try:
            yield
        finally:
            for part, place in before.items():
                part.to(place)

    def _move(self, device: Any, *, encoder: bool = True) -> None:
        for part in self._encoders():
            if encoder or part is not getattr(self.encoder, "model", None):
                part.to(device)

    def _encoders(self) -> list[Any]:
        parts = [*self.pipe.components.values(), getattr(self.encoder, "model", None)]
        return [one for one in parts if isinstance(one, nn.Module) and one is not self.denoiser]

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """States [n, l, d], and the denoiser's other conditions by text [n, ...].

        The pipeline encodes them, as in generation; captions that are too long are truncated.
        """
        from diffusers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # truncated captions are counted elsewhere, once
        try:
            return self.training.encode_text(self.pipe, list(captions), self.max_length)
        finally:
            logging.set_verbosity(verbosity)

    def as_tokens(self, states: Tensor) -> Tensor:
        """Text states [n, l, d] as the denoiser's attention reads them [n, l, W]."""
        return self.training.as_tokens(
            self.denoiser, states.to(self.denoiser.device, self.denoiser.dtype)
        )

    @property
    def text_limit(self) -> tuple[Any, int]:
        """The tokenizer of the text states, and the number of its tokens that are read."""
        return self.training.text_limit(self.pipe, self.max_length)

    @property
    def patch_size(self) -> int:
        """Latent positions on a side that the denoiser reads as one."""
        return self.training.patch_size(self.denoiser)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that `encode_text` may return."""
        return self.training.conditions


def _check_one_transformer(pipe: Any) -> None:
    if getattr(pipe, "transformer_2", None) is not None:
        raise WrongBaseError(
            f"a {type(pipe).__name__} with two transformers",
            reason="each runs a part of the steps, and an adapter is trained on all of them",
            hint="Train on a base with one transformer.",
        )


def _enable_checkpointing(denoiser: Any) -> None:
    try:
        denoiser.enable_gradient_checkpointing()
    except ValueError:
        raise OptionError(
            f"gradient_checkpointing on a {type(denoiser).__name__}",
            reason="diffusers has none for this model",
            hint="Leave it out; use a smaller resolution or batch_size.",
        ) from None


def _keep_vae_in_float32(pipe: Any, folder: Path | None) -> None:
    """Keep a VAE in float32 if its config says that it overflows in half precision (SDXL)."""
    vae = getattr(pipe, "vae", None)
    if vae is None or vae.dtype is torch.float32:
        return
    config = vae.config
    stated = "force_upcast" not in config.get("_use_default_values", ())
    if not (stated and config.get("force_upcast")):
        return
    if folder is None:
        vae.to(torch.float32)
    else:  # from the file: the loaded weights are already rounded
        precise = type(vae).from_pretrained(folder / "vae", local_files_only=True)
        pipe.register_modules(vae=precise.to(vae.device))
    # pipelines assume that latents have the VAE's precision
    for part in (pipe.vae.post_quant_conv, pipe.vae.decoder):
        if part is not None:
            part.register_forward_pre_hook(_in_float32)


def _in_float32(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0].float(), *args[1:]


def _open_encoder(
    encoder: Any, pipe: Any, folder: Path | None, dtype: torch.dtype
) -> Encoder | None:
    """The named encoder, or else the base's own: part of the pipeline, or in its folder."""
    if encoder is not None and not isinstance(encoder, str | os.PathLike):
        return open_encoder(encoder)
    device = device_of(pipe)
    if encoder is not None:
        return _frozen(open_encoder(encoder, device=device, dtype=dtype))
    own = getattr(pipe, "image_encoder", None)
    if own is not None:
        return own_encoder(pipe)
    if folder is None or not (folder / "image_encoder" / "config.json").is_file():
        return None
    return _frozen(open_encoder(folder / "image_encoder", device=device, dtype=dtype))


def _frozen(encoder: Any) -> Encoder:
    encoder.model.requires_grad_(False)
    return encoder  # type: ignore[no-any-return]
