"""Calls of denoisers as named tensors: what a graph reads, and how a call is told in it.

Axes: batch, height, width, text (tokens), rows (packed latents of FLUX).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.exported.manifest import Axis, Port

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
_NEUTRAL = {"return_dict", "cross_attention_kwargs", "joint_attention_kwargs"}
_TIME_IDS = 6  # SDXL: original size, crop, target size


@dataclass(frozen=True)
class Input:
    """One tensor of a call: its name in the graph, where the call has it, and its shape."""

    name: str
    path: tuple[str | int, ...]
    """An argument, and the key or number inside it."""
    shape: tuple[Axis, ...]
    optional: bool = False
    """Zeros where a call leaves it out."""

    @property
    def port(self) -> Port:
        return Port(name=self.name, shape=self.shape)


@dataclass(frozen=True)
class Calls:
    """The calls of one denoiser."""

    kind: type
    """Its class."""
    config: Config
    controlnet: bool = False

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(_FAMILIES[self.kind.__name__](self.config, self.controlnet))

    @cached_property
    def _parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.kind.forward).parameters)[1:]  # type: ignore[attr-defined]

    def positions(self, sizes: Mapping[str, int], level: int) -> int:
        """Positions of the picture at a level, for the sizes of a call."""
        if "rows" in sizes:
            return sizes["rows"]
        patch = self.config.get("patch_size") or 1
        height, width = sizes["height"] // patch, sizes["width"] // patch
        for _ in range(level):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height * width

    # ── to tensors ──────────────────────────────────────────────────────────────────────────────

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a call, in float32. Raises OptionError for what the graph cannot do."""
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        self._check_known(given)
        found = {one.name: _look_up(given, one.path) for one in self.inputs}
        sizes = self._sizes(found)
        return {one.name: self._as_input(one, found[one.name], sizes) for one in self.inputs}

    def _check_known(self, given: Mapping[str, Any]) -> None:
        used = {one.path[0] for one in self.inputs}
        for name, value in given.items():
            if name in used or value is None:
                continue
            if name not in _NEUTRAL or (isinstance(value, Mapping) and not _is_neutral(value)):
                raise self._refusal(f"with {name}")

    def _refusal(self, what: str) -> OptionError:
        residuals = "residual" in what
        return OptionError(
            f"a call of an exported {self.kind.__name__} {what}",
            reason="its graph has no such input",
            hint="Export it with --controlnet."
            if residuals
            else "Do without, or generate without --runtime.",
        )

    def _sizes(self, found: Mapping[str, Any]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for one in self.inputs:
            value = found[one.name]
            if getattr(value, "ndim", -1) == len(one.shape):
                named = zip(one.shape, value.shape, strict=True)
                sizes |= {axis: size for axis, size in named if isinstance(axis, str)}
        return sizes

    def _as_input(self, one: Input, value: Any, sizes: Mapping[str, int]) -> Tensor:
        import torch

        shape = tuple(axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in one.shape)
        if value is None and one.optional:
            return torch.zeros(shape)
        if value is None:
            raise self._refusal(f"without {one.name}")
        tensor = torch.as_tensor(value, dtype=torch.float32)
        if tensor.ndim == len(shape) + 1 and one.name.endswith("_ids"):
            tensor = tensor[0]  # position ids of older pipelines have a row for each picture
        if one.shape == ("batch",):
            return tensor.reshape(-1).expand(sizes["batch"])
        fixed = [(a, size) for a, size in zip(one.shape, tensor.shape, strict=False)]
        if tensor.ndim != len(shape) or any(isinstance(a, int) and a != n for a, n in fixed):
            raise OptionError(
                f"{one.name} of shape {list(tensor.shape)}",
                reason=f"the exported graph reads {list(one.shape)}",
                hint="Use the base that was exported.",
            )
        return tensor

    # ── from tensors ────────────────────────────────────────────────────────────────────────────

    def run(self, denoiser: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Call a denoiser with these tensors."""
        kwargs: dict[str, Any] = {}
        for one in self.inputs:
            name, *inner = one.path
            if not inner:
                kwargs[str(name)] = tensors[one.name]
            elif isinstance(inner[0], int):
                kwargs.setdefault(str(name), []).append(tensors[one.name])
            else:
                kwargs.setdefault(str(name), {})[inner[0]] = tensors[one.name]
        out: Tensor = denoiser(**kwargs, return_dict=False)[0]
        return out

    def output(self, made: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """What the denoiser's own forward would return."""
        if kwargs.get("return_dict") is False:
            return (made,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        unet = self.kind.__name__ == "UNet2DConditionModel"
        return (UNet2DConditionOutput if unet else Transformer2DModelOutput)(sample=made)


def calls_of(denoiser: Any, *, controlnet: bool = False) -> Calls:
    """The calls of a denoiser. Raises OptionError for one that cannot be exported."""
    kind = type(denoiser)
    if kind.__name__ not in _FAMILIES:
        raise OptionError(
            f"export of a {kind.__name__}",
            reason="its calls are not described",
            hint=f"Can be exported: {', '.join(_FAMILIES)}.",
        )
    if controlnet and kind.__name__ != "UNet2DConditionModel":
        raise OptionError(
            f"--controlnet with a {kind.__name__}",
            reason="only the graphs of UNets read residuals",
            hint="Leave it out.",
        )
    return Calls(kind, dict(denoiser.config), controlnet)


def _look_up(given: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:
    value: Any = given
    for key in path:
        if isinstance(key, int):
            value = None if value is None or key >= len(value) else value[key]
        else:
            value = None if value is None else value.get(key)
    return value


def _is_neutral(options: Mapping[str, Any]) -> bool:
    """Do these options change nothing? diffusers passes the scale of LoRA here."""
    return all(value is None or (name == "scale" and value == 1) for name, value in options.items())


# ── families ────────────────────────────────────────────────────────────────────────────────────


def _unet(config: Config, controlnet: bool) -> list[Input]:
    width = config["cross_attention_dim"]
    if not isinstance(width, int) or config.get("encoder_hid_dim_type") is not None:
        raise OptionError(
            "export of this UNet",
            reason="it projects its text itself (Kolors), or has several widths of text",
            hint="Use an SD1.5, SD2.x or SDXL base.",
        )
    found = [
        Input("sample", ("sample",), ("batch", config["in_channels"], "height", "width")),
        Input("timestep", ("timestep",), ("batch",)),
        Input("encoder_hidden_states", ("encoder_hidden_states",), ("batch", "text", width)),
    ]
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= _TIME_IDS * config["addition_time_embed_dim"]
        added = "added_cond_kwargs"
        found += [
            Input("text_embeds", (added, "text_embeds"), ("batch", pooled)),
            Input("time_ids", (added, "time_ids"), ("batch", _TIME_IDS)),
        ]
    if config.get("time_cond_proj_dim") is not None:
        dim = config["time_cond_proj_dim"]
        found.append(Input("timestep_cond", ("timestep_cond",), ("batch", dim)))
    return [*found, *_residuals(config)] if controlnet else found


def _residuals(config: Config) -> list[Input]:
    """Those of a ControlNet: of every skip connection, in order, and of the middle."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    levels = [(widths[0], 0)]
    for number, width in enumerate(widths):
        count = layers if isinstance(layers, int) else layers[number]
        levels += [(width, number)] * count
        levels += [(width, number + 1)] if number + 1 < len(widths) else []
    down = "down_block_additional_residuals"
    found = [
        Input(f"down_residual_{i}", (down, i), _at(width, level), optional=True)
        for i, (width, level) in enumerate(levels)
    ]
    middle = _at(widths[-1], len(widths) - 1)
    path = ("mid_block_additional_residual",)
    return [*found, Input("mid_residual", path, middle, optional=True)]


def _at(width: int, level: int) -> tuple[Axis, ...]:
    suffix = f"_{level}" if level else ""
    return ("batch", width, f"height{suffix}", f"width{suffix}")


def _flux(config: Config, controlnet: bool) -> list[Input]:
    found = [
        Input("hidden_states", ("hidden_states",), ("batch", "rows", config["in_channels"])),
        Input("timestep", ("timestep",), ("batch",)),
        Input(
            "encoder_hidden_states",
            ("encoder_hidden_states",),
            ("batch", "text", config["joint_attention_dim"]),
        ),
        Input(
            "pooled_projections",
            ("pooled_projections",),
            ("batch", config["pooled_projection_dim"]),
        ),
        Input("img_ids", ("img_ids",), ("rows", 3)),
        Input("txt_ids", ("txt_ids",), ("text", 3)),
    ]
    return [*found, Input("guidance", ("guidance",), ("batch",))] if _guided(config) else found


def _guided(config: Config) -> bool:
    return bool(config.get("guidance_embeds"))


def _sd3(config: Config, controlnet: bool) -> list[Input]:
    return [
        Input(
            "hidden_states", ("hidden_states",), ("batch", config["in_channels"], "height", "width")
        ),
        Input("timestep", ("timestep",), ("batch",)),
        Input(
            "encoder_hidden_states",
            ("encoder_hidden_states",),
            ("batch", "text", config["joint_attention_dim"]),
        ),
        Input(
            "pooled_projections",
            ("pooled_projections",),
            ("batch", config["pooled_projection_dim"]),
        ),
    ]


_FAMILIES: Mapping[str, Callable[[Config, bool], list[Input]]] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
}
