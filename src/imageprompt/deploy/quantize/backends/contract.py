"""The interface of a quantiser: what the other files of this folder implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Call = Mapping[str, "np.ndarray"]
"""The inputs of a graph in one call, by name."""


class NotQuantizable(Exception):
    """A quantiser cannot do it; the message says why."""


class Quantizer(Protocol):
    """What stores a graph in fewer bits."""

    @property
    def name(self) -> str:
        """That of the backend whose files it reads."""

    @property
    def precisions(self) -> Mapping[str, str]:
        """What it can write -> what that is."""

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The precisions that need calls to calibrate with."""

    def require(self) -> None:
        """Raises OptionError that names the extra, unless its libraries are installed."""

    def write(self, source: Path, target: Path, precision: str, calls: Sequence[Call]) -> list[str]:
        """Write the graph in the file `source` to the file `target`.

        Returns the names of its files, that which a runtime opens first. Raises NotQuantizable.
        """
