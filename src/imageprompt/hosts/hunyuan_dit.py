"""hunyuan-dit: HunyuanDiT2DModel, cross-attention in every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Site
from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 40,
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "cross_attention_dim": 1024,
}
"""HunyuanDiT 1.2."""
_CONDITIONS = ("text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5")


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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """BERT's states, their mask, and T5's states and mask."""
    found = [
        encode_prompt(
            pipe, captions, max_length, dtype=pipe.transformer.dtype, text_encoder_index=index
        )
        for index in (0, 1)
    ]
    (states, _, mask, _), (states_t5, _, mask_t5, _) = found
    return states, dict(zip(_CONDITIONS, (mask, states_t5, mask_t5), strict=True))


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """The second half of the channels is a variance that sampling does not read.

    Sizes are those of sampling: an original of 1024 x 1024, not cropped.
    """
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    height, width = latents.shape[-2:]
    patch, rows = denoiser.config.patch_size, len(latents)
    grid = (height // patch, width // patch)
    sizes = latents.new_tensor([[1024, 1024, 8 * height, 8 * width, 0, 0]])
    prediction: Tensor = denoiser(
        latents,
        timesteps.to(latents.dtype),
        encoder_hidden_states=text,
        image_meta_size=sizes.repeat(rows, 1),
        style=timesteps.new_zeros(rows).long(),
        image_rotary_emb=get_2d_rotary_pos_embed(
            denoiser.inner_dim // denoiser.num_heads,
            get_resize_crop_region_for_grid(grid, 512 // 8 // patch),
            grid,
            device=latents.device,
            output_type="pt",
        ),
        return_dict=False,
        **added,
    )[0]
    return prediction[:, : latents.shape[1]]


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
    training=Training(
        _encode_text, _predict, conditions=_CONDITIONS, tokenizer="tokenizer_2", max_length=256
    ),
)
