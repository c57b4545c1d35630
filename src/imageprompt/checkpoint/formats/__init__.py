"""One file per layout: how the tensor names of a file map to (projector name) and (site id, kind).

A file in this folder that ends in a constant `FORMAT` is a format. Formats know no host and no
variant: they only rename.
"""

from imageprompt.checkpoint.formats.contract import Format, ParsedNames, Parts
from imageprompt.core.registry import Registry

FORMATS: Registry[Format] = Registry(__name__, "FORMAT")

__all__ = ["FORMATS", "Format", "ParsedNames", "Parts"]
