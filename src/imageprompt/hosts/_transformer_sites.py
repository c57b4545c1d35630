"""The sites of a transformer while it runs: hooks hear its queries and add the image terms.

Nothing of a transformer is replaced or written anew, so any attention processor and backend keeps
working, and with nothing in use every bit is the base's.

Shapes: B batch, S rows in attention, Q of them of the picture, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imageprompt.attention.compiled import Hook, Slots, reads_slots, slot_terms
from imageprompt.attention.decoupled import (
    ImageTerm,
    attention_among_rows,
    image_attention,
    merge_heads,
    split_heads,
)
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Entry

if TYPE_CHECKING:
    from imageprompt.attention.state import AttentionState
    from imageprompt.hosts._transformer import Layer, Rows

NORM_EPS = 1e-6


class Place:
    """Where image terms are added at a site, in one of the ways that variants know."""

    def __init__(self, state: AttentionState, number: int, site: int, entry: Entry) -> None:
        self.state, self.number, self.site, self.entry = state, number, site, entry
        self.references = 0
        self.starts: tuple[int, ...] = ()
        self.slots: Slots = ()
        """What a graph reads here."""

    @property
    def acts(self) -> bool:
        """Does a prompt in use act here?"""
        if reads_slots():
            return self.slots != ()
        return self.state.acts_at(self.number)

    def terms(self, q: Tensor) -> list[ImageTerm]:
        """The image terms here for queries [B, H, Q, D] of the picture's rows."""
        if reads_slots():
            return slot_terms(self.slots, q)
        return self.state.terms(self.number, q)

    def added(self, q: Tensor, rows: Rows) -> Tensor | None:
        """What is added to rows whose queries are `q` [B, H, S, D]: [B, S, H * D], or None."""
        compiling = reads_slots()
        count = self.slots[0][2].shape[-2] if compiling and self.slots else self.state.positions
        count = count or q.shape[2] - self.references  # no grid
        if rows == "text by row first":
            return self._added_by_row(q, count)
        last = q.shape[2] - self.references if rows == "text first" else count
        first = last - count
        picture = q[:, :, first:last]
        terms = self.terms(picture)
        if self.entry in ("all rows", "all rows rotated"):
            terms = [_with_text_rows(term, first) for term in terms]
            picture, first = q[:, :, :last], 0
        total = image_attention(picture, terms)
        if total is None:
            return None
        after = q.shape[2] - last
        added = merge_heads(total)  # the other rows get nothing
        return nn.functional.pad(added, (0, 0, first, after)) if first or after else added

    def _added_by_row(self, q: Tensor, count: int) -> Tensor | None:
        """`added` where the picture's `count` rows begin at another one in every row of a batch."""
        parts = [q[i : i + 1, :, start : start + count] for i, start in enumerate(self.starts)]
        picture = torch.cat(parts)
        total = image_attention(picture, self.terms(picture))
        if total is None:
            return None
        added, length = merge_heads(total), q.shape[2]
        padded = [
            nn.functional.pad(added[i], (0, 0, start, length - start - count))
            for i, start in enumerate(self.starts)
        ]
        return torch.stack(padded)


def _with_text_rows(term: ImageTerm, count: int) -> ImageTerm:
    """The term with a weight for `count` rows of text before the picture's: its mean there."""
    if term.mask is not None:
        mean = term.mask.mean(dim=2, keepdim=True).expand(-1, -1, count, -1)
        return replace(term, mask=torch.cat((mean, term.mask), dim=2))
    if term.scale.ndim < 4 or term.scale.shape[-2] == 1:
        return term
    mean = term.scale.mean(dim=-2, keepdim=True)
    mean = mean.expand(*mean.shape[:-2], count, -1)
    return replace(term, scale=torch.cat((mean, term.scale), dim=-2))


def _unheard(names: str) -> AttachError:
    return AttachError(
        f"an attention layer that does not call {names}",
        reason="the image prompt would have no effect there (fused projections do this)",
        hint="Undo them (unfuse_qkv_projections), or use another attention processor.",
    )


OWN = ("to_q", "to_k", "to_v")


