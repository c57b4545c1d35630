"""Which ranks, and which blocks not at all: for a number of parameters, or for an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from imageprompt.deploy.compress.low_rank import Matrix, Ranks, last_true

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.deploy.compress.measure import Measure


REFINEMENTS = 2
"""How often ranks are shared out again, by the errors measured at the ranks before."""


@dataclass(frozen=True)
class Choice:
    """Ranks by the name of a weight, the blocks without any effect, and what that costs."""

    ranks: dict[str, int]
    dropped: frozenset[str]
    parameters: int
    """Of K' and V'."""
    error: float


class Search:
    """Changes the weights of the measured adapter, and puts them back."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        weights: dict[str, Tensor],
        measure: Measure,
        *,
        int8: bool,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.matrices, self.int8 = matrices, int8
        self._weights, self._measure, self._on_step = weights, measure, on_step
        self.blocks = list(dict.fromkeys(one.block for one in matrices))
        kinds = {(one.block, one.kind) for one in matrices}
        self._ranks = Ranks(matrices, {key: self._without(*key) ** 2 for key in sorted(kinds)})
        self._least = sorted(self.blocks, key=lambda block: self.error({}, {block}))

    def on(self, measure: Measure) -> Search:
        """The same weights, measured by another measure."""
        other = copy(self)
        other._measure = measure
        return other

    def measured(self) -> float:
        """The error of the weights as they are."""
        return self._measure.error()

    def set_all(self, choice: Choice) -> None:
        self.set(self.matrices, choice.ranks, choice.dropped)

    def error(self, ranks: dict[str, int], dropped: Collection[str] = ()) -> float:
        """With these ranks, and nothing at the sites of dropped blocks; other weights are whole."""
        return self._error(ranks, dropped, int8=self.int8)

    def _error(self, ranks: dict[str, int], dropped: Collection[str] = (), *, int8: bool) -> float:
        changed = [one for one in self.matrices if one.name in ranks or one.block in dropped]
        self.set(changed, ranks, dropped, int8=int8)
        try:
            return self._measure.error()
        finally:
            self.restore(changed)
            self._on_step()

    @torch.no_grad()
    def set(
        self,
        matrices: Sequence[Matrix],
        ranks: dict[str, int],
        dropped: Collection[str],
        *,
        int8: bool | None = None,
    ) -> None:
        """Write these weights, as a light file would hold them."""
        int8 = self.int8 if int8 is None else int8
        for one in matrices:
            gone = one.block in dropped
            rank = 0 if gone else ranks[one.name]
            self._weights[one.name].copy_(one.at(rank, dropped=gone, int8=int8))

    @torch.no_grad()
    def restore(self, matrices: Sequence[Matrix]) -> None:
        for one in matrices:
            self._weights[one.name].copy_(one.weight)

    def within_budget(self, parameters: int) -> Choice | None:
        """The least error with at most so many parameters of K' and V'."""

        def best(ranks: Ranks, dropped: frozenset[str]) -> Choice:
            def fits(step: int) -> bool:
                return ranks.cost(ranks.at(step, dropped)) <= parameters

            return self._choice(ranks, last_true(len(ranks.steps), fits) or 0, dropped)

        return self._best(best, lambda choice: choice.error)

    def within_error(self, error: float) -> Choice | None:
        """The fewest parameters of K' and V' with at most this error; None if none has it."""

        def best(ranks: Ranks, dropped: frozenset[str]) -> Choice | None:
            tried: dict[int, Choice] = {}
            most = len(ranks.steps)

            def fails(step: int) -> bool:
                tried[step] = self._choice(ranks, step, dropped)
                return tried[step].error > error

            last = last_true(most, fails)
            step = 0 if last is None else last + 1
            return tried.get(step) if step <= most else None

        return self._best(best, lambda choice: choice.parameters)

    def _choice(self, ranks: Ranks, step: int, dropped: frozenset[str]) -> Choice:
        found = ranks.at(step, dropped)
        return Choice(found, dropped, ranks.cost(found), self.error(found, dropped))

    def _best(
        self,
        best: Callable[[Ranks, frozenset[str]], Choice | None],
        worth: Callable[[Choice], float],
    ) -> Choice | None:
        """Blocks are dropped, the least first, as long as that is better; then the errors of what
        is left are measured at the ranks that were found, and ranks are shared out by those."""
        ranks = self._ranks
        found = best(ranks, frozenset())
        for block in self._least[:-1]:
            if found is None:
                break
            tried = best(ranks, found.dropped | {block})
            if tried is None or worth(tried) >= worth(found):
                break
            found = tried
        for _ in range(REFINEMENTS):
            if found is None:
                break
            ranks = self._measured_at(ranks, found)
            tried = best(ranks, found.dropped)
            if tried is None or worth(tried) >= worth(found):
                break
            found = tried
        return found

    def _measured_at(self, ranks: Ranks, choice: Choice) -> Ranks:
        """Each block and kind at these ranks with all others whole, without the error of int8."""
        errors = {}
        for block, kind in ranks.weights:
            if block not in choice.dropped:
                own = self._of(block, kind)
                alone = {name: choice.ranks[name] for name in own}
                errors[block, kind] = self._error(alone, int8=False) ** 2
        return ranks.measured_at(choice.ranks, errors)

    def _without(self, block: str, kind: str) -> float:
        """The error with the base's own K or V in place of this block's."""
        return self.error(dict.fromkeys(self._of(block, kind), 0))

    def _of(self, block: str, kind: str) -> list[str]:
        return [one.name for one in self.matrices if (one.block, one.kind) == (block, kind)]
