"""Weight files of extractors: which are published, and which nobody can vouch for.

A file is known by its SHA-256. Any other may hold random, damaged or changed weights, which would
give figures all the same: it is refused unless its source starts with "unverified:", and then the
extractor's name says so beside every figure. A folder of a transformers model has no such hash; it
is refused if its normalisation layers are still as an initialiser leaves them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.read.open import open_source
from imageprompt.core.errors import EncoderError, ImagePromptError
from imageprompt.core.hub import locate_file
from imageprompt.core.untrusted import open_regular

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "unverified:"
MARK = " (unverified weights)"
MAX_TENSORS = 2000
"""Of a file; the largest of the published ones have 700."""
MISFITS = (LookupError, RuntimeError, ValueError, TypeError, ArithmeticError)
"""What networks raise when they are tried with tensors of other names or shapes."""


@dataclass(frozen=True)
class Source:
    """What a user wrote: a place, and whether weights that nobody vouches for are welcome."""

    place: str
    unverified: bool

    @classmethod
    def of(cls, text: str) -> Source:
        return cls(text.removeprefix(PREFIX), text.startswith(PREFIX))

    def name(self, *, verified: bool) -> str:
        """For results."""
        return self.place if verified else self.place + MARK

    def check(self, role: str, reason: str) -> None:
        """Raises EncoderError for weights with this flaw, unless they are welcome."""
        if not self.unverified:
            raise EncoderError(
                f"{role} weights {self.place!r}",
                reason=reason,
                hint=f"To use them all the same, write {role}={PREFIX}{self.place}; every figure "
                "is then marked.",
            )


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that has been looked at; tensors are read when they are asked for."""

    path: Path
    sha256: str
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, place: str) -> WeightFile:
        """From a path or a Hub file. Raises NotFoundError, EncoderError."""
        path = locate_file(place)
        try:
            shapes = {name: one.shape for name, one in open_source(path).tensors.items()}
            if len(shapes) > MAX_TENSORS:
                raise EncoderError(str(path), reason=f"more than {MAX_TENSORS:,} tensors")
            with open_regular(path) as stream:
                return cls(path, hashlib.file_digest(stream, "sha256").hexdigest(), shapes)
        except (ImagePromptError, OSError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
            raise EncoderError(f"weights {place!r}", reason=str(reason or error)) from None

    def tensors(self, device: str | None, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
        """Those whose names start with one of these, in float32."""
        import torch

        from imageprompt.checkpoint.torch_io import tensor_of

        stored = open_source(self.path).tensors
        return {
            name: tensor_of(one).to(device or "cpu", torch.float32)
            for name, one in stored.items()
            if name.startswith(tuple(prefixes)) and not name.endswith("num_batches_tracked")
        }


def published_weights(role: str, files: Sequence[WeightFile], source: Source, known: str) -> str:
    """The name for results. `known` are starts of the SHA-256 of published files.

    Raises EncoderError for files that are not among them, unless the source takes any.
    """
    strange = [one for one in files if not one.sha256.startswith(tuple(known.split()))]
    if strange and known:
        reason = f"SHA-256 {strange[0].sha256[:8]} is not that of a published file"
        source.check(role, reason)
    elif strange:
        source.check(role, "no published hash is known for this role, so nothing can confirm them")
    return source.name(verified=not strange)


def misfit(role: str, source: Source, error: Exception) -> EncoderError:
    """The error for weights of another architecture."""
    from imageprompt.evaluation.extractors import EXTRACTORS

    missing = isinstance(error, KeyError)
    reason = f"{error.args[0]} is missing" if missing else (str(error).splitlines() or [""])[0]
    return EncoderError(
        f"{role} weights {source.place!r}",
        reason=f"not the weights of its network ({reason})",
        hint=f"Give {EXTRACTORS[role].summary}.",
    )


def is_untrained(model: nn.Module) -> bool:
    """Are all normalisation layers as they were made, with weights of 1 and biases of 0?

    Training moves each of them; a copy of random weights is recognised without knowing it.
    """
    found = False
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if "norm" not in type(module).__name__.lower() or weight is None:
            continue
        found = True
        bias: Any = getattr(module, "bias", None)
        if bool((weight != 1).any()) or (bias is not None and bool((bias != 0).any())):
            return False
    return found


def identity(*parts: str) -> str:
    """16 hex digits over the hashes of weights and the words of the preprocessing."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
