"""One file per quantiser: it rewrites what one backend of `imageprompt export` wrote.

A file in this folder that ends in a constant `QUANTIZER` is one and needs no registration.
"""

from imageprompt.core.registry import Registry
from imageprompt.deploy.quantize.backends.contract import NotQuantizable, Quantizer

QUANTIZERS: Registry[Quantizer] = Registry(__name__, "QUANTIZER")

__all__ = ["QUANTIZERS", "NotQuantizable", "Quantizer"]
