"""The interface of a runtime: what the other files of this folder implement."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part


class Graph(Protocol):
    """A graph that is ready to run."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Its outputs, for tensors by the names of its inputs."""


class Runtime(Protocol):
    """What runs exported graphs."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it can compute in; the first is the default."""

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        """The graph of a part whose files were checked. Raises OptionError."""


def library(name: str, runtime: str, extra: str = "deploy") -> Any:
    """A module of a library that is optional. Raises OptionError that names the extra."""
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise OptionError(
            f"runtime {runtime!r}",
            reason=f"{package} is not installed",
            hint=f"Install it: pip install 'imageprompt[{extra}]'",
        ) from None
