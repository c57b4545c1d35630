"""sana: SanaTransformer2DModel, cross-attention in every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites

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


HOST = TransformerHost(
    name="sana",
    summary="SanaTransformer2DModel: Sana",
    denoiser_class="SanaTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer()},
    reader=LatentCalls,
)
