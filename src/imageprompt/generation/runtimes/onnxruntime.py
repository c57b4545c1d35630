"""onnxruntime: ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.runtimes.contract import Graph, library

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part


class OnnxRuntime:
    name = "onnxruntime"
    summary = "ONNX Runtime on the CPU"
    precisions = ("float32",)

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        onnxruntime = library("onnxruntime", self.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        path = folder / next(iter(part.files))
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no class
            raise OptionError(
                str(path),
                reason=f"onnxruntime cannot open it ({str(error).strip().splitlines()[0]})",
                hint="Export it again.",
            ) from error
        return _Session(session)


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        import torch

        arrays = {name: one.contiguous().numpy() for name, one in tensors.items()}
        return [torch.from_numpy(one) for one in self._session.run(None, arrays)]


RUNTIME = OnnxRuntime()
