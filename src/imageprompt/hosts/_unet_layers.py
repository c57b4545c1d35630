"""The attention layers of a UNet in the order of their file ids, from a config or from shapes.

Pure Python: reading a file needs no torch. Tests compare both ways with diffusers' own models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imageprompt.core.spec import OWN_BASE, AttentionLayer, HostSpec, Role, Shapes, Site, Stage
from imageprompt.hosts.contract import ROLES_KEY, stated_roles

_WITH_ATTENTION = {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
_WITHOUT = {"DownBlock2D", "UpBlock2D", "UNetMidBlock2D", None}
_DEFAULTS: Mapping[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
}
"""What diffusers assumes for keys that a config leaves out."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "attention_type": ("default",),
    "num_attention_heads": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "addition_embed_type": (None, "text_time"),
}
"""Keys that can add or change attention layers, with the values that do not."""
_FAMILIES = {
    (16, 768, False): "sd15",
    (16, 1024, False): "sd2",
    (70, 2048, False): "sdxl",
    (70, 2048, True): "kolors",
}
"""(number of sites, text width, projects text) of the published bases."""
_WEIGHT = re.compile(
    r"((down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?attentions\.(\d+)"
    r"\.transformer_blocks\.(\d+)\.attn([12]))\.to_k\.weight"
)
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
"""The order in which diffusers registers the blocks of a UNet."""
_STAGES: tuple[Stage, ...] = ("input", "middle", "output")
"""The order in which a UNet runs."""
_NO_CONFIG: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Layer:
    """One attention layer; `cross` where it reads the text."""

    name: str
    inner_dim: int
    heads: int
    input_dim: int
    cross: bool


def host_spec(
    layers: Sequence[Layer], *, projects_text: bool, config: Mapping[str, Any] = _NO_CONFIG
) -> HostSpec | None:
    """Sites and attention layers, numbered in the given order; None without cross-attention.

    Raises AttachError for a config that gives roles to sites that do not exist.
    """
    numbered = [(str(i), layer) for i, layer in enumerate(layers)]
    cross = [(file_id, layer) for file_id, layer in numbered if layer.cross]
    if not cross:
        return None
    names = [layer.name for _, layer in cross]
    role_of, indices = _roles(names, config), _transformer_indices(names)
    sites = tuple(
        Site(
            name=layer.name,
            file_id=file_id,
            inner_dim=layer.inner_dim,
            heads=layer.heads,
            cross_attention_dim=layer.input_dim,
            role=role_of(layer.name),
            transformer_index=indices[_transformer(layer.name)],
            stage=_stage(layer.name),
        )
        for file_id, layer in cross
    )
    attention = tuple(
        AttentionLayer(
            name=layer.name, file_id=file_id, inner_dim=layer.inner_dim, input_dim=layer.input_dim
        )
        for file_id, layer in numbered
    )
    return HostSpec(family=_family(sites, projects_text), sites=sites, layers=attention)


# ── from a config ───────────────────────────────────────────────────────────────────────────────


def from_config(config: Mapping[str, Any]) -> list[Layer] | None:
    """The layers that diffusers builds from a config; None for a config beyond this description."""
    options = {**_DEFAULTS, **config}
    if any(options.get(name, values[0]) not in values for name, values in _NEUTRAL.items()):
        return None
    down, up = options["down_block_types"], options["up_block_types"]
    try:
        known = {*down, *up, options["mid_block_type"]} <= _WITH_ATTENTION | _WITHOUT
        if not known or {len(down), len(up)} != {len(options["block_out_channels"])}:
            return None
        return list(_layers(options))
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None  # only diffusers itself can judge this config


