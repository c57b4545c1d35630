"""Adapters for the work on a library: with an encoder, or the projector alone, without a base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from imageprompt import loading
from imageprompt.adapter.adapter import Adapter
from imageprompt.adapter.compatibility import checked_encoder, checked_faces
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError

if TYPE_CHECKING:
    from imageprompt.library.style import Style


@dataclass(frozen=True)
class Bench:
    """An adapter that can encode, and how its parts were named."""

    adapter: Adapter
    made_with: dict[str, str | None]


def encoding_bench(
    *,
    adapter: Any = None,
    encoder: Any = None,
    base: Any = None,
    variant: str | None = None,
    faces: Any = None,
) -> Bench:
    """Open an adapter and its encoder by the names that `generate` takes; the base, by default the
    bundled one, only tells where they are. `faces` is the model pack of FaceID adapters.

    Raises NotFoundError, AdapterFileError, EncoderError, OptionError.
    """
    loaded, choice = _opened(adapter, base, variant)
    named = bundled.NAME if base is None else os.fspath(base)
    made_with: dict[str, str | None] = {"adapter": choice.name, "base": named}
    if not loaded.spec.feature.faces_only:
        found, name = loading.find_encoder(
            encoder,
            loaded.spec,
            pipe=None,
            base_name=named,
            base_folder=loading.base_folder(base),
            adapter_name=choice.name,
        )
        with loading.quiet_loading(True):
            loaded.encoding.set_encoder(checked_encoder(loaded.spec, found))
        made_with["encoder"] = name
    if faces is not None:
        loaded.encoding.face_encoder = checked_faces(loaded.spec, faces)
        made_with["faces"] = os.fspath(faces)
    return Bench(loaded, made_with)


def projector(*, adapter: Any = None, base: Any = None, variant: str | None = None) -> Adapter:
    """The adapter of `encoding_bench` without an encoder, for mixes."""
    return _opened(adapter, base, variant)[0]


def projector_of(style: Style) -> Adapter | None:
    """The adapter that a style says it was made with, if it is here; nothing is downloaded."""
    name, base = style.adapter.name, style.recipe.get("base")
    if name is None:
        return None
    try:
        adapter, _ = _opened(name, base, style.variant, cached_only=True)
    except ImagePromptError:  # not here, or no longer what it was
        return None
    return adapter if adapter.fingerprint() == style.adapter.hash else None


def _opened(
    adapter: Any, base: Any, variant: str | None, *, cached_only: bool = False
) -> tuple[Adapter, loading.LocatedAdapter]:
    folder = loading.base_folder(base, cached_only=cached_only)
    choice = loading.find_adapter(adapter, folder, cached_only=cached_only)
    return Adapter.load(choice.path, variant=variant, dtype=torch.float32), choice
