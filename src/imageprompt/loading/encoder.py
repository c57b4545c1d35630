"""The image encoder: given by the user, or found in the base or beside the adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imageprompt.core.errors import EncoderError, NotFoundError
from imageprompt.core.hub import hub_id, locate_file, locate_folder
from imageprompt.core.spec import AdapterSpec

# Where published repositories keep the image encoder, relative to the adapter's folder.
_LOCATIONS = ("image_encoder", "../models/image_encoder", "../image_encoder")


def find_encoder(
    encoder: Any,
    spec: AdapterSpec,
    *,
    pipe: Any,
    base_name: str | None,
    base_folder: Path | None,
    adapter_name: str | None,
) -> tuple[Any, str | None]:
    """The encoder for `Adapter.attach`, and its name.

    It is `encoder` (object, path or Hub id) if given. Otherwise it is the first of these that has
    the feature size that the adapter reads: the encoder of `pipe`, `image_encoder` in the base's
    folder, then the places beside the adapter file that published repositories use.

    Raises EncoderError.
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
    own = getattr(pipe, "image_encoder", None)
    if own is not None and _reads(own.config.to_dict(), spec):
        feature_extractor = getattr(pipe, "feature_extractor", None)
        return ClipEncoder(own, feature_extractor), base_name and f"{base_name}/image_encoder"
    if base_folder is not None and _reads(_config(base_folder / "image_encoder"), spec):
        return base_folder / "image_encoder", f"{base_name}/image_encoder"
    for location in _beside(adapter_name):
        try:
            config = locate_file(f"{location}/config.json")
            if _reads(_config(config.parent), spec):
                return locate_folder(location), location
        except NotFoundError:
            continue
    raise EncoderError(
        "no image encoder",
        reason=f"this {spec.variant} adapter reads {spec.feature} of size {spec.feature_dim}; "
        "neither the base nor the adapter's repository has an encoder for that",
        hint="Name its folder: --encoder PATH_OR_HUB_ID, or encoder= in Python.",
    )


def _beside(adapter: str | None) -> list[str]:
    if adapter is None:
        return []
    remote = None if Path(adapter).expanduser().exists() else hub_id(adapter)
    if remote is None:
        parent = Path(adapter).expanduser().parent
        return [str(parent / location) for location in _LOCATIONS]
    inside = Path(remote.path).parent
    paths = [os.path.normpath(inside / location) for location in _LOCATIONS]
    return [f"{remote.repo}/{Path(p).as_posix()}" for p in paths if not p.startswith("..")]


def _config(folder: Path) -> dict[str, Any]:
    """An encoder's config.json; empty if it is missing or unreadable."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _reads(config: dict[str, Any], spec: AdapterSpec) -> bool:
    """Does this encoder produce features of the size that the adapter reads?"""
    key = "projection_dim" if spec.feature.image == "image_embeds" else "hidden_size"
    return config.get(key) == spec.feature_dim
