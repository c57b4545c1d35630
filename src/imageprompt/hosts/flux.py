"""flux: FluxTransformer2DModel, 19 double and 38 single blocks (files only, not run yet)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Site, SiteKind
from imageprompt.hosts.contract import FilesOnlyHost

PUBLISHED = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """Every block, double blocks first; image tokens are as wide as the states of T5."""
    double, heads = config["num_layers"], config["num_attention_heads"]
    for i in range(double + config["num_single_layers"]):
        kind: SiteKind = "joint double" if i < double else "joint single"
        block = (
            f"transformer_blocks.{i}" if i < double else f"single_transformer_blocks.{i - double}"
        )
        yield Site(
            name=f"{block}.attn",
            file_id=str(i),
            inner_dim=heads * config["attention_head_dim"],
            heads=heads,
            cross_attention_dim=config["joint_attention_dim"],
            role="other",
            kind=kind,
        )


HOST = FilesOnlyHost(
    name="flux",
    summary="FluxTransformer2DModel: FLUX.1 dev and schnell; files only, not run yet",
    denoiser_class="FluxTransformer2DModel",
    published=PUBLISHED,
    sites=_sites,
)
