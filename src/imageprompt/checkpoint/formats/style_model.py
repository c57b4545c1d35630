"""style-model: redux_up and redux_down alone, FLUX Redux as ComfyUI and diffusers read it.

ComfyUI calls such a file a style model; in diffusers' pipeline it is the image embedder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import ParsedNames, Parts, T
from imageprompt.core.errors import OptionError

_LAYERS = ("redux_up", "redux_down")


class StyleModelFormat:
    name = "style-model"
    summary = "redux_up + redux_down, FLUX Redux"
    suffixes = (".safetensors",)
    writable = True
    nested = False

    def claims(self, names: Iterable[str]) -> bool:
        return any(name.partition(".")[0] in _LAYERS for name in names)

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        """A projector without sites."""
        projector = {n: x for n, x in tensors.items() if n.partition(".")[0] in _LAYERS}
        return ParsedNames(Parts(projector, {}), tuple(tensors.keys() - projector.keys()))

    def write(self, parts: Parts[T]) -> dict[str, T]:
        names = [*parts.projector, *parts.sites]
        others = sorted(name for name in names if name.partition(".")[0] not in _LAYERS)
        if others:
            raise OptionError(
                f"the {self.name} layout",
                reason="it holds FLUX Redux alone; this adapter has "
                f"{len(others)} other tensors ({', '.join(others[:5])})",
                hint="Use the standard layout.",
            )
        return dict(parts.projector)


FORMAT = StyleModelFormat()
