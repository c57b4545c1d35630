"""One file a variant: which feature, which projector, how many tokens, what "no picture" means.

A file in this folder that ends in a constant `VARIANT` is a variant; nothing else needs to know.
"""

from imageprompt.registry import Registry
from imageprompt.variants.contract import Variant, projector_shapes

VARIANTS: Registry[Variant] = Registry(__name__, "VARIANT")

__all__ = ["VARIANTS", "Variant", "projector_shapes"]
