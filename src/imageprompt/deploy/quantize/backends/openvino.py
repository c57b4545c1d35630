"""openvino: OpenVINO's IR by NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from imageprompt.core.console import errors_only
from imageprompt.deploy.export.backends.contract import first_line, missing
from imageprompt.deploy.export.backends.openvino import no_telemetry
from imageprompt.deploy.quantize.backends.contract import Call, NotQuantizable
from imageprompt.generation.runtimes.openvino import in_own_thread

GROUP = 32
"""Weights that share a scale in int4."""


class OpenVINO:
    name = "openvino"
    precisions = {  # noqa: RUF012
        "int8": "weights in int8 with a scale for each channel: a quarter of the size",
        "w8a8": "weights and activations in int8: a quarter of the size, and faster",
        "int4": f"weights in int4 with a scale for each {GROUP}: smaller still, less like it",
    }
    calibrated = ("w8a8",)

    def require(self) -> None:
        for package in ("openvino", "nncf"):
            if find_spec(package) is None:
                raise missing(package, self.name, "deploy")

    def write(self, source: Path, target: Path, precision: str, calls: Sequence[Call]) -> list[str]:
        # NNCF prints bars and tables of its own
        with no_telemetry(), errors_only("nncf"), redirect_stdout(StringIO()):
            import nncf
            import openvino

            model = openvino.Core().read_model(str(source))
            try:
                model = in_own_thread(partial(self._quantized, nncf, model, precision, calls))
            except Exception as error:  # nncf raises nearly anything
                raise NotQuantizable(first_line(error)) from error
            openvino.save_model(model, str(target), compress_to_fp16=False)
        return [target.name, target.with_suffix(".bin").name]

    def _quantized(self, nncf: Any, model: Any, precision: str, calls: Sequence[Call]) -> Any:
        modes = nncf.CompressWeightsMode
        if precision == "w8a8":
            return nncf.quantize(
                model,
                nncf.Dataset([dict(call) for call in calls]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(calls),
            )
        if precision == "int4":
            return nncf.compress_weights(
                model, mode=modes.INT4_SYM, group_size=GROUP, all_layers=True
            )
        return nncf.compress_weights(model, mode=modes.INT8_SYM)


QUANTIZER = OpenVINO()
