"""From a style file to an image prompt, with K', V' precomputed and kept beside it.

The folder `.prepared` may be deleted at any time: it is filled again at the next use.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imageprompt.checkpoint.torch_io import tensor_of
from imageprompt.core.errors import EncoderError, ImagePromptError, OptionError, PromptError
from imageprompt.encoding.image_prompt import MAX_BYTES, ImagePrompt
from imageprompt.library.paths import PRECOMPUTED, has_precomputed, precomputed_files, write_lock
from imageprompt.library.style import Style
from imageprompt.library.style_file import check_tokens

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter

PER_STYLE = 4  # files of K', V' per style: one per adapter, base and precision


def check_adapter(style: Style, adapter: Adapter) -> None:
    """Was the style made with this adapter and, if it has one, this encoder?

    Raises PromptError, EncoderError.
    """
    ours, theirs = adapter.fingerprint(), style.adapter.hash
    if ours != theirs:
        named = style.adapter.name or f"an adapter of variant {style.variant}"
        raise PromptError(
            f"style {style.name!r}",
            reason=f"made with {named} (projector {theirs}), not with this "
            f"{adapter.spec.variant} adapter (projector {ours})",
            hint="Use that adapter, or add the pictures again with this one.",
        )
    encoder, made_with = adapter.encoder or adapter.encoding.face_encoder, style.encoder
    if encoder is not None and made_with is not None and encoder.fingerprint != made_with.hash:
        raise EncoderError(
            f"style {style.name!r}",
            reason=f"made with the encoder {made_with.name or 'unnamed'} ({made_with.hash}), "
            f"not with this one ({encoder.fingerprint})",
            hint="Attach that encoder, or add the pictures again with this one.",
        )


def image_prompt(style: Style) -> ImagePrompt:
    """The style's tokens as an image prompt. Raises PromptError if they are damaged."""
    check_tokens(style)
    null = style.tensors.get("null_tokens")
    metadata = {
        "variant": style.variant,
        "projector": style.adapter.hash,
        "references": str(len(style.references)),
        "style": style.name,
    }
    if style.encoder is not None:
        metadata["encoder"] = style.encoder.hash
    tokens = tensor_of(style.tensors["tokens"])
    return ImagePrompt(tokens, None if null is None else tensor_of(null), metadata)


def precompute_kv(folder: Path, style: Style, prompt: ImagePrompt, adapter: Adapter) -> None:
    """Give the prompt its K', V': those on disk, or new ones, which are then written there."""
    made_by = adapter.made_by()
    weights = hashlib.sha256(made_by.encode()).hexdigest()[:16]
    path = folder / PRECOMPUTED / f"{style.hash[:32]}-{weights}.safetensors"
    if has_precomputed(folder) and _read(path, prompt, made_by):
        return
    adapter.precompute_kv(prompt)
    try:
        with write_lock(folder):
            path.parent.mkdir(exist_ok=True)
            if not has_precomputed(folder):
                raise OptionError(str(path.parent), reason=f"{PRECOMPUTED} is a link")
            prompt.save(path)
            newest = sorted(
                precomputed_files(folder, style.hash), key=lambda one: -one.stat().st_mtime
            )
            for old in newest[PER_STYLE:]:
                old.unlink(missing_ok=True)
    except (OSError, OptionError) as error:
        reason = error.reason if isinstance(error, ImagePromptError) else error.strerror
        warnings.warn(
            f"K', V' of style {style.name!r} cannot be written to {folder} ({reason}); they are "
            "computed again at every use",
            stacklevel=3,
        )


def _read(path: Path, prompt: ImagePrompt, made_by: str) -> bool:
    """Give the prompt the K', V' in this file; False if it has none for its tokens."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        kept = ImagePrompt.load(path)
    except PromptError:  # damaged: compute them again
        return False
    ahead = kept.precomputed_kv
    if ahead is None or ahead.made_by != made_by or not torch.equal(kept.tokens, prompt.tokens):
        return False
    together = torch.cat([x.flatten() for pair in ahead.key_values.values() for x in pair])
    if not torch.stack(torch.aminmax(together)).isfinite().all():  # isfinite alone takes 10 ms
        return False
    prompt.tokens, prompt.precomputed_kv = kept.tokens, ahead
    return True
