"""One file per adapter architecture: feature, projector, number of tokens, null rule.

A file in this folder that ends in a constant `VARIANT` is a variant and needs no registration.
"""

from imageprompt.core.registry import Registry
from imageprompt.variants.contract import (
    Variant,
    chosen_feature,
    encode_null,
    entry_at,
    has_place,
    key_norm,
    more_general,
    null_features,
    projected_as_text,
    projector_shapes,
    readable_features,
    reading_of,
    readings,
    site_kinds,
    site_shapes,
    twins,
    value_norm,
)

VARIANTS: Registry[Variant] = Registry(__name__, "VARIANT")

__all__ = [
    "VARIANTS",
    "Variant",
    "chosen_feature",
    "encode_null",
    "entry_at",
    "has_place",
    "key_norm",
    "more_general",
    "null_features",
    "projected_as_text",
    "projector_shapes",
    "readable_features",
    "reading_of",
    "readings",
    "site_kinds",
    "site_shapes",
    "twins",
    "value_norm",
]
