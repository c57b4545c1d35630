"""aoti: AOTInductor's machine code. Opening it runs it: only the user's own is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.generation.runtimes.contract import Graph
from imageprompt.generation.runtimes.pt2 import trusted

if TYPE_CHECKING:
    from imageprompt.generation.exported.manifest import Part


class Aoti:
    name = "aoti"
    summary = "AOTInductor's machine code on the CPU"
    precisions = ("float32",)

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        import torch

        return trusted(
            folder,
            part,
            "it is machine code",
            lambda path: torch._inductor.aoti_load_package(str(path)),
        )


RUNTIME = Aoti()
