"""pixart: PixArtTransformer2DModel, cross-attention in every block: PixArt-alpha and -Sigma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites

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


HOST = TransformerHost(
    name="pixart",
    summary="PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma",
    denoiser_class="PixArtTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer()},
    reader=LatentCalls,
)
