"""onnx: ONNX, for onnxruntime, TensorRT, DirectML and others."""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imageprompt.deploy.export.backends.contract import (
    NotExportable,
    dynamic_shapes,
    first_line,
    missing,
)

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable

_INLINE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GB


class Onnx:
    name = "onnx"
    summary = "ONNX (.onnx), for onnxruntime, TensorRT, DirectML"
    runtime = "onnxruntime"
    precisions = ("float32",)
    check_there = ""

    def require(self) -> None:
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise missing(package, self.name, "deploy")

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        weights = sum(one.numel() * one.element_size() for one in part.module.parameters())
        path = folder / f"{name}.onnx"
        # torch prints how far it is
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(
                    part.module,
                    part.example(),
                    path,
                    dynamo=True,
                    dynamic_shapes=dynamic_shapes(part),
                    input_names=[port.name for port in part.inputs],
                    output_names=[port.name for port in part.outputs],
                    external_data=weights > _INLINE,
                )
            except Exception as error:  # torch raises nearly anything
                raise NotExportable(first_line(error)) from error
        beside = path.with_name(f"{path.name}.data")
        return [path.name, *([beside.name] if beside.exists() else [])]


BACKEND = Onnx()
