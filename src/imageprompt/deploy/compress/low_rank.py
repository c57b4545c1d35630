"""K' and V' in low rank: which directions of a weight matter, what each costs, what is kept.

A weight W of a site [inner, width] stands beside the base's own weight of the text, W0: D = W - W0
is what the adapter adds. With the second moment M of the image tokens, the directions are the
eigenvectors u of D M D^T, the energy of each its eigenvalue: the mean square of what it adds to
keys or values. Rank r keeps u1 ... ur: up = [u1 ... ur], down = up^T D.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2
"""Added to the second moment, in units of its mean eigenvalue: few references span few tokens."""


@dataclass(frozen=True)
class Matrix:
    """K' or V' of a site, split into directions of falling energy."""

    name: str
    """Its name in the standard layout."""
    block: str
    """The attention block of its site, a module path of the base."""
    kind: str
    """"k" or "v"."""
    own: Tensor | None
    """The base's weight of the text [inner, width], float32; None where that is of another shape:
    then the difference is the weight itself."""
    difference: Tensor
    directions: Tensor
    """[inner, most], columns of length 1."""
    energies: Tensor
    """[most], float64."""

    @classmethod
    def of(
        cls, name: str, block: str, kind: str, weight: Tensor, own: Tensor | None, moment: Tensor
    ) -> Matrix:
        """`moment` [width, width] is the tokens' second moment, float64."""
        weight = weight.detach().to("cpu", torch.float32, copy=True)  # the module's will change
        own = None if own is None or own.shape != weight.shape else own.float()
        difference = weight if own is None else weight - own
        wide = difference.double()
        energies, directions = torch.linalg.eigh(wide @ moment @ wide.T)
        most = min(weight.shape)
        order = torch.arange(len(energies)).flip(0)[:most]
        return cls(
            name,
            block,
            kind,
            own,
            difference,
            directions[:, order].float(),
            energies[order].clamp(min=0),
        )

    @property
    def size(self) -> int:
        """Parameters of the whole weight."""
        return self.difference.numel()

    @property
    def step(self) -> int:
        """Parameters of one more direction."""
        return sum(self.difference.shape)

    def cost(self, rank: int) -> int:
        """Parameters at a rank; where the pair would take as many, the weight is kept whole."""
        return min(rank * self.step, self.size)

    def is_whole(self, rank: int) -> bool:
        return rank * self.step >= self.size

    @property
    def weight(self) -> Tensor:
        return self.difference if self.own is None else self.own + self.difference

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """up [inner, rank] and down [rank, width]."""
        up = self.directions[:, :rank]
        return up, up.T @ self.difference

    def at(self, rank: int, *, dropped: bool = False, int8: bool = False) -> Tensor:
        """The weight at a rank, [inner, width] in float32, as the light file would hold it."""
        if dropped:
            return torch.zeros_like(self.difference)
        if self.is_whole(rank):
            return rounded(self.weight) if int8 else self.weight
        up, down = (rounded(part) if int8 else part for part in self.pair(rank))
        return up @ down if self.own is None else self.own + up @ down


def rounded(weight: Tensor) -> Tensor:
    """A matrix after int8 with a scale for each row."""
    from imageprompt.checkpoint.torch_io import row_scales

    if not weight.numel():
        return weight
    scales = row_scales(weight)[:, None]
    return (weight / scales).round() * scales


def second_moment(tokens: Tensor) -> Tensor:
    """Of tokens [..., width], float64 [width, width], with a ridge."""
    rows = tokens.detach().reshape(-1, tokens.shape[-1]).double().cpu()
    moment = rows.T @ rows / len(rows)
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


# ── ranks ───────────────────────────────────────────────────────────────────────────────────────

_NOTHING_LEFT = 1e-8
"""Of the energy: what error that leaves is not told from rounding."""
Weights = Mapping[tuple[str, str], float]
"""(block, kind) -> squared error with that kind of the block at rank 0."""


class Ranks:
    """Ranks by one threshold: a direction is kept if it is worth enough for each parameter.

    It is worth its share of the energy of its block and kind, times the squared error that the
    whole of that is worth. `steps` are the thresholds where a rank changes, falling.
    """

    def __init__(self, matrices: Sequence[Matrix], weights: Weights) -> None:
        self.matrices, self.weights = matrices, weights
        self._total = total = self._energies({})
        self._worth = {
            one.name: one.energies
            * (weights[one.block, one.kind] / (total[one.block, one.kind] or 1.0) / one.step)
            for one in matrices
        }
        worth = (value for one in self._worth.values() for value in one.tolist())
        self.steps: list[float] = sorted({*worth}, reverse=True)

    def at(self, step: int, dropped: Collection[str] = ()) -> dict[str, int]:
        """Ranks with the first `step` thresholds passed; 0 in dropped blocks."""
        threshold = self.steps[step - 1] if step else float("inf")
        return {
            one.name: 0 if one.block in dropped else int((self._worth[one.name] >= threshold).sum())
            for one in self.matrices
        }

    def measured_at(self, ranks: Mapping[str, int], errors: Weights) -> Ranks:
        """With the worth of each block and kind from its squared error at these ranks."""
        left = self._energies(ranks)
        weights = dict(self.weights)
        for key, squared in errors.items():
            if (share := left[key] / (self._total[key] or 1.0)) > _NOTHING_LEFT:
                weights[key] = squared / share
        return Ranks(self.matrices, weights)

    def _energies(self, ranks: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """What is left out at these ranks, of each block and kind; of those not named, all."""
        found: dict[tuple[str, str], float] = {}
        for one in self.matrices:
            rank = ranks.get(one.name, 0)
            out = 0.0 if one.is_whole(rank) else float(one.energies[rank:].sum())
            key = one.block, one.kind
            found[key] = found.get(key, 0.0) + out
        return found

    def cost(self, ranks: Mapping[str, int]) -> int:
        return sum(one.cost(ranks[one.name]) for one in self.matrices)


def last_true(count: int, holds: Callable[[int], bool]) -> int | None:
    """The last of 0..count for which a condition holds that is true up to some number."""
    if not holds(0):
        return None
    low, high = 0, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
