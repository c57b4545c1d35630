"""What transformers share: a host is a description of their layers, calls and published config.

Nothing of a transformer is replaced or written anew: a hook hears the queries of an attention layer
(normalised, before any rotary embedding), others add `scale * Attention(q, K', V')` where the
variant wants it. So any attention processor and backend keeps working, and with nothing in use
every bit is the base's.

Shapes: B batch, S rows in attention, Q of them of the picture, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.attention.compiled import Slots, slot_terms
from imageprompt.attention.decoupled import (
    ImageTerm,
    attention_among_rows,
    image_attention,
    merge_heads,
    split_heads,
)
from imageprompt.attention.hooks import Hook
from imageprompt.attention.state import (
    Arguments,
    AttentionState,
    Call,
    CallReader,
    KeywordArguments,
    argument,
)
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Entry, HostSpec, Site, SiteKind
from imageprompt.hosts.contract import ConfiguredHost

NORM_EPS = 1e-6
Rows = Literal["picture", "text first", "picture first"]
"""What an attention layer computes: rows of the picture, or those of the text as well."""


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

    def terms(self, q: Tensor) -> list[ImageTerm]:
        """The image terms here for queries [B, H, Q, D] of the picture's rows."""
        if torch.compiler.is_compiling():
            return slot_terms(self.slots, q)
        return self.state.terms(self.number, q)

    def added(self, q: Tensor, rows: Rows) -> Tensor | None:
        """What is added to rows whose queries are `q` [B, H, S, D]: [B, S, H * D], or None."""
        compiling = torch.compiler.is_compiling()
        count = self.slots[0][2].shape[2] if compiling and self.slots else self.state.positions
        count = count or q.shape[2] - self.references  # no grid
        last = q.shape[2] - self.references if rows == "text first" else count
        first = last - count
        picture = q[:, :, first:last]
        terms = self.terms(picture)
        if self.entry == "all rows":
            terms = [_with_text_rows(term, first) for term in terms]
            picture, first = q[:, :, :last], 0
        total = image_attention(picture, terms)
        if total is None:
            return None
        after = q.shape[2] - last
        added = merge_heads(total)  # the other rows get nothing
        return nn.functional.pad(added, (0, 0, first, after)) if first or after else added


def _with_text_rows(term: ImageTerm, count: int) -> ImageTerm:
    """The term with a weight for `count` rows of text before the picture's: its mean there."""
    if term.mask is not None:
        mean = term.mask.mean(dim=2, keepdim=True).expand(-1, -1, count, -1)
        return replace(term, mask=torch.cat((mean, term.mask), dim=2))
    if term.scale.ndim < 4:
        return term
    mean = term.scale.mean(dim=2, keepdim=True).expand(-1, -1, count, -1)
    return replace(term, scale=torch.cat((mean, term.scale), dim=2))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Where the queries of an attention layer are heard, and where image terms are added."""

    queries: tuple[str, ...] = ("norm_q", "to_q")
    """The first of these modules that the layer has returns them."""
    heads_first: bool = False
    """Are they [B, H, S, D] there, as older processors have it, and not [B, S, H, D]?"""
    in_place: bool = False
    """Does the processor write to them afterwards?"""
    rows: Rows = "picture"
    output: str = "to_out.0"
    """The module whose input gets the terms; "": the layer's own output gets them."""
    own_keys: bool = False
    """Are `to_k` and `to_v` those of the picture's rows alone, for adapters that read them?"""
    block: bool = False
    """Does the block return (text, picture), so that terms can be added to the latter as well?"""


