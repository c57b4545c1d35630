"""qwen-image: QwenImageTransformer2DModel, double blocks: Qwen-Image and Qwen-Image-Edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import argument

PUBLISHED = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_attention_heads"]
    return block_sites(
        "transformer_blocks.{}.attn",
        config["num_layers"],
        inner_dim=heads * config["attention_head_dim"],
        heads=heads,
        cross_attention_dim=config["joint_attention_dim"],
        kind="joint",
    )


def _read(args: Arguments, kwargs: KeywordArguments) -> Call:
    """`img_shapes` lists (frames, height, width) of the picture, then of its references."""
    sample = argument(args, kwargs, 0, "hidden_states")
    shapes = argument(args, kwargs, 4, "img_shapes")
    first = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
    frames, height, width = map(int, first)
    count = frames * height * width
    return Call(
        sample,
        argument(args, kwargs, 3, "timestep"),
        argument(args, kwargs, 1, "encoder_hidden_states"),
        (height, width) if frames == 1 else (0, 0),
        int(sample.shape[1]) - count,
        separate=True,
    )


HOST = TransformerHost(
    name="qwen-image",
    summary="QwenImageTransformer2DModel: Qwen-Image and Qwen-Image-Edit",
    denoiser_class="QwenImageTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint": Layer()},
    reader=lambda config: _read,
)
