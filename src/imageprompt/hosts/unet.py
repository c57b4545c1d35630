"""unet: every UNet with cross-attention in diffusers (SD1.5, SD2.x, SDXL, Kolors, motion, tiny)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from imageprompt.errors import AttachError
from imageprompt.spec import HostSpec, Role, Site

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        from imageprompt.attention import decoupled_attention, merge_heads, split_heads

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
        x = decoupled_attention(q, k, v, images, mask=mask, kernel=_kernel(self.original, attn))

        x = attn.to_out[1](attn.to_out[0](merge_heads(x)))
        if residual.ndim == 4:
            x = x.transpose(-1, -2).reshape(residual.shape)
        if attn.residual_connection:
            x = x + residual
        if attn.rescale_output_factor != 1:  # dividing by 1 changes no bit, so it is left out
            x = x / attn.rescale_output_factor
        return cast("Tensor", x)


class TextCache:
    """K and V of the text, kept over a denoise loop.

    Steps aside whenever keeping them could be wrong: gradients are on, the graph is being compiled,
    the text is another tensor or was written to, a new loop began, or to_k / to_v are more than
    plain linear layers (LoRA, quantised, hooked) or were changed.
    """

    def __init__(self) -> None:
        self._text: weakref.ref[Tensor] | None = None
        self._state: tuple[Any, ...] = ()
        self._pair: tuple[Tensor, Tensor] | None = None

    def pair(self, attn: Any, text: Tensor, run: int) -> tuple[Tensor, Tensor]:
        """K and V [B, H, T, D] of text states [B, T, C]."""
        import torch

        if torch.compiler.is_compiling():
            return _text_pair(attn, text)
        if not _cacheable(attn, text):
            self._forget()
            return _text_pair(attn, text)
        weights = (attn.to_k.weight, attn.to_v.weight)
        state = (run, text._version, *((w.data_ptr(), w._version) for w in weights))
        known = self._text is not None and self._text() is text and self._state == state
        if self._pair is None or not known:
            self._pair = _text_pair(attn, text)
            self._text = weakref.ref(text, lambda _: self._forget())
            self._state = state
        return self._pair

    def _forget(self) -> None:
        self._text, self._pair = None, None


def _text_pair(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    from imageprompt.attention import split_heads

    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    k = split_heads(attn.to_k(text), attn.heads)
    v = split_heads(attn.to_v(text), attn.heads)
    return (k if attn.norm_k is None else attn.norm_k(k)), v


def _cacheable(attn: Any, text: Tensor) -> bool:
    import torch

    return (
        not torch.is_grad_enabled()
        and not text.is_inference()  # writes to inference tensors leave no trace
        and not torch.is_autocast_enabled(text.device.type)
        and not attn.norm_cross
        and attn.norm_k is None
        and all(_is_plain(layer) for layer in (attn.to_k, attn.to_v))
    )


def _is_plain(layer: Any) -> bool:
    """A linear layer whose call is its weights and nothing else."""
    from torch import nn

    return (
        type(layer) is nn.Linear
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and "forward" not in layer.__dict__  # accelerate's offloading replaces it
    )


def _kernel(original: Any, attn: Any) -> Any:
    """The text attention of the processor that was there, so that scale 0 is it to the bit."""
    from diffusers.models.attention_processor import AttnProcessor

    from imageprompt.attention import fused_kernel

    if type(original) is not AttnProcessor:
        return fused_kernel

    def plain_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        flat_mask = None if mask is None else mask.flatten(0, 1)
        weights = attn.get_attention_scores(*(x.flatten(0, 1) for x in (q, k)), flat_mask)
        return (weights @ v.flatten(0, 1)).unflatten(0, q.shape[:2])  # type: ignore[no-any-return]

    return plain_kernel


def _additive_mask(attn: Any, mask: Tensor | None, text: Tensor) -> Tensor | None:
    """The text's attention mask as [B, H, 1 or Q, T]; it covers the text tokens only."""
    if mask is None:
        return None
    batch, length = text.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, length, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


def _check_replaceable(site: Site, layer: Any) -> None:
    """Only processors whose arithmetic we reproduce may be replaced. Raises AttachError."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    kind = type(layer.processor)
    if kind not in (AttnProcessor, AttnProcessor2_0):
        raise AttachError(
            f"attention processor {kind.__name__} at {site.name}",
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
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**FAMILIES[family])
    return HOST.describe(denoiser)


HOST = UNetHost()
