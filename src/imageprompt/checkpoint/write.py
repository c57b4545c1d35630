"""The metadata that written adapter files carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from imageprompt.checkpoint.identify.published import likely_encoder
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import PARTS
from imageprompt.core.spec import AdapterSpec
from imageprompt.variants import VARIANTS

if TYPE_CHECKING:
    from imageprompt.checkpoint.identify.identify import Identification


def converted_metadata(
    found: Identification, source: TensorSource, variant: str | None
) -> dict[str, str]:
    """The metadata that `convert` writes. `variant` is the user's choice; without it, a file that
    several variants fit stays ambiguous. Raises OptionError for a variant that does not fit.
    """
    if variant is not None and variant not in found.variants:
        raise OptionError(
            f"variant {variant!r}",
            reason=f"the tensors of {source.path} are those of {' or '.join(found.variants)}",
            hint="Leave it out, or choose one of these.",
        )
    # safetensors.torch.save_model lists aliases here: obsolete once every tensor has one name
    inherited = {
        key: value
        for key, value in found.metadata.items()
        if key not in source.tensors and value not in source.tensors
    }
    ours = {"format": "pt", "generator": "imageprompt", "version": __version__}
    ours |= {"source_format": found.format, "host": found.host}
    spec = found.spec
    if spec is not None:
        ours |= _projector_metadata(spec)
        name = likely_encoder(spec.feature, spec.feature_dim, found.published)
        ours |= {"encoder": name} if name and "encoder" not in inherited else {}
    return inherited | ours | _variant_metadata(variant or "", found.variants)


def adapter_metadata(spec: AdapterSpec, encoder: str | None) -> dict[str, str]:
    """The metadata that `Adapter.save` writes; `encoder` is the fingerprint of the one in use."""
    ours = {"generator": "imageprompt", "host": spec.host, **_projector_metadata(spec)}
    ours |= _variant_metadata(spec.variant, ())
    return ours if encoder is None else ours | {"encoder": encoder}


def pair_metadata(content: Mapping[str, str], style: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file that holds a pair, from those of its two adapters."""
    parts = dict(zip(PARTS, (content, style), strict=True))
    named = {f"{part}.{key}": value for part, own in parts.items() for key, value in own.items()}
    return {"generator": "imageprompt", "pair": " and ".join(PARTS), **named}


def _projector_metadata(spec: AdapterSpec) -> dict[str, str]:
    """What the projector reads and makes."""
    return {
        "feature": str(spec.feature),
        "feature_width": str(spec.feature_dim),
        "tokens": str(spec.tokens or "one per patch"),
        "null_rule": spec.null_rule,
        **({"encoder_type": spec.encoder_type} if spec.encoder_type else {}),
    }


def _variant_metadata(chosen: str, possible: tuple[str, ...]) -> dict[str, str]:
    """The variant if there is only one left, and its shortcut if it has one: nothing in the
    tensors distinguishes FaceID-plus from its v2."""
    name = chosen or (possible[0] if len(possible) == 1 else "")
    shortcut = getattr(VARIANTS.get(name), "shortcut", None)
    metadata = {"variant": name} if name else {}
    return metadata | ({} if shortcut is None else {"shortcut": str(shortcut).lower()})
