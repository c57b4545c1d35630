"""pt2: the ExportedProgram of torch.export, for other programs of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imageprompt.deploy.export.backends.contract import exported_program

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class Pt2:
    name = "pt2"
    summary = "the ExportedProgram of torch.export (.pt2)"
    runtime = "pt2"
    fixed_sizes = False
    precisions = ("float32",)
    check_there = ""

    def require(self) -> None:
        """Part of PyTorch."""

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        path = folder / f"{name}.pt2"
        torch.export.save(exported_program(part), path)
        return [path.name]


BACKEND = Pt2()
