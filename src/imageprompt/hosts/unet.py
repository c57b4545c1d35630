"""unet: every UNet with cross-attention in diffusers (SD1.5, SD2.x, SDXL, Kolors, motion, tiny)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from imageprompt.attention import (
    Kernel,
    decoupled_attention,
    fused_kernel,
    merge_heads,
    split_heads,
)
from imageprompt.errors import AttachError
from imageprompt.hosts.text_cache import TextCache
from imageprompt.spec import HostSpec, Role, Site

if TYPE_CHECKING:
    from imageprompt.carrier import Carrier

_SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "sd15": _SD | {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": _SD
    | {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": _SDXL,
    "kolors": _SDXL | {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"},
}
"""The parts of the published configs that decide the sites."""


class UNetHost:
    """Sites are the `attn2` layers; their file id is their place among `attn_processors`."""

    name = "unet"
    summary = "UNet2DConditionModel and UNetMotionModel: SD1.5, SD2.x, SDXL, Kolors, tiny"
    pipeline_attribute = "unet"

    def claims(self, denoiser: object) -> bool:
        from diffusers import UNet2DConditionModel, UNetMotionModel

        return isinstance(denoiser, UNet2DConditionModel | UNetMotionModel)

    def describe(self, denoiser: nn.Module) -> HostSpec:
        layers = list(_attention_layers(denoiser))
        cross = [
            (name, file_id, layer) for name, file_id, layer in layers if _takes_text(name, layer)
        ]
        if not cross:
            raise AttachError(
                f"a {type(denoiser).__name__} without cross-attention",
                rule="image tokens enter where text does",
                remedy="Use a text-to-image base.",
            )
        roles = _roles([name for name, _, _ in cross])
        sites = tuple(
            Site(
                name=name,
                file_id=str(file_id),
                width=layer.inner_dim,
                heads=layer.heads,
                text_width=layer.cross_attention_dim,
                role=roles(name),
            )
            for name, file_id, layer in cross
        )
        return HostSpec(family=_family(denoiser, sites), sites=sites)

    def families(self, text_width: int | None = None) -> Iterator[HostSpec]:
        for family, config in FAMILIES.items():
            if text_width in (None, config["cross_attention_dim"]):
                yield _family_spec(family)

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        layer: Any = denoiser.get_submodule(name)
        return layer.to_k.weight, layer.to_v.weight

    def install(
        self, denoiser: nn.Module, spec: HostSpec, carrier: Carrier
    ) -> list[tuple[Any, Any]]:
        layers: list[Any] = [denoiser.get_submodule(site.name) for site in spec.sites]
        for site, layer in zip(spec.sites, layers, strict=True):
            _check_replaceable(site, layer)
        before = [(layer, layer.processor) for layer in layers]
        for index, (layer, processor) in enumerate(before):
            layer.processor = SiteProcessor(carrier, index, processor)
        return before

    def intact(self, installed: list[tuple[Any, Any]]) -> bool:
        return all(type(layer.processor) is SiteProcessor for layer, _ in installed)

    def remove(self, installed: list[tuple[Any, Any]]) -> None:
        for layer, processor in installed:
            if type(layer.processor) is SiteProcessor:  # else the user has put another there
                layer.processor = processor


class SiteProcessor:
    """The attention processor of one site: text attention as before, plus the image terms.

    Not a module, so nothing of ours ever enters the denoiser's state dict. With no image prompt in
    use it hands over to the processor that was there.
    """

    def __init__(self, carrier: Carrier, index: int, original: Any) -> None:
        self.carrier, self.index, self.original = carrier, index, original
        self._fused = not _is_plain_processor(original)
        self._text = TextCache()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not self.carrier.in_use or encoder_hidden_states is None:
            plain: Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return plain
        residual = x = hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)

        q = split_heads(attn.to_q(x), attn.heads)
        k, v = self._text.pair(attn, encoder_hidden_states, self.carrier.run)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        mask = _additive_mask(attn, attention_mask, encoder_hidden_states)
        images = self.carrier.terms(self.index, q)
        kernel = fused_kernel if self._fused else _plain_kernel(attn)
        x = decoupled_attention(q, k, v, images, mask=mask, kernel=kernel)

        x = attn.to_out[1](attn.to_out[0](merge_heads(x)))
        if residual.ndim == 4:
            x = x.transpose(-1, -2).reshape(residual.shape)
        if attn.residual_connection:
            x = x + residual
        if attn.rescale_output_factor != 1:  # dividing by 1 changes no bit, so it is left out
            x = x / attn.rescale_output_factor
        return cast(Tensor, x)


def _plain_kernel(attn: Any) -> Kernel:
    """The attention of diffusers' AttnProcessor, so that scale 0 equals it to the bit too."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        flat_mask = None if mask is None else mask.flatten(0, 1)
        weights = attn.get_attention_scores(q.flatten(0, 1), k.flatten(0, 1), flat_mask)
        return torch.bmm(weights, v.flatten(0, 1)).view(q.shape)

    return kernel


