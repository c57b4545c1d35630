"""hunyuan-dit: HunyuanDiT2DModel, cross-attention in every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites

PUBLISHED = {
    "num_layers": 40,
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "cross_attention_dim": 1024,
}
"""HunyuanDiT 1.2."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_attention_heads"]
    return block_sites(
        "blocks.{}.attn2",
        config["num_layers"],
        inner_dim=heads * config["attention_head_dim"],
        heads=heads,
        cross_attention_dim=config["cross_attention_dim"],
        kind="cross",
    )


HOST = TransformerHost(
    name="hunyuan-dit",
    summary="HunyuanDiT2DModel: Hunyuan-DiT",
    denoiser_class="HunyuanDiT2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer(heads_first=True)},
    reader=lambda config: LatentCalls(
        config, timestep=(1, "timestep"), text=(2, "encoder_hidden_states")
    ),
)
