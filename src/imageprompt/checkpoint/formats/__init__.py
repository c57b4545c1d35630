"""One file a layout: how tensor names of a file map to (projector name) and (site id, kind).

A file in this folder that ends in a constant `FORMAT` is a format. Formats know no host and no
variant: they rename, nothing else.
"""

from imageprompt.checkpoint.formats.contract import Format, Parts, Read
from imageprompt.core.registry import Registry

FORMATS: Registry[Format] = Registry(__name__, "FORMAT")

__all__ = ["FORMATS", "Format", "Parts", "Read"]