class LayerSite:
    """One attention layer with its hooks: the queries of the call that runs, and its places."""

    def __init__(self, layer: Layer, heads: int, places: Sequence[Place]) -> None:
        self.layer, self.heads = layer, heads
        self.places = {place.entry: place for place in places}
        self._queries: Tensor | None = None
        self._acting: tuple[Entry, ...] = ()
        """Where a prompt acts in the call whose queries were heard."""
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._own: dict[str, Tensor] = {}
        self._hooked: list[Any] = []
        self._handles: list[Any] = []

    def hear_own(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Hook after `to_q`, `to_k` or `to_v`: keep what an adapter reads of the rows."""

        def hear(_: nn.Module, args: Any, output: Tensor) -> None:
            if self.places["among rows"].acts:
                self._own[name] = split_heads(output, self.heads)

        return hear

    def _among_rows(self) -> Tensor | None:
        place = self.places.get("among rows")
        if place is None or not place.acts:
            return None
        if len(self._own) < 3:
            raise _unheard("to_q, to_k and to_v")
        own, self._own = self._own, {}
        terms = place.terms(own["to_q"])
        added = attention_among_rows(own["to_q"], own["to_k"], own["to_v"], terms, NORM_EPS)
        return None if added is None else merge_heads(added)

    def hear(self, _: nn.Module, args: Any, output: Tensor) -> None:
        """Hook after the module that returns the queries."""
        self._acting = tuple([entry for entry, place in self.places.items() if place.acts])
        self._queries = None
        if self._acting:
            self._queries = self._by_head(output.clone() if self.layer.in_place else output)

    def hear_rotary(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Hook before the layer: keep the rotary embedding of its rows."""
        if self.places["all rows rotated"].acts:
            self._rotary = kwargs.get("image_rotary_emb")

    def _rotated(self, q: Tensor) -> Tensor:
        """Queries [B, H, S, D] after the rotary embedding, as the layer itself turns them."""
        from diffusers.models.embeddings import apply_rotary_emb

        if self._rotary is None:
            raise AttachError(
                "an attention layer that is called without image_rotary_emb",
                reason="the adapter reads its queries after the rotary embedding",
                hint="Load the adapter without a reading.",
            )
        rotary, self._rotary = self._rotary, None
        turned: Tensor = apply_rotary_emb(q, rotary)
        return turned

    def _by_head(self, q: Tensor) -> Tensor:
        if q.ndim == 3:
            return split_heads(q, self.heads)
        return q if self.layer.heads_first else q.transpose(1, 2)

    def _added(self, entry: Entry) -> Tensor | None:
        place = self.places.get(entry)
        if place is None:
            return None
        if self._queries is None:
            if place.acts:
                raise _unheard(" or ".join(self.layer.queries))
            return None
        if entry not in self._acting:
            return None
        q = self._rotated(self._queries) if entry == "all rows rotated" else self._queries
        return place.added(q, self.layer.rows)

    def _in_attention(self) -> Tensor | None:
        entries: tuple[Entry, ...] = ("attention", "all rows", "all rows rotated")
        found = [self._added(entry) for entry in entries]
        found.append(self._among_rows())
        added = [one for one in found if one is not None]
        if "block" not in self.places:
            self._queries = None
        return sum(added[1:], added[0]) if added else None

    def before_output(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Hook before the output projection, whose input may hold more columns than attention."""
        added = self._in_attention()
        if added is None:
            return None
        more = args[0].shape[-1] - added.shape[-1]
        return (args[0] + (nn.functional.pad(added, (0, more)) if more else added),)

    def after_layer(self, _: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Hook after a layer without an output projection."""
        added = self._in_attention()
        return None if added is None else output + added

    def after_block(self, _: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Any:
        """Hook after a block that returns (text, picture)."""
        added = self._added("block")
        self._queries = None
        return None if added is None else (output[0], output[1] + added)

    def register(self, module: nn.Module, block: nn.Module) -> LayerSite:
        """Register the hooks, which copies of the modules do not have."""
        self._module, self._block = module, block
        self.follow()
        return self

    def follow(self) -> None:
        """Move the hooks where peft's LoRA has wrapped a linear layer, or unwrapped it."""
        parts = self._parts()
        if not all(map(is_, parts, self._hooked)) or len(parts) != len(self._hooked):
            self.remove()
            self._handles, self._hooked = self._register(*parts), parts

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked = [], []

    def _parts(self) -> list[Any]:
        """The modules inside the layer that have hooks."""
        module: Any = self._module
        queries = next(n for n in self.layer.queries if getattr(module, n, None) is not None)
        names = [queries, *(OWN if self.layer.own_keys else ())]
        names += [self.layer.output] if self.layer.output else []
        return [module.get_submodule(name) for name in names]

    def _register(self, queries: Any, *others: Any) -> list[Any]:
        handles = [queries.register_forward_hook(Hook(self.hear))]
        for own, part in zip(OWN if self.layer.own_keys else (), others, strict=False):
            handles.append(part.register_forward_hook(Hook(self.hear_own(own))))
        if self.layer.rotated:
            hook = Hook(self.hear_rotary)
            handles.append(self._module.register_forward_pre_hook(hook, with_kwargs=True))
        if self.layer.output:
            handles.append(others[-1].register_forward_pre_hook(Hook(self.before_output)))
        else:
            handles.append(self._module.register_forward_hook(Hook(self.after_layer)))
        if self.layer.block:
            handles.append(self._block.register_forward_hook(Hook(self.after_block)))
        return handles
