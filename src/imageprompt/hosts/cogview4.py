"""cogview4: CogView4Transformer2DModel, blocks that join text and picture before attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites

PUBLISHED = {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128}
"""CogView4-6B."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    return block_sites(
        "transformer_blocks.{}.attn1",
        config["num_layers"],
        inner_dim=width,
        heads=heads,
        cross_attention_dim=width,
        kind="joint single",
    )


HOST = TransformerHost(
    name="cogview4",
    summary="CogView4Transformer2DModel: CogView4",
    denoiser_class="CogView4Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(heads_first=True, in_place=True, rows="text first")},
    reader=lambda config: LatentCalls(config, separate=True),
)
