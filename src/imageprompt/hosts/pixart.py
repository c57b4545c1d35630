"""pixart: PixArtTransformer2DModel, cross-attention in every block: PixArt-alpha and -Sigma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Site
from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_attention_heads"]
    return block_sites(
        "transformer_blocks.{}.attn2",
        config["num_layers"],
        inner_dim=heads * config["attention_head_dim"],
        heads=heads,
        cross_attention_dim=config["cross_attention_dim"],
        kind="cross",
    )


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, and their mask."""
    states, mask, *_ = encode_prompt(pipe, captions, max_length, clean_caption=True)
    return states, {"encoder_attention_mask": mask}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """The second half of the channels is a variance that sampling does not read."""
    size: Conditions = {"resolution": None, "aspect_ratio": None}
    if denoiser.use_additional_conditions:
        height, width = (8 * side for side in latents.shape[-2:])
        rows = len(latents)
        size["resolution"] = latents.new_tensor([[height, width]]).repeat(rows, 1)
        size["aspect_ratio"] = latents.new_tensor([[height / width]]).repeat(rows, 1)
    prediction: Tensor = denoiser(
        latents,
        encoder_hidden_states=text,
        timestep=timesteps,
        added_cond_kwargs=size,
        return_dict=False,
        **added,
    )[0]
    return prediction[:, : latents.shape[1]]


HOST = TransformerHost(
    name="pixart",
    summary="PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma",
    denoiser_class="PixArtTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer()},
    reader=LatentCalls,
    training=Training(
        _encode_text,
        _predict,
        conditions=("encoder_attention_mask",),
        as_tokens=lambda denoiser, text: denoiser.caption_projection(text),
    ),
)
