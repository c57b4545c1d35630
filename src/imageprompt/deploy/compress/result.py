"""What `compress` was asked for and what it found; loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imageprompt.core.errors import OptionError, as_text

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_BUDGET = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([km%]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """Parameters of the whole adapter, or a share of those of its K' and V'."""

    parameters: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.share:.4g}" if self.parameters is None else f"{self.parameters:,}"


def parse_budget(text: str) -> Budget:
    """ "50M", "500k" or "120000" parameters, or "25%" of K' and V'. Raises OptionError."""
    found = _BUDGET.fullmatch(text.strip())
    number = float(found[1]) if found else 0.0
    percent = found is not None and found[2] == "%"
    if not number or (percent and number > 100):
        raise OptionError(
            f"budget {text!r}",
            reason="not a number of parameters nor a share of K' and V'",
            hint="Write 50M, 500k, 120000 or 25%.",
        )
    if percent:
        return Budget(share=number / 100)
    assert found is not None
    return Budget(parameters=int(number * _UNITS[found[2].lower()]))


@dataclass(frozen=True, kw_only=True)
class Block:
    """What one attention block of the base became."""

    name: str
    ranks: tuple[int, ...]
    """Of K' and V' of its sites in file order; 0 is the base's own, or nothing where dropped."""
    parameters: int
    before: int
    error: float
    """Over the effect of the whole adapter, with this block alone compressed."""
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """How many words of a drawn reference the judge reads in the pictures, by attribute."""

    pictures: int
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A light adapter beside the one that it was made from."""

    adapter: str
    base: str
    parameters: int
    parameters_before: int
    key_values: int
    """Parameters of K' and V' now; `key_values_before` is what they were."""
    key_values_before: int
    error: float
    """Of the guided prediction, over the effect of the whole adapter, on `measured` references."""
    dtype: str
    fitted: int
    measured: int
    blocks: tuple[Block, ...]
    attributes: Attributes | None = None
    files: Mapping[str, str] | None = None

    @property
    def share(self) -> float:
        """What is left of K' and V'."""
        return self.key_values / self.key_values_before

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}

    def __str__(self) -> str:
        width = max(len(block.name) for block in self.blocks)
        lines = [
            f"{self.adapter} on {self.base}: {self.parameters:,} of {self.parameters_before:,} "
            f"parameters, {self.share:.0%} of K' and V', {self.dtype}",
            f"error over the adapter's effect: {self.error:.3f} ({self.measured} references; "
            f"fitted on {self.fitted} others)",
            "",
            f"{'block':{width}}  ranks of K', V'  parameters  error alone",
        ]
        for block in self.blocks:
            ranks = "dropped" if block.dropped else _ranks(block.ranks)
            lines.append(
                f"{block.name:{width}}  {ranks:15}  {block.parameters:10,}  {block.error:.3f}"
            )
        if self.attributes is not None:
            match = self.attributes
            lines += ["", f"read in {match.pictures} pictures   before  after"]
            lines += [
                f"{name:20} {match.before[name]:9.3f} {match.after[name]:6.3f}"
                for name in match.before
            ]
        if self.files is not None:
            lines += ["", *(f"{name}: {path}" for name, path in self.files.items())]
        return as_text(lines)


def _ranks(ranks: tuple[int, ...]) -> str:
    """Of one site each; of several the smallest and the largest."""
    k, v = ranks[::2], ranks[1::2]
    shown = (str(min(one)) if len({*one}) == 1 else f"{min(one)}-{max(one)}" for one in (k, v))
    return ", ".join(shown)
