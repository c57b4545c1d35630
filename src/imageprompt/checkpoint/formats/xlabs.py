"""xlabs: double_blocks.{id}.processor.* and ip_adapter_proj_model.*, XLabs' adapters for FLUX.

In this layout every K' and V' has a bias, and sites hold nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from imageprompt.checkpoint.formats.contract import ParsedNames, Parts, T
from imageprompt.core.errors import OptionError

PROJECTOR = "ip_adapter_proj_model."
_BLOCK = re.compile(
    r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)"
)


class XLabsFormat:
    name = "xlabs"
    summary = "ip_adapter_proj_model + double_blocks, the FLUX adapters of XLabs"
    suffixes = (".safetensors",)
    writable = True
    nested = False

    def claims(self, names: Iterable[str]) -> bool:
        return any(name.startswith(PROJECTOR) or _BLOCK.fullmatch(name) for name in names)

    def read(self, tensors: Mapping[str, T]) -> ParsedNames[T]:
        projector: dict[str, T] = {}
        sites: dict[str, T] = {}
        unplaced: list[str] = []
        for name, tensor in tensors.items():
            block = _BLOCK.fullmatch(name)
            if name.startswith(PROJECTOR):
                projector[name.removeprefix(PROJECTOR)] = tensor
            elif block:
                sites["{}.to_{}_ip.{}".format(*block.groups())] = tensor
            else:
                unplaced.append(name)
        return ParsedNames(Parts(projector, sites), tuple(unplaced))

    def write(self, parts: Parts[T]) -> dict[str, T]:
        ids = {name.split(".", 1)[0] for name in parts.sites}
        expected = {
            f"{i}.to_{k}_ip.{kind}" for i in ids for k in "kv" for kind in ("weight", "bias")
        }
        differing = sorted(expected ^ parts.sites.keys())
        if differing or not ids:
            others = f"differs in {len(differing)} tensors ({', '.join(differing[:5])})"
            raise OptionError(
                f"the {self.name} layout",
                reason="its sites hold only weight and bias of K' and V'; this adapter "
                f"{others if ids else 'has no sites'}",
                hint="Use the standard layout.",
            )
        flat = {f"{PROJECTOR}{name}": tensor for name, tensor in parts.projector.items()}
        for name, tensor in parts.sites.items():
            i, what, kind = name.split(".")
            k = what.removeprefix("to_").removesuffix("_ip")
            flat[f"double_blocks.{i}.processor.ip_adapter_double_stream_{k}_proj.{kind}"] = tensor
        return flat


FORMAT = XLabsFormat()
