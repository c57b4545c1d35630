"""executorch: ExecuTorch's runtime with XNNPACK's kernels, for the sizes that were exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.runtimes.contract import Graph, library

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part, Port


class ExecuTorch:
    name = "executorch"
    summary = "ExecuTorch with XNNPACK's kernels on the CPU, one picture a call"
    precisions = ("float32",)

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        runtime = library("executorch.runtime", self.name, "executorch")
        path = folder / next(iter(part.files))
        try:
            program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            method = program.load_method("forward")
        except Exception as error:  # its errors share no class
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise OptionError(
                str(path),
                reason=f"executorch cannot open it ({lines[0]})",
                hint="Export it again.",
            ) from error
        return _Method(program, method, part.inputs)


class _Method:
    def __init__(self, program: Any, method: Any, ports: tuple[Port, ...]) -> None:
        self._program, self._method, self._ports = program, method, ports

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        for port in self._ports:
            if tuple(tensors[port.name].shape) != port.shape:
                raise OptionError(
                    f"{port.name} of shape {list(tensors[port.name].shape)}",
                    reason=f"this graph is for {list(port.shape)} alone: one picture of the base's "
                    "own size, with one reference",
                    hint="Make one such picture at a time, or export to openvino for any size.",
                )
        return list(self._method.execute([tensors[port.name].contiguous() for port in self._ports]))


RUNTIME = ExecuTorch()