class LayerSite:
    """One attention layer with its hooks: the queries of the call that runs, and its places."""

    def __init__(self, layer: Layer, heads: int, places: Sequence[Place]) -> None:
        self.layer, self.heads = layer, heads
        self.places = {place.entry: place for place in places}
        self._queries: Tensor | None = None
        self._own: dict[str, Tensor] = {}

    def hear_own(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Hook after `to_q`, `to_k` or `to_v`: keep what an adapter reads of the rows."""

        def hear(_: nn.Module, args: Any, output: Tensor) -> None:
            if self.places["among rows"].acts:
                self._own[name] = split_heads(output, self.heads)

        return hear

    def _among_rows(self) -> Tensor | None:
        place = self.places.get("among rows")
        if place is None or not place.acts or len(self._own) < 3:
            return None
        own, self._own = self._own, {}
        terms = place.terms(own["to_q"])
        added = attention_among_rows(own["to_q"], own["to_k"], own["to_v"], terms, NORM_EPS)
        return None if added is None else merge_heads(added)

    def hear(self, _: nn.Module, args: Any, output: Tensor) -> None:
        """Hook after the module that returns the queries."""
        acts = any(place.acts for place in self.places.values())
        self._queries = None
        if acts:
            self._queries = self._by_head(output.clone() if self.layer.in_place else output)

    def _by_head(self, q: Tensor) -> Tensor:
        if q.ndim == 3:
            return split_heads(q, self.heads)
        return q if self.layer.heads_first else q.transpose(1, 2)

    def _added(self, entry: Entry) -> Tensor | None:
        place = self.places.get(entry)
        if place is None or self._queries is None or not place.acts:
            return None
        return place.added(self._queries, self.layer.rows)

    def _in_attention(self) -> Tensor | None:
        found = [self._added(entry) for entry in ("attention", "all rows")]
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

    def register(self, module: Any, block: nn.Module) -> list[Any]:
        """Register the hooks, which copies of the modules do not have; returns their handles."""
        name = next(n for n in self.layer.queries if getattr(module, n, None) is not None)
        handles = [getattr(module, name).register_forward_hook(Hook(self.hear))]
        if self.layer.own_keys:
            for own in ("to_q", "to_k", "to_v"):
                hook = Hook(self.hear_own(own))
                handles.append(getattr(module, own).register_forward_hook(hook))
        if self.layer.output:
            output = module.get_submodule(self.layer.output)
            handles.append(output.register_forward_pre_hook(Hook(self.before_output)))
        else:
            handles.append(module.register_forward_hook(Hook(self.after_layer)))
        if self.layer.block:
            handles.append(block.register_forward_hook(Hook(self.after_block)))
        return handles


@dataclass(frozen=True)
class TransformerHost(ConfiguredHost):
    """A transformer family that adapters run on."""

    layers: Mapping[SiteKind, Layer] = field(kw_only=True)
    """How a site of each kind is wired."""
    reader: Callable[[Mapping[str, Any]], CallReader] = field(kw_only=True)
    """From the config of a transformer to the function that reads its calls."""
    attachable: bool = True
    files_of: str = ""
    """The host whose adapters run here too: a file cannot tell which of them it was made for."""

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        return iter(()) if self.files_of else super().families(cross_attention_dim)

    def describe(self, denoiser: Any) -> HostSpec:
        spec = self.from_config({**denoiser.config, "_class_name": self.denoiser_class})
        assert spec is not None
        return spec

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Any, Any] | None:
        """Those of cross-attention; the keys of joint attention read the picture's own states."""
        module: Any = denoiser.get_submodule(name)
        cross = next(iter(self.layers)) == "cross"
        return (module.to_k.weight, module.to_v.weight) if cross else None

    def linears(self, denoiser: nn.Module, name: str) -> Mapping[str, nn.Module]:
        raise AttachError(
            f"LoRA at {name}",
            reason=f"adapters with LoRA do not run on a {self.denoiser_class}",
            hint="Use an adapter without LoRA.",
        )

    def install(self, denoiser: Any, spec: HostSpec, state: AttentionState) -> list[Any]:
        handles: list[Any] = []
        for number, site in enumerate(spec.sites):
            layer, module = self.layers[site.kind], denoiser.get_submodule(site.name)
            block = denoiser.get_submodule(site.name.rpartition(".")[0])
            entries: list[Entry] = ["attention"]
            entries += ["block"] if layer.block else []
            entries += ["all rows"] if layer.rows == "text first" else []
            entries += ["among rows"] if layer.own_keys else []
            first = len(state.readers)
            places = [Place(state, first + i, number, entry) for i, entry in enumerate(entries)]
            state.readers += places
            handles += LayerSite(layer, site.heads, places).register(module, block)
            state.parts += [block, module]
        state.levels = (0,) * len(state.readers)
        state.read = self.reader(dict(denoiser.config))
        return handles

    def intact(self, installed: list[Any]) -> bool:
        return True  # hooks stay, whatever processor is set

    def remove(self, installed: list[Any]) -> None:
        for handle in installed:
            handle.remove()


# ── reading calls ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LatentCalls:
    """Reads calls with latents [B, C, height, width], cut into patches."""

    config: Mapping[str, Any]
    sample: tuple[int, str] = (0, "hidden_states")
    text: tuple[int, str] = (1, "encoder_hidden_states")
    timestep: tuple[int, str] = (2, "timestep")
    separate: bool = False

    def __call__(self, args: Arguments, kwargs: KeywordArguments) -> Call:
        sample = argument(args, kwargs, *self.sample)
        patch = self.config.get("patch_size") or 1
        size = (int(sample.shape[-2]) // patch, int(sample.shape[-1]) // patch)
        return Call(
            sample,
            argument(args, kwargs, *self.timestep),
            argument(args, kwargs, *self.text),
            size,
            separate=self.separate,
        )


class PackedCalls:
    """Reads calls with packed latents [B, S, C] and position ids (time, row, column) of their rows.

    Rows of another time than that of the first are references, and follow the picture's.
    """

    def __init__(
        self, *, timestep: int, ids: int, separate: bool = True, text: str = "encoder_hidden_states"
    ) -> None:
        self._timestep, self._ids, self._separate, self._text = timestep, ids, separate, text
        self._last: tuple[Any, int] = (None, -1)
        self._grid = ((0, 0), 0)

    def __call__(self, args: Arguments, kwargs: KeywordArguments) -> Call:
        size, references = self._grid_of(argument(args, kwargs, self._ids, "img_ids"))
        return Call(
            argument(args, kwargs, 0, "hidden_states"),
            argument(args, kwargs, self._timestep, "timestep"),
            argument(args, kwargs, 1, self._text),
            size,
            references,
            separate=self._separate,
        )

    def _grid_of(self, ids: Tensor | None) -> tuple[tuple[int, int], int]:
        """Height and width of the picture's rows, and the number of reference rows; read once."""
        if ids is None:
            return (0, 0), 0
        version = -1 if ids.is_inference() else ids._version
        if self._last[0] is not ids or version != self._last[1]:
            self._last, self._grid = (ids, version), _read_grid(ids)
        return self._grid


def _read_grid(ids: Tensor) -> tuple[tuple[int, int], int]:
    rows = (ids[0] if ids.ndim == 3 else ids).long().cpu()
    of_picture = rows[:, 0] == rows[0, 0]
    picture = rows[of_picture]
    if not bool(of_picture[: len(picture)].all()):
        return (0, 0), 0
    height, width = (int(picture[:, axis].max()) + 1 for axis in (1, 2))
    grid = (height, width) if height * width == len(picture) else (0, 0)
    return grid, len(rows) - len(picture)


def block_sites(
    block: str,
    count: int,
    *,
    inner_dim: int,
    heads: int,
    cross_attention_dim: int,
    kind: SiteKind,
    first_id: int = 0,
) -> Iterator[Site]:
    """A site in each of `count` blocks; `block` is its module path, with {} for the number."""
    for i in range(count):
        yield Site(
            name=block.format(i),
            file_id=str(first_id + i),
            inner_dim=inner_dim,
            heads=heads,
            cross_attention_dim=cross_attention_dim,
            role="other",
            kind=kind,
        )