def _layers(options: Mapping[str, Any]) -> Iterator[Layer]:
    """Down, up, mid: the order in which diffusers registers the blocks of a UNet."""
    channels = options["block_out_channels"]
    count = len(channels)
    heads = _repeat(options["attention_head_dim"], count)  # a misnomer: the number of heads
    text = _repeat(options["cross_attention_dim"], count)
    depths = _repeat(options["transformer_layers_per_block"], count)
    numbers = _repeat(options["layers_per_block"], count)
    up_depths = options["reverse_transformer_layers_per_block"] or depths[::-1]

    def block(prefix: str, kind: str | None, i: int, number: int, depth: Any) -> Iterator[Layer]:
        if kind in _WITH_ATTENTION:
            width = channels[i] // heads[i] * heads[i]
            transformer_depths = _repeat(depth, number)
            for attention in range(number):
                for layer in range(transformer_depths[attention]):
                    name = f"{prefix}.attentions.{attention}.transformer_blocks.{layer}"
                    yield Layer(f"{name}.attn1", width, heads[i], width, False)
                    yield Layer(f"{name}.attn2", width, heads[i], text[i], True)

    for i, kind in enumerate(options["down_block_types"]):
        yield from block(f"down_blocks.{i}", kind, i, numbers[i], depths[i])
    for up, kind in enumerate(options["up_block_types"]):
        i = count - 1 - up
        yield from block(f"up_blocks.{up}", kind, i, numbers[i] + 1, up_depths[up])
    yield from block("mid_block", options["mid_block_type"], count - 1, 1, depths[-1])


def _repeat(value: Any, count: int) -> Sequence[Any]:
    """A single value `count` times; a list as it is."""
    return (value,) * count if isinstance(value, int) else tuple(value)


# ── from shapes ─────────────────────────────────────────────────────────────────────────────────


def from_weights(shapes: Shapes) -> list[Layer] | None:
    """The layers of a UNet whose state dict has these tensors; their heads are unknown (0).

    None where the tensors do not describe such a UNet.
    """
    found: list[tuple[tuple[int, ...], Layer]] = []
    for name, shape in shapes.items():
        match = _WEIGHT.fullmatch(name)
        if match and len(shape) == 2:
            layer, block, *numbers = match.groups()
            place = (_BLOCKS.index(block), *(int(n or 0) for n in numbers))
            found.append((place, Layer(layer, shape[0], 0, shape[1], numbers[-1] == "2")))
        elif name.endswith("to_k.weight") and "motion_modules" not in name:
            return None  # another kind of attention
    places = {place for place, _ in found}
    if any((*place[:-1], 3 - place[-1]) not in places for place in places):
        return None  # attn1 or attn2 of a block is missing, which shifts all later file ids
    return [layer for _, layer in sorted(found, key=lambda pair: pair[0])] or None


# ── family, order and roles ─────────────────────────────────────────────────────────────────────


def _family(sites: Sequence[Site], projects_text: bool) -> str:
    """The published family with these sites, else `OWN_BASE`."""
    family = _FAMILIES.get((len(sites), sites[0].cross_attention_dim, projects_text), OWN_BASE)
    return family if max(site.inner_dim for site in sites) == 1280 else OWN_BASE


def _transformer(name: str) -> str:
    """The transformer that a layer belongs to: `down_blocks.1.attentions.0`."""
    return name.split(".transformer_blocks.")[0]


def _stage(name: str) -> Stage:
    return "input" if name[0] == "d" else "output" if name[0] == "u" else "middle"


def _transformer_indices(names: Iterable[str]) -> dict[str, int]:
    """Transformers numbered in sampling order: down, mid, up."""
    transformers = dict.fromkeys(_transformer(name) for name in names)
    order = sorted(transformers, key=lambda name: _STAGES.index(_stage(name)))
    return {name: index for index, name in enumerate(order)}


def _roles(names: Sequence[str], config: Mapping[str, Any]) -> Callable[[str], Role]:
    """A function from site name to role: as the config states, else by position.

    Raises AttachError for a malformed statement.
    """
    stated = config.get(ROLES_KEY)
    return _roles_by_position(names) if stated is None else stated_roles(names, stated)


def _roles_by_position(names: Sequence[str]) -> Callable[[str], Role]:
    """Style is the first up block, layout the last down block with text (InstantStyle).

    In the deep transformers of SDXL it is only the second attention of each block. Elsewhere it is
    the whole block, and the middle block counts as layout too.
    """
    down = max((n.split(".")[1] for n in names if n.startswith("down_blocks.")), default="")
    up = min((n.split(".")[1] for n in names if n.startswith("up_blocks.")), default="")
    deep = any(f"down_blocks.{down}.attentions.1.transformer_blocks.2." in name for name in names)
    part = ".attentions.1" if deep else ""
    style = f"up_blocks.{up}{part}."
    layout = (f"down_blocks.{down}{part}.",) + (() if deep else ("mid_block.",))

    def role(name: str) -> Role:
        if name.startswith(style):
            return "style"
        return "layout" if name.startswith(layout) else "other"

    return role
