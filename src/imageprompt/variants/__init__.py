"""One file a variant: which feature, which projector, how many tokens, what "no picture" means.

A file in this folder that ends in a constant `VARIANT` is a variant; nothing else needs to know.
"""

from imageprompt.core.registry import Registry
from imageprompt.variants.contract import (
    Variant,
    meant_before,
    pending,
    projector_shapes,
    site_kinds,
    site_shapes,
    twins,
)

VARIANTS: Registry[Variant] = Registry(__name__, "VARIANT")

__all__ = [
    "VARIANTS",
    "Variant",
    "meant_before",
    "pending",
    "projector_shapes",
    "site_kinds",
    "site_shapes",
    "twins",
]
