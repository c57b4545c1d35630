"""What transformers share: a host is a description of their layers, calls and published config.

The queries of an attention layer are heard (normalised, before any rotary embedding), and
`scale * Attention(q, K', V')` is added where the variant wants it; see _transformer_sites. Loads no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import (
    Arguments,
    Call,
    CallReader,
    Entry,
    HostSpec,
    KeywordArguments,
    Shapes,
    Site,
    SiteKind,
)
from imageprompt.hosts.contract import (
    ROLES_KEY,
    JointTextLayers,
    Training,
    argument,
    stated_roles,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageprompt.attention.state import AttentionState
    from imageprompt.hosts._transformer_text import AppendText

Rows = Literal["picture", "text first", "text by row first", "picture first"]
"""What an attention layer computes: rows of the picture, or those of the text as well, which may
have a length of its own in every row of the batch."""


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
    rotated: bool = False
    """Is the layer called with `image_rotary_emb`, for adapters that want rotated queries?"""
    block: bool = False
    """Does the block return (text, picture), so that terms can be added to the latter as well?"""


@dataclass(frozen=True)
class TransformerHost:
    """A transformer family: its class name, a function from config to sites, and their wiring."""

    name: str
    summary: str
    denoiser_class: str
    published_config: Mapping[str, Any]
    """The parts of the published config that decide the sites."""
    sites: Callable[[Mapping[str, Any]], Iterator[Site]]
    layers: Mapping[SiteKind, Layer] = field(kw_only=True)
    """How a site of each kind is wired."""
    reader: Callable[[Mapping[str, Any]], CallReader] = field(kw_only=True)
    """From the config of a transformer to the function that reads its calls."""
    attachable: bool = True
    training: Training | None = None
    files_of: str = ""
    """The host whose adapters run here too: a file cannot tell which of them it was made for."""
    append_text: AppendText | None = None
    """How a call is made with a longer text; None: image tokens cannot follow those of the text."""

    def claims(self, denoiser: object) -> bool:
        return type(denoiser).__name__ == self.denoiser_class

    def from_config(self, config: Mapping[str, Any]) -> HostSpec | None:
        if config.get("_class_name") != self.denoiser_class:
            return None
        try:
            for name, value in self.published_config.items():
                if type(value) is int and type(config.get(name, value)) is not int:
                    raise TypeError(f"{name} is not a whole number")
            sites = tuple(self.sites({**self.published_config, **config}))
        except (TypeError, ValueError) as error:
            raise AttachError(
                f"a {self.denoiser_class} config",
                reason=f"its values describe no model ({error})",
                hint="Give the config.json of a base.",
            ) from None
        if (stated := config.get(ROLES_KEY)) is not None:
            role = stated_roles([site.name for site in sites], stated)
            sites = tuple(  # blocks run in the order of their sites
                replace(site, role=role(site.name), transformer_index=index)
                for index, site in enumerate(sites)
            )
        return HostSpec(family=self.name, sites=sites, text=self._text(sites))

    def _text(self, sites: tuple[Site, ...]) -> Site | None:
        """The text as a place for image tokens, which are as wide."""
        if self.append_text is None:
            return None
        width = sites[0].cross_attention_dim
        return Site(
            name="text",
            file_id="",
            inner_dim=width,
            heads=1,
            cross_attention_dim=width,
            role="other",
            kind="text",
        )

    def from_weights(self, shapes: Shapes) -> HostSpec | None:
        return None  # nobody saves a frozen transformer beside its adapter

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        if self.files_of:
            return
        if cross_attention_dim in (None, self._published_spec.cross_attention_dim):
            yield self._published_spec

    def published(self) -> list[HostSpec]:
        return [self._published_spec]

    @cached_property
    def _published_spec(self) -> HostSpec:
        sites = tuple(self.sites(self.published_config))
        return HostSpec(family=self.name, sites=sites, text=self._text(sites))

    def describe(self, denoiser: Any) -> HostSpec:
        spec = self.from_config({**denoiser.config, "_class_name": self.denoiser_class})
        assert spec is not None
        return spec

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Any, Any] | None:
        """Those of cross-attention, or of the text's side of joint attention."""
        if next(iter(self.layers)) == "cross":
            module: Any = denoiser.get_submodule(name)
            return module.to_k.weight, module.to_v.weight
        layers: Any = self.joint_text_layers(denoiser, name)
        return None if layers is None else (layers.key.weight, layers.value.weight)

    def joint_text_layers(self, denoiser: nn.Module, name: str) -> JointTextLayers | None:
        module: Any = denoiser.get_submodule(name)
        if next(iter(self.layers)) == "cross" or getattr(module, "add_k_proj", None) is None:
            return None
        norm = getattr(module, "norm_added_k", None)
        return JointTextLayers(module.add_k_proj, module.add_v_proj, norm)

    def linears(self, denoiser: nn.Module, name: str) -> Mapping[str, nn.Module]:
        raise AttachError(
            f"LoRA at {name}",
            reason=f"adapters with LoRA do not run on a {self.denoiser_class}",
            hint="Use an adapter without LoRA.",
        )

    def install(self, denoiser: Any, spec: HostSpec, state: AttentionState) -> list[Any]:
        from imageprompt.hosts._transformer_sites import LayerSite, Place

        installed: list[Any] = []
        for number, site in enumerate(spec.sites):
            layer, module = self.layers[site.kind], denoiser.get_submodule(site.name)
            block = denoiser.get_submodule(site.name.rpartition(".")[0])
            entries: list[Entry] = ["attention"]
            entries += ["block"] if layer.block else []
            entries += ["all rows"] if layer.rows == "text first" else []
            entries += ["all rows rotated"] if layer.rotated else []
            entries += ["among rows"] if layer.own_keys else []
            first = len(state.readers)
            places = [Place(state, first + i, number, entry) for i, entry in enumerate(entries)]
            state.readers += places
            installed.append(LayerSite(layer, site.heads, places).register(module, block))
            state.parts += [block, module]
        if self.append_text is not None:
            from imageprompt.hosts._transformer_text import TextPlace

            text = TextPlace(state, len(spec.sites), self.append_text)
            state.readers.append(text)
            state.extend = text.extend
        state.levels = (0,) * len(state.readers)
        state.read = self.reader(dict(denoiser.config))
        return installed

    def intact(self, installed: list[Any]) -> bool:
        for site in installed:
            site.follow()
        return True  # hooks stay, whatever processor is set

    def remove(self, installed: list[Any]) -> None:
        for site in installed:
            site.remove()


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

    def __init__(self, *, timestep: int, ids: int, separate: bool = True) -> None:
        """The positions of timestep and position ids among the arguments."""
        self._timestep, self._ids, self._separate = timestep, ids, separate
        self._last: tuple[Any, int] = (None, -1)
        self._grid = ((0, 0), 0)

    def __call__(self, args: Arguments, kwargs: KeywordArguments) -> Call:
        size, references = self._grid_of(argument(args, kwargs, self._ids, "img_ids"))
        return Call(
            argument(args, kwargs, 0, "hidden_states"),
            argument(args, kwargs, self._timestep, "timestep"),
            argument(args, kwargs, 1, "encoder_hidden_states"),
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
