"""One file per layout: how the tensor names of a file map to (projector name) and (site id, kind).

A file in this folder that ends in a constant `FORMAT` is a format. Formats know no host and no
variant: they only rename.
"""

from collections.abc import Mapping
from dataclasses import replace

from imageprompt.checkpoint.formats.contract import Format, ParsedNames, Parts, T, without_wrappers
from imageprompt.core.registry import Registry

FORMATS: Registry[Format] = Registry(__name__, "FORMAT")


def parse_names(tensors: Mapping[str, T]) -> tuple[str, ParsedNames[T]] | None:
    """The layout of these names and what they mean in it; None if no layout claims them."""
    plain = without_wrappers(tensors)
    layout = next((one for one in FORMATS if one.claims(plain.tensors)), None)
    if layout is None:
        return None
    parsed = layout.read(plain.tensors)
    return layout.name, replace(parsed, copies=(*parsed.copies, *plain.copies))


__all__ = ["FORMATS", "Format", "ParsedNames", "Parts", "parse_names"]
