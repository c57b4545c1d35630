"""unet: every UNet with cross-attention in diffusers (SD1.5, SD2.x, SDXL, Kolors, motion, tiny)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Arguments, Call, HostSpec, KeywordArguments, Shapes
from imageprompt.hosts import _unet_layers as layers
from imageprompt.hosts._unet_layers import Layer
from imageprompt.hosts.contract import Conditions, Training, argument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageprompt.attention.state import AttentionState

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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """States, and `text_embeds` [n, p] if the base has pooled text states (SDXL)."""
    from imageprompt.hosts._training import encode_prompt

    encoded = encode_prompt(pipe, captions, max_length)
    pooled = encoded[2] if len(encoded) > 2 else None
    return encoded[0], {} if pooled is None else {"text_embeds": pooled}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    prediction: Tensor = denoiser(
        latents,
        timesteps,
        encoder_hidden_states=text,
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]
    return prediction


class UNetHost:
    """Sites are the `attn2` layers; their file id is their position among `attn_processors`."""

    name = "unet"
    summary = "UNet2DConditionModel and UNetMotionModel: SD1.5, SD2.x, SDXL, Kolors, tiny"
    attachable = True
    training = Training(_encode_text, _predict, conditions=("text_embeds",))

    def claims(self, denoiser: object) -> bool:
        from diffusers import UNet2DConditionModel, UNetMotionModel

        return isinstance(denoiser, UNet2DConditionModel | UNetMotionModel)

    def describe(self, denoiser: nn.Module) -> HostSpec:
        config: Any = denoiser.config
        spec = layers.host_spec(
            list(_live_layers(denoiser)), projects_text=_projects_text(config), config=config
        )
        if spec is None:
            raise AttachError(
                f"a {type(denoiser).__name__} without cross-attention of its own",
                reason="image tokens enter where text does; bases without text, or that append it "
                "to their own positions (DeepFloyd IF, Kandinsky 2), have no such layer",
                hint="Use an SD1.5, SD2.x, SDXL or Kolors base.",
            )
        return spec

    def from_config(self, config: Mapping[str, Any]) -> HostSpec | None:
        class_name = config.get("_class_name", "UNet2DConditionModel")
        if class_name not in ("UNet2DConditionModel", "UNetMotionModel"):
            return None
        found = layers.from_config(config) if class_name == "UNet2DConditionModel" else None
        if found is None:
            return self.describe(_on_meta_device(class_name, config))
        return layers.host_spec(found, projects_text=_projects_text(config), config=config)

    def from_weights(self, shapes: Shapes) -> HostSpec | None:
        found = layers.from_weights(shapes)
        projects = "encoder_hid_proj.weight" in shapes
        return None if found is None else layers.host_spec(found, projects_text=projects)

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        for family, config in FAMILIES.items():
            if cross_attention_dim in (None, config["cross_attention_dim"]):
                yield _family_spec(family)

    def published(self) -> list[HostSpec]:
        return list(self.families())

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        layer: Any = denoiser.get_submodule(name)
        return layer.to_k.weight, layer.to_v.weight

    def joint_text_layers(self, denoiser: nn.Module, name: str) -> None:
        return None

    def linears(self, denoiser: nn.Module, name: str) -> dict[str, nn.Module]:
        layer: Any = denoiser.get_submodule(name)
        if layer.fused_projections:
            raise AttachError(
                f"{name} with fused projections",
                reason="LoRA needs q, k and v as separate layers",
                hint="Call pipe.unfuse_qkv_projections() first.",
            )
        return {"q": layer.to_q, "k": layer.to_k, "v": layer.to_v, "out": layer.to_out[0]}

    def install(
        self, denoiser: Any, spec: HostSpec, state: AttentionState
    ) -> list[tuple[Any, Any]]:
        from imageprompt.hosts._unet_processor import SiteProcessor, check_replaceable

        attention: list[Any] = [denoiser.get_submodule(site.name) for site in spec.sites]
        for site, layer in zip(spec.sites, attention, strict=True):
            check_replaceable(site, layer)
        originals = [(layer, layer.processor) for layer in attention]
        for index, (layer, processor) in enumerate(originals):
            layer.processor = SiteProcessor(state, index, processor)
        state.read = _read_call
        state.readers = [layer.processor for layer in attention]
        state.levels = tuple(_level(site.name, len(denoiser.down_blocks)) for site in spec.sites)
        state.parts = _parts(denoiser, [site.name for site in spec.sites])
        return originals

    def intact(self, installed: list[tuple[Any, Any]]) -> bool:
        from imageprompt.hosts._unet_processor import SiteProcessor

        return all(type(layer.processor) is SiteProcessor for layer, _ in installed)

    def remove(self, installed: list[tuple[Any, Any]]) -> None:
        from imageprompt.hosts._unet_processor import SiteProcessor

        for layer, processor in installed:
            if type(layer.processor) is SiteProcessor:  # else the user has set another one
                layer.processor = processor


def _read_call(args: Arguments, kwargs: KeywordArguments) -> Call:
    """A call of a UNet: sample [B, C, (frames,) height, width], timestep, text states."""
    sample = argument(args, kwargs, 0, "sample")
    return Call(
        sample,
        argument(args, kwargs, 1, "timestep"),
        argument(args, kwargs, 2, "encoder_hidden_states"),
        (int(sample.shape[-2]), int(sample.shape[-1])),
    )


def _live_layers(denoiser: Any) -> Iterator[Layer]:
    """The layers of a model in the order of `attn_processors`.

    Motion modules and GLIGEN's fusers do not count: they extend a base that has its ids already.
    """
    for processor in denoiser.attn_processors:
        if "motion_modules" not in processor and ".fuser." not in processor:
            name = processor.removesuffix(".processor")
            layer = denoiser.get_submodule(name)
            cross = name.endswith("attn2") and layer.is_cross_attention
            yield Layer(name, layer.inner_dim, layer.heads, layer.cross_attention_dim, cross)


def _level(name: str, levels: int) -> int:
    """The level of a site: 0 has the size of the latents, each further one half of it."""
    part, number, *_ = name.split(".")
    if part == "mid_block":
        return levels - 1
    return int(number) if part == "down_blocks" else levels - 1 - int(number)


def _parts(denoiser: nn.Module, names: list[str]) -> list[nn.Module]:
    """The modules between a denoiser and the sites of these names, the sites included."""
    paths = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
    return [denoiser.get_submodule(path) for path in sorted(paths)]


def _projects_text(config: Any) -> bool:
    """Does the denoiser project its text states, as that of Kolors does?"""
    return bool(config.get("encoder_hid_dim_type") == "text_proj")


def _on_meta_device(class_name: str, config: Mapping[str, Any]) -> Any:
    """A model with this config, without weights. Raises AttachError for an invalid config."""
    import diffusers
    import torch

    try:
        with torch.device("meta"):
            return getattr(diffusers, class_name).from_config(dict(config))
    except Exception as error:  # an invalid config makes diffusers fail in any way
        raise AttachError(
            f"a {class_name} config",
            reason=f"diffusers cannot build a model from it ({' '.join(str(error).split())})",
            hint="Give the config.json of a base.",
        ) from None


@cache
def _family_spec(family: str) -> HostSpec:
    spec = HOST.from_config(FAMILIES[family])
    assert spec is not None
    return spec


HOST = UNetHost()
