"""sana: SanaTransformer2DModel, cross-attention in every block."""

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
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
"""Sana 1.6B."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_cross_attention_heads"]
    return block_sites(
        "transformer_blocks.{}.attn2",
        config["num_layers"],
        inner_dim=heads * config["cross_attention_head_dim"],
        heads=heads,
        cross_attention_dim=config["cross_attention_dim"],
        kind="cross",
    )


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """Gemma's states, and their mask; as in sampling, no instruction goes before an empty text."""
    import inspect

    import torch

    default = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    found = [
        encode_prompt(pipe, [text], max_length, complex_human_instruction=default if text else None)
        for text in captions
    ]
    states, mask = (torch.cat([one[part] for one in found]) for part in (0, 1))
    return states, {"encoder_attention_mask": mask}


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
        encoder_hidden_states=text,
        timestep=timesteps * denoiser.config.timestep_scale,
        return_dict=False,
        **added,
    )[0]
    return prediction


def _as_tokens(denoiser: Any, text: Tensor) -> Tensor:
    tokens: Tensor = denoiser.caption_norm(denoiser.caption_projection(text))
    return tokens


HOST = TransformerHost(
    name="sana",
    summary="SanaTransformer2DModel: Sana",
    denoiser_class="SanaTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer()},
    reader=LatentCalls,
    training=Training(
        _encode_text,
        _predict,
        conditions=("encoder_attention_mask",),
        reserved=lambda pipe: 1,
        as_tokens=_as_tokens,
    ),
)
