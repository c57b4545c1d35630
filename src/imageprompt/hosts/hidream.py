"""hidream: HiDreamImageTransformer2DModel, double and single blocks, the picture first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import argument

PUBLISHED = {
    "num_layers": 16,
    "num_single_layers": 32,
    "attention_head_dim": 128,
    "num_attention_heads": 20,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    double, heads = config["num_layers"], config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    shape = {"inner_dim": width, "heads": heads, "cross_attention_dim": width}
    yield from block_sites("double_stream_blocks.{}.block.attn1", double, kind="joint", **shape)
    yield from block_sites(
        "single_stream_blocks.{}.block.attn1",
        config["num_single_layers"],
        kind="joint single",
        first_id=double,
        **shape,
    )


def _reader(config: Mapping[str, Any]) -> Any:
    patch = config.get("patch_size") or 2

    def read(args: Arguments, kwargs: KeywordArguments) -> Call:
        """Latents [B, C, height, width], or packed ones, whose padding leaves no grid."""
        sample = argument(args, kwargs, 0, "hidden_states")
        size = (0, 0)
        if sample.ndim == 4:
            size = (int(sample.shape[2]) // patch, int(sample.shape[3]) // patch)
        return Call(
            sample,
            argument(args, kwargs, 1, "timesteps"),
            argument(args, kwargs, 2, "encoder_hidden_states_t5"),
            size,
        )

    return read


HOST = TransformerHost(
    name="hidream",
    summary="HiDreamImageTransformer2DModel: HiDream-I1",
    denoiser_class="HiDreamImageTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={
        "joint": Layer(queries=("q_rms_norm",), output="to_out"),
        "joint single": Layer(queries=("q_rms_norm",), output="to_out", rows="picture first"),
    },
    reader=_reader,
)
