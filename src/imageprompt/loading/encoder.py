"""The image encoder: named, or found in the base or beside the adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imageprompt.core.errors import EncoderError, NotFoundError
from imageprompt.core.hub import hub_id, locate_file, locate_folder
from imageprompt.core.spec import AdapterSpec
from imageprompt.loading.pipeline import Base

# Where the published repositories put the image encoder, seen from the adapter's folder.
_PLACES = ("image_encoder", "../models/image_encoder", "../image_encoder")


def find_encoder(
    encoder: Any, spec: AdapterSpec, base: Base, adapter: str | None
) -> tuple[Any, str | None]:
    """What `Adapter.attach` takes as encoder, and its name.

    `encoder` as the user gave it (object, path or Hub id); without one, the pipeline's own, then
    `image_encoder` in the base's folder, then where published repositories keep it beside the
    adapter file; of these the first of the width that the adapter reads. Raises EncoderError.
    """
    from imageprompt.encoding.encoders.clip import ClipEncoder

    if encoder is not None:
        if not isinstance(encoder, str | os.PathLike):
            return encoder, None
        try:
            return locate_folder(encoder), os.fspath(encoder)
        except NotFoundError as error:
            raise EncoderError(
                f"encoder {error.what}", reason=error.reason, hint=error.hint
            ) from error
    own = getattr(base.pipe, "image_encoder", None)
    if own is not None and _reads(own.config.to_dict(), spec):
        prepared = getattr(base.pipe, "feature_extractor", None)
        return ClipEncoder(own, prepared), base.name and f"{base.name}/image_encoder"
    if base.folder is not None and _reads(_config(base.folder / "image_encoder"), spec):
        return base.folder / "image_encoder", f"{base.name}/image_encoder"
    for place in _places_beside(adapter):
        try:
            config = locate_file(f"{place}/config.json")
            if _reads(_config(config.parent), spec):
                return locate_folder(place), place
        except NotFoundError:
            continue
    raise EncoderError(
        "no image encoder",
        reason=f"this {spec.variant} adapter reads {spec.feature} {spec.feature_dim} wide, and "
        "neither the base nor the adapter's repository holds an encoder for that",
        hint="Name its folder: --encoder PATH_OR_HUB_ID, or encoder= in Python.",
    )


def _places_beside(adapter: str | None) -> list[str]:
    if adapter is None:
        return []
    remote = None if Path(adapter).expanduser().exists() else hub_id(adapter)
    if remote is None:
        parent = Path(adapter).expanduser().parent
        return [str(parent / place) for place in _PLACES]
    inside = Path(remote.path).parent
    places = [os.path.normpath(inside / place) for place in _PLACES]
    return [f"{remote.repo}/{Path(p).as_posix()}" for p in places if not p.startswith("..")]


def _config(folder: Path) -> dict[str, Any]:
    """An encoder's config.json; empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _reads(config: dict[str, Any], spec: AdapterSpec) -> bool:
    key = "projection_dim" if spec.feature.image == "image_embeds" else "hidden_size"
    return config.get(key) == spec.feature_dim
