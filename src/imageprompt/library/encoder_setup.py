"""Adapters for work on a library: with an image encoder, or the projector alone; without a base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.adapter.compatibility import checked_encoder, checked_faces
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError
from imageprompt.loading.models import models_of

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.library.style import Style
    from imageprompt.loading.models import Models


@dataclass(frozen=True)
class EncodingAdapter:
    """An adapter that can encode, and the names of its parts."""

    adapter: Adapter
    made_with: dict[str, str | None]


def load_with_encoder(
    *,
    adapter: Any = None,
    encoder: Any = None,
    base: Any = None,
    variant: str | None = None,
    faces: Any = None,
) -> EncodingAdapter:
    """An adapter and its image encoder, by the same names as for `generate`.

    Both are in float32 on the CPU and stay loaded for the next call, also one of `generate` with
    this base there; nobody may write to their weights. The base (default: the bundled one) is not
    loaded; its folder is where both are searched. `faces` is the model pack for FaceID adapters.

    Raises NotFoundError, AdapterFileError, EncoderError, OptionError.
    """
    loaded, located = _load(adapter, base, variant)
    base_name = bundled.NAME if base is None else os.fspath(base)
    made_with: dict[str, str | None] = {"adapter": located.name, "base": base_name}
    if not loaded.spec.feature.faces_only:
        found, made_with["encoder"] = loading.find_encoder(
            encoder,
            loaded.spec,
            pipe=None,
            base_name=base_name,
            base_folder=loading.base_folder(base),
            adapter_name=located.name,
        )
        with loading.quiet_loading(True):
            opened = _models(base).encoder_for(loaded, found)
            loaded.encoding.set_encoder(checked_encoder(loaded.spec, opened))
    if faces is not None:
        loaded.encoding.face_encoder = checked_faces(loaded.spec, faces)
        made_with["faces"] = os.fspath(faces)
    return EncodingAdapter(loaded, made_with)


def load_projector(*, adapter: Any = None, base: Any = None, variant: str | None = None) -> Adapter:
    """The adapter without an encoder, for mixing styles."""
    return _load(adapter, base, variant)[0]


def projector_of(style: Style) -> Adapter | None:
    """The adapter that made a style, if it is available locally; downloads nothing."""
    name, base = style.adapter.name, style.recipe.get("base")
    if name is None:
        return None
    try:
        adapter, _ = _load(name, base, style.variant, cached_only=True)
    except ImagePromptError:  # not available, or damaged
        return None
    return adapter if adapter.fingerprint() == style.adapter.hash else None


def _load(
    adapter: Any, base: Any, variant: str | None, *, cached_only: bool = False
) -> tuple[Adapter, loading.LocatedAdapter]:
    folder = loading.base_folder(base, cached_only=cached_only)
    located = loading.find_adapter(adapter, folder, cached_only=cached_only)
    return _models(base).adapter_file(located, variant=variant), located


def _models(base: Any) -> Models:
    return models_of(base, "float32", "cpu")
