"""Sites of transformers: what hears the queries of an attention layer, and adds image terms there.

Nothing of a transformer is replaced or written anew: a hook keeps the normalised queries (before
any rotary embedding), others add `scale * Attention(q, K', V')` where the variant wants it. So any
attention processor and backend keeps working, and with nothing in use every bit is the base's.

Shapes: B batch, S rows in attention, Q of them of the picture, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imageprompt.attention.compiled import Slots, slot_terms
from imageprompt.attention.decoupled import ImageTerm, image_attention, merge_heads
from imageprompt.attention.hooks import Hook
from imageprompt.core.spec import Entry

if TYPE_CHECKING:
    from imageprompt.attention.state import AttentionState


class Place:
    """Where image terms are added at a site, in one of the ways that variants know."""

    def __init__(self, state: AttentionState, number: int, site: int, entry: Entry) -> None:
        self.state, self.number, self.site, self.entry = state, number, site, entry
        self.references = 0
        self.slots: Slots = ()
        """What a graph reads here."""

    @property
    def acts(self) -> bool:
        """May a prompt in use act here?"""
        if torch.compiler.is_compiling():
            return self.slots != ()
        return bool(self.state.open) and bool(self.state.active)

    def added(self, q: Tensor, first: int) -> Tensor | None:
        """What is added to rows whose queries are `q` [B, S, H, D]: [B, S, H * D], or None.

        The picture's rows begin at `first`; those before it are the text's.
        """
        q = q.transpose(1, 2)
        last = q.shape[2] - self.references
        picture = q[:, :, first:last]
        if torch.compiler.is_compiling():
            terms = slot_terms(self.slots, picture)
        else:
            terms = self.state.terms(self.number, picture)
        if self.entry == "all rows":
            terms = [_with_text_rows(term, first) for term in terms]
            picture = q[:, :, :last]
        total = image_attention(picture, terms)
        if total is None:
            return None
        before = 0 if self.entry == "all rows" else first
        rows = merge_heads(total)
        if before or self.references:  # other rows get nothing
            rows = nn.functional.pad(rows, (0, 0, before, self.references))
        return rows


def _with_text_rows(term: ImageTerm, count: int) -> ImageTerm:
    """The term with a weight for `count` rows of text before the picture's: its mean there."""
    if term.mask is not None:
        mean = term.mask.mean(dim=2, keepdim=True).expand(-1, -1, count, -1)
        return replace(term, mask=torch.cat((mean, term.mask), dim=2))
    if term.scale.ndim < 4:
        return term
    mean = term.scale.mean(dim=2, keepdim=True).expand(-1, -1, count, -1)
    return replace(term, scale=torch.cat((mean, term.scale), dim=2))


@dataclass
class JointSite:
    """The attention layer of a block: its queries of the call that runs, and its places."""

    places: list[Place]
    length: Callable[[], int]
    """The number of rows of the picture (and of references) in the call that runs."""
    queries: Tensor | None = None

    def hear(self, _: nn.Module, args: Any, output: Tensor) -> None:
        """Hook after `norm_q`: keep the queries."""
        self.queries = output if any(place.acts for place in self.places) else None

    def _added(self, entry: Entry, first: int) -> Tensor | None:
        place = next(place for place in self.places if place.entry == entry)
        if self.queries is None or not place.acts:
            return None
        return place.added(self.queries, first)

    def before_projection(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Hook before the out-projection of the picture's rows."""
        added = self._added("attention", 0)
        return None if added is None else (args[0] + added,)

    def after_block(self, _: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Any:
        """Hook after a double block, which returns (text, picture)."""
        added = self._added("block", 0)
        self.queries = None
        return None if added is None else (output[0], output[1] + added)

    def after_attention(self, _: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Hook after the attention of a single block: rows of the text, then of the picture."""
        total = None
        if self.queries is not None:
            first = self.queries.shape[1] - self.length()
            for place in self.places:
                added = self._added(place.entry, first)
                if added is not None:
                    total = added if total is None else total + added
        self.queries = None
        return None if total is None else output + total


def pre_hook(module: nn.Module, call: Callable[..., Any]) -> Any:
    """Register a hook that copies of the module do not have; returns its handle."""
    return module.register_forward_pre_hook(Hook(call))


def post_hook(module: nn.Module, call: Callable[..., Any]) -> Any:
    return module.register_forward_hook(Hook(call))
