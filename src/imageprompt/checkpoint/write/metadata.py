"""What a file says about itself in its safetensors metadata, so that nobody has to guess again."""

from __future__ import annotations

from imageprompt.checkpoint.identify.identify import Identified
from imageprompt.checkpoint.identify.published import likely_encoder
from imageprompt.checkpoint.read.stored_tensor import Source
from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.core.spec import AdapterSpec
from imageprompt.variants import VARIANTS


def written_metadata(found: Identified, source: Source, variant: str | None) -> dict[str, str]:
    """What convert writes. `variant` is what the user says; without it, and with several possible
    ones, the file keeps its ambiguity. Raises OptionError for a variant that it cannot be.
    """
    if variant is not None and variant not in found.variants:
        raise OptionError(
            f"variant {variant!r}",
            reason=f"the tensors of {source.path} are those of {' or '.join(found.variants)}",
            hint="Leave it out, or name one of these.",
        )
    # safetensors.torch.save_model lists aliases here: they are gone once everything has one name
    kept = {
        key: value
        for key, value in found.metadata.items()
        if key not in source.tensors and value not in source.tensors
    }
    told = {"format": "pt", "generator": "imageprompt", "version": __version__}
    told |= {"source_format": found.format, "host": found.host}
    spec = found.spec
    if spec is not None:
        told |= _read(spec)
        name = likely_encoder(spec.feature, spec.feature_dim, found.published)
        told |= {"encoder": name} if name and "encoder" not in kept else {}
    return kept | told | _certain(variant or "", found.variants)


def adapter_metadata(spec: AdapterSpec, encoder: str | None) -> dict[str, str]:
    """What `Adapter.save` writes; `encoder` is the fingerprint of the one it was used with."""
    told = {"generator": "imageprompt", "host": spec.host, **_read(spec)}
    told |= _certain(spec.variant, ())
    return told if encoder is None else told | {"encoder": encoder}


def _read(spec: AdapterSpec) -> dict[str, str]:
    """What it reads, and makes of it."""
    return {
        "feature": str(spec.feature),
        "feature_width": str(spec.feature_dim),
        "tokens": str(spec.tokens or "one per patch"),
        "null_rule": spec.null_rule,
    }


def _certain(told: str, possible: tuple[str, ...]) -> dict[str, str]:
    """The variant if only one is left, and its shortcut where it has such a thing: nothing in the
    tensors tells FaceID-plus from its v2."""
    name = told or (possible[0] if len(possible) == 1 else "")
    shortcut = next((getattr(v, "shortcut", None) for v in VARIANTS if v.name == name), None)
    certain = {"variant": name} if name else {}
    return certain | ({} if shortcut is None else {"shortcut": str(shortcut).lower()})
