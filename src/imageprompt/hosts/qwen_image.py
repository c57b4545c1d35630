"""qwen-image: QwenImageTransformer2DModel, double blocks: Qwen-Image and Qwen-Image-Edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._training import encode_prompt, pack, pad_rows, unpack
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
}
MAX_LENGTH = 256
"""Tokens of a caption in training; sampling reads 1,024, which would be 7 MB a caption."""


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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """Qwen's states, padded to one length, and their mask."""
    rows = []
    for caption in captions:
        states, mask = encode_prompt(pipe, [caption], max_length)
        rows.append(states[0] if mask is None else states[0][mask[0].bool()])
    states, mask = pad_rows(rows, max_length or MAX_LENGTH)
    return states, {"encoder_hidden_states_mask": mask}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Padding that no caption of the batch needs is cut off."""
    mask = added["encoder_hidden_states_mask"]
    longest = int(mask.sum(1).max())
    guided = denoiser.config.get("guidance_embeds", False)
    rows = denoiser(
        hidden_states=pack(latents),
        timestep=timesteps / 1000,
        guidance=timesteps.new_full(timesteps.shape, guidance_scale) if guided else None,
        encoder_hidden_states=text[:, :longest],
        encoder_hidden_states_mask=None if bool(mask[:, :longest].all()) else mask[:, :longest],
        img_shapes=[[(1, latents.shape[-2] // 2, latents.shape[-1] // 2)]] * len(latents),
        return_dict=False,
    )[0]
    return unpack(rows, latents)


HOST = TransformerHost(
    name="qwen-image",
    summary="QwenImageTransformer2DModel: Qwen-Image and Qwen-Image-Edit",
    denoiser_class="QwenImageTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint": Layer()},
    reader=lambda config: _read,
    training=Training(
        _encode_text,
        _predict,
        conditions=("encoder_hidden_states_mask",),
        max_length=MAX_LENGTH,
        packed=True,
    ),
)
