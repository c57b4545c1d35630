"""onnx: ONNX, for onnxruntime, TensorRT, DirectML and others."""

from __future__ import annotations

import contextlib
import io
import operator
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imageprompt.core.console import errors_only
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
    fixed_sizes = False
    precisions = ("float32",)
    check_there = ""

    def require(self) -> None:
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise missing(package, self.name, "deploy")

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        weights = sum(one.numel() * one.element_size() for one in part.module.parameters())
        path = folder / f"{name}.onnx"
        with _quiet(), torch.no_grad():
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
                    custom_translation_table={operator.floordiv: _floor_divided},
                )
            except Exception as error:  # torch raises nearly anything
                raise NotExportable(first_line(error)) from error
        beside = path.with_name(f"{path.name}.data")
        return [path.name, *([beside.name] if beside.exists() else [])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch prints how far it is, and logs that torchvision is not there."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        errors_only("torch.onnx"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _floor_divided(left: Any, right: Any) -> Any:
    """left // right for integers, right above 0.

    onnxscript writes Div alone, which rounds towards 0, and torch.export turns (8 - h) // 2 into
    4 + (-h) // 2: the crop of SD3's positions was one too long wherever h is odd.
    """
    from onnxscript import INT64
    from onnxscript import opset18 as op

    nearest = op.Div(left, right)
    above = op.Greater(op.Mul(nearest, right), left)
    return op.Sub(nearest, op.Cast(above, to=INT64.dtype))


BACKEND = Onnx()
