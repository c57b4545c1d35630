"""auraflow: AuraFlowTransformer2DModel, joint blocks, and single blocks after them."""

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
    "num_mmdit_layers": 4,
    "num_single_dit_layers": 32,
    "attention_head_dim": 256,
    "num_attention_heads": 12,
    "caption_projection_dim": 3072,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """Every block, joint blocks first; text and its eight registers stand before the picture."""
    joint, heads = config["num_mmdit_layers"], config["num_attention_heads"]
    shape = {
        "inner_dim": heads * config["attention_head_dim"],
        "heads": heads,
        "cross_attention_dim": config["caption_projection_dim"],
    }
    yield from block_sites("joint_transformer_blocks.{}.attn", joint, kind="joint", **shape)
    yield from block_sites(
        "single_transformer_blocks.{}.attn",
        config["num_single_dit_layers"],
        kind="joint single",
        first_id=joint,
        **shape,
    )


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, zeros after the end of the text."""
    return encode_prompt(pipe, captions, max_length)[0], {}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Timesteps from 0 to 1."""
    prediction: Tensor = denoiser(
        latents,
        encoder_hidden_states=text,
        timestep=timesteps / 1000,
        return_dict=False,
    )[0]
    return prediction


HOST = TransformerHost(
    name="auraflow",
    summary="AuraFlowTransformer2DModel: AuraFlow",
    denoiser_class="AuraFlowTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint": Layer(), "joint single": Layer(rows="text first")},
    reader=LatentCalls,
    training=Training(
        _encode_text,
        _predict,
        as_tokens=lambda denoiser, text: denoiser.context_embedder(text),
    ),
)
