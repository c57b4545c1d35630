"""coreml: a program for Apple's devices. It is converted here and runs only there."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imageprompt.deploy.export.backends.contract import (
    NotExportable,
    exported_program,
    first_line,
    missing,
)

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class CoreML:
    name = "coreml"
    summary = "a program for Apple's devices (.mlpackage in a .zip), float16; not run here"
    runtime = ""
    fixed_sizes = True
    precisions = ("float16",)
    check_there = (
        "unzip {file} && python -c 'import coremltools as ct; "
        'print(ct.models.MLModel("denoiser.mlpackage").get_spec().description)\''
    )

    def require(self) -> None:
        if find_spec("coremltools") is None:
            raise missing("coremltools", self.name, "coreml")

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        import coremltools

        # its converter cannot reshape to sizes that a call chooses: they are those of the trace
        program = exported_program(part, dynamic=False).run_decompositions({})
        _without_aliases(program)
        package = folder / f"{name}.mlpackage"
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                model = coremltools.convert(
                    program,
                    minimum_deployment_target=coremltools.target.iOS18,
                    skip_model_load=True,
                )
                model.save(str(package))
            except Exception as error:  # coremltools raises nearly anything
                raise NotExportable(first_line(error)) from error
        archive = shutil.make_archive(str(package), "zip", folder, package.name)
        shutil.rmtree(package)  # a folder, which the manifest cannot name
        return [Path(archive).name]


def _without_aliases(program: Any) -> None:
    """The converter lacks aten.alias, which changes nothing."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


BACKEND = CoreML()
