"""flux: FluxTransformer2DModel, double and single blocks: FLUX.1 dev, schnell, Kontext, Fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site, SiteKind
from imageprompt.hosts._transformer import Layer, PackedCalls, TransformerHost, block_sites

PUBLISHED = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
}
LAYERS: Mapping[SiteKind, Layer] = {
    "joint double": Layer(block=True),
    "joint single": Layer(rows="text first", output="", rotated=True),
}


def sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """Every block, double blocks first; image tokens are as wide as the states of T5."""
    double, heads = config["num_layers"], config["num_attention_heads"]
    shape = {
        "inner_dim": heads * config["attention_head_dim"],
        "heads": heads,
        "cross_attention_dim": config["joint_attention_dim"],
    }
    yield from block_sites("transformer_blocks.{}.attn", double, kind="joint double", **shape)
    yield from block_sites(
        "single_transformer_blocks.{}.attn",
        config["num_single_layers"],
        kind="joint single",
        first_id=double,
        **shape,
    )


HOST = TransformerHost(
    name="flux",
    summary="FluxTransformer2DModel: FLUX.1 dev, schnell, Kontext, Fill and Control",
    denoiser_class="FluxTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=3, ids=4),
)
