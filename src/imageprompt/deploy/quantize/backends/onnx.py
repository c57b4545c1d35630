"""onnx: ONNX by onnxruntime's own quantiser."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from imageprompt.core.console import errors_only
from imageprompt.deploy.export.backends.contract import first_line, missing
from imageprompt.deploy.quantize.backends.contract import Call, NotQuantizable

LAYERS = ["MatMul", "Gemm"]
"""Convolutions in int8 are slower than in float32 there (measured: 0.57)."""


class Onnx:
    name = "onnx"
    precisions = {  # noqa: RUF012
        "int8": "weights of linear layers in int8; what they read is rounded as it comes"
    }
    calibrated = ()

    def require(self) -> None:
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise missing(package, self.name, "deploy")

    def write(self, source: Path, target: Path, precision: str, calls: Sequence[Call]) -> list[str]:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        try:
            with errors_only():  # it advises on its own use
                model = onnx.load(str(source))
                del model.graph.value_info[:]  # shapes that the exporter knew confuse its own
                beside = target.with_name(f"{target.name}.data")
                large = source.with_name(f"{source.name}.data").exists()
                quantize_dynamic(
                    model,
                    str(target),
                    op_types_to_quantize=LAYERS,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=large,
                )
        except Exception as error:  # its errors share no class
            raise NotQuantizable(first_line(error)) from error
        return [target.name, *([beside.name] if beside.exists() else [])]


QUANTIZER = Onnx()