def _additive_mask(attn: Any, mask: Tensor | None, text: Tensor) -> Tensor | None:
    """The text's attention mask as [B, H, 1 or Q, T]; it covers the text tokens only."""
    if mask is None:
        return None
    batch, length = text.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, length, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


def _is_plain_processor(processor: Any) -> bool:
    from diffusers.models.attention_processor import AttnProcessor

    return type(processor) is AttnProcessor


def _check_replaceable(site: Site, layer: Any) -> None:
    """Only processors whose arithmetic we reproduce may be replaced. Raises AttachError."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    processor = layer.processor
    if type(processor) is not AttnProcessor2_0 and not _is_plain_processor(processor):
        raise AttachError(
            f"attention processor {type(processor).__name__} at {site.name}",
            rule="an adapter replaces only AttnProcessor2_0 and AttnProcessor",
            remedy="Unload other adapters (pipe.unload_ip_adapter()), undo fused or sliced "
            "attention, or call unet.set_attn_processor(AttnProcessor2_0()).",
        )
    if layer.added_kv_proj_dim is not None:
        raise AttachError(
            f"{site.name} with added key/value projections",
            rule="this attention layout is not described",
            remedy="Use an SD1.5, SD2.x, SDXL or Kolors base.",
        )


def _attention_layers(denoiser: nn.Module) -> Any:
    """(name, file id, layer) in the order of `attn_processors`; motion modules do not count."""
    file_id = 0
    for name in denoiser.attn_processors:  # type: ignore[union-attr]
        if "motion_modules" not in name:
            layer_name = name.removesuffix(".processor")
            yield layer_name, file_id, denoiser.get_submodule(layer_name)
            file_id += 1


def _takes_text(name: str, layer: Any) -> bool:
    return name.endswith("attn2") and layer.is_cross_attention


def _roles(names: list[str]) -> Any:
    """Style is the first up block, layout the last down block with text (InstantStyle).

    In SDXL's deep transformers only the second attention of each counts; elsewhere whole blocks do,
    and the middle block belongs to the layout.
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


def _family(denoiser: nn.Module, sites: tuple[Site, ...]) -> str:
    """The published family whose sites these are, else "unet"."""
    config: Any = denoiser.config
    projected = getattr(config, "encoder_hid_dim_type", None) == "text_proj"
    signature = (len(sites), sites[0].text_width, projected)
    known = {
        (16, 768, False): "sd15",
        (16, 1024, False): "sd2",
        (70, 2048, False): "sdxl",
        (70, 2048, True): "kolors",
    }
    wide = max(site.width for site in sites) == 1280
    return known.get(signature, "unet") if wide else "unet"


@cache
def _family_spec(family: str) -> HostSpec:
    """Sites of a published base, from its config on the meta device: no weights are made."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**FAMILIES[family])
    return HOST.describe(denoiser)


HOST = UNetHost()
