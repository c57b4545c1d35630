"""The interface of a backend: what the other files of this folder implement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.deploy.export.modules import Exportable


class NotExportable(Exception):
    """A backend lacks an operator or a shape; the message names it."""


class Backend(Protocol):
    """What a module is exported to."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def runtime(self) -> str:
        """The runtime that reads its files here; "" for none: parity is not measured."""

    @property
    def fixed_sizes(self) -> bool:
        """Are the sizes of its graphs those of the trace? Then they are traced for one picture."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that weights can be stored in; the first is the default."""

    @property
    def check_there(self) -> str:
        """How to run its files on the device that they are for; {file} is one of them."""

    def require(self) -> None:
        """Raises OptionError that names the extra, unless its library is installed."""

    def write(self, part: Exportable, folder: Path, name: str, precision: str) -> list[str]:
        """Write a part; returns the names of its files, that which a runtime opens first.

        Raises NotExportable.
        """


def dynamic_shapes(part: Exportable) -> Any:
    """The axes of `torch.export` that every call chooses. Named ones fail where sizes are tied."""
    from torch.export import Dim

    return (tuple(dict.fromkeys(axes, Dim.AUTO) for axes in part.axes()),)


def exported_program(part: Exportable, *, dynamic: bool = True) -> Any:
    """A part as an ExportedProgram, for any sizes or those of its example. Raises NotExportable."""
    import torch

    shapes = dynamic_shapes(part) if dynamic else None
    try:
        return torch.export.export(part.module, part.example(), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises nearly anything
        raise NotExportable(first_line(error)) from error


_LACKING = re.compile(
    r"(?:\bno\b|\bnot\b|unsupported).*\b(?:aten|prims|torchvision)(?:::|\.)\w", re.I
)


def first_line(error: BaseException) -> str:
    """The line that names an operator which is lacking, else the first one."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    named = [line for line in lines if _LACKING.search(line)]
    return (named or lines or [type(error).__name__])[0]


def missing(package: str, backend: str, extra: str) -> OptionError:
    return OptionError(
        f"export to {backend}",
        reason=f"{package} is not installed",
        hint=f"Install it: pip install 'imageprompt[{extra}]'",
    )
