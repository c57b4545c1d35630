"""executorch: a program for phones and small computers, with XNNPACK's kernels."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.deploy.export.backends.contract import (
    NotExportable,
    exported_program,
    first_line,
    missing,
)

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class ExecuTorch:
    name = "executorch"
    summary = "a program for phones (.pte), with XNNPACK's kernels"
    runtime = "executorch"
    fixed_sizes = True  # its memory is planned ahead
    precisions = ("float32",)
    check_there = "executor_runner --model_path {file}"

    def require(self) -> None:
        if find_spec("executorch") is None:
            raise missing("executorch", self.name, "executorch")

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        path = folder / f"{name}.pte"
        fixed = exported_program(part, dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                lowered = to_edge_transform_and_lower(fixed, partitioner=[XnnpackPartitioner()])
                program = lowered.to_executorch()
            except Exception as error:  # executorch raises nearly anything
                raise NotExportable(first_line(error)) from error
        with path.open("wb") as stream:
            program.write_to_file(stream)
        return [path.name]


BACKEND = ExecuTorch()
