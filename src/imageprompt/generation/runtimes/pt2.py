"""pt2: an ExportedProgram in PyTorch. Its file may hold pickles: only the user's own is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.exported.manifest import check_trusted
from imageprompt.generation.runtimes.contract import Graph

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part


class Pt2:
    name = "pt2"
    summary = "an ExportedProgram in PyTorch"
    precisions = ("float32",)

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        import torch

        return trusted(
            folder, part, "it may hold pickles", lambda path: torch.export.load(path).module()
        )


def trusted(folder: Path, part: Part, what: str, load: Callable[[Path], Any]) -> Graph:
    """The module in a file that this user has exported. Raises OptionError."""
    name, digest = next(iter(part.files.items()))
    check_trusted(folder / name, digest, what)
    try:
        module = load(folder / name)
    except Exception as error:  # of another version of PyTorch
        raise OptionError(
            str(folder / name),
            reason=f"PyTorch cannot open it ({str(error).strip().splitlines()[0]})",
            hint="Export it again with this version of PyTorch.",
        ) from error
    return _Module(module, [port.name for port in part.inputs])


class _Module:
    def __init__(self, module: Any, names: Sequence[str]) -> None:
        self._module, self._names = module, names

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        import torch

        given = [tensors[name].contiguous() for name in self._names]
        try:
            with torch.no_grad():
                made = self._module(*given)
        except (AssertionError, RuntimeError) as error:
            raise OptionError(
                f"a call of an exported graph with {self._names[0]} {list(given[0].shape)}",
                reason=f"it does not take these sizes ({str(error).strip().splitlines()[0]})",
                hint="Use larger pictures, or export to openvino.",
            ) from error
        return [made] if isinstance(made, torch.Tensor) else list(made)


RUNTIME = Pt2()
