"""openvino: OpenVINO's IR, for CPUs, Intel's GPUs and NPUs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imageprompt.core.console import errors_only
from imageprompt.deploy.export.backends.contract import NotExportable, first_line, missing

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class OpenVINO:
    name = "openvino"
    summary = "OpenVINO's IR (.xml, .bin)"
    runtime = "openvino"
    fixed_sizes = False
    precisions = ("float32", "float16")
    check_there = "benchmark_app -m {file} -d GPU"

    def require(self) -> None:
        if find_spec("openvino") is None:
            raise missing("openvino", self.name, "deploy")

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        import openvino
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # Of its two ways from torch, that by TorchScript alone keeps every axis free. When it
        # fails, the converter leaves the root logger at ERROR. What is written is compared with
        # the eager model, so the tracer need not trace it a second time to check itself.
        with no_telemetry(), errors_only(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's, about Python values
            try:
                traced = TorchScriptPythonDecoder(
                    part.module,
                    example_input=part.example(),
                    trace_kwargs={"check_trace": False},
                )
                model = openvino.convert_model(traced)
            except Exception as error:  # openvino raises nearly anything
                raise NotExportable(first_line(error)) from error
        if len(model.inputs) != len(part.inputs):
            raise NotExportable(f"{len(part.inputs) - len(model.inputs)} inputs are not read")
        for ports, tensors in ((part.inputs, model.inputs), (part.outputs, model.outputs)):
            for port, tensor in zip(ports, tensors, strict=True):
                tensor.get_tensor().set_names({port.name})
        path = folder / f"{name}.xml"
        openvino.save_model(model, str(path), compress_to_fp16=precision == "float16")
        return [path.name, f"{name}.bin"]


@contextmanager
def no_telemetry() -> Iterator[None]:
    """OpenVINO's converter reports its use over the network, except where CI is true."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


BACKEND = OpenVINO()
