"""aoti: AOTInductor's package: machine code for this kind of CPU, which runs without the model."""

from __future__ import annotations

from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import torch

from imageprompt.core.errors import OptionError
from imageprompt.deploy.export.backends.contract import NotExportable, exported_program, first_line

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class Aoti:
    name = "aoti"
    summary = "AOTInductor's package of machine code (.pt2)"
    runtime = "aoti"
    fixed_sizes = False
    precisions = ("float32",)
    check_there = ""

    def require(self) -> None:
        if not any(map(which, ("g++", "c++", "clang++"))):
            raise OptionError(
                "export to aoti",
                reason="no C++ compiler is installed",
                hint="Install g++, or export to openvino.",
            )

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        path = folder / f"{name}.pt2"
        program = exported_program(part)
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # inductor raises nearly anything
            raise NotExportable(first_line(error)) from error
        return [path.name]


BACKEND = Aoti()
