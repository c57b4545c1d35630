"""openvino: OpenVINO on the CPU; reads its own IR and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.runtimes.contract import Graph, library

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINO:
    name = "openvino"
    summary = "OpenVINO on the CPU, in float32 or bfloat16"
    precisions = ("float32", "bfloat16")

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        openvino = library("openvino", self.name)
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
        }
        path = folder / next(iter(part.files))
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise OptionError(
                str(path),
                reason=f"OpenVINO cannot open it ({str(error).strip().splitlines()[-1]})",
                hint="Export it again.",
            ) from error
        return _Compiled(compiled)


class _Compiled:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._count = len(compiled.outputs)

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        import torch

        arrays = {name: one.contiguous().numpy() for name, one in tensors.items()}
        made = self._request.infer(arrays, share_inputs=True)
        return [torch.from_numpy(made[i].copy()) for i in range(self._count)]


RUNTIME = OpenVINO()
