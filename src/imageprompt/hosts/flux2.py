"""flux2: Flux2Transformer2DModel, double blocks, and single blocks with a fused projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import Layer, PackedCalls, TransformerHost, block_sites

PUBLISHED = {
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
}
"""FLUX.2 dev."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """Every block, double blocks first; image tokens are as wide as the picture's states."""
    double, heads = config["num_layers"], config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    shape = {"inner_dim": width, "heads": heads, "cross_attention_dim": width}
    yield from block_sites("transformer_blocks.{}.attn", double, kind="joint", **shape)
    yield from block_sites(
        "single_transformer_blocks.{}.attn",
        config["num_single_layers"],
        kind="joint single",
        first_id=double,
        **shape,
    )


HOST = TransformerHost(
    name="flux2",
    summary="Flux2Transformer2DModel: FLUX.2 dev and klein",
    denoiser_class="Flux2Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={
        "joint": Layer(),
        "joint single": Layer(rows="text first", output="to_out"),
    },
    reader=lambda config: PackedCalls(timestep=2, ids=3),
)
