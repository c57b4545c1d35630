"""cogview4: CogView4Transformer2DModel, blocks that join text and picture before attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Site
from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128}
"""CogView4-6B."""
MAX_LENGTH = 128
"""Tokens of a caption in training; sampling reads up to 1,024."""


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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """GLM's states, padded to one length.

    The denoiser reads padding like text, as much as the longest text of a batch needs: here it
    always is a text of all tokens, so a caption is what it would be beside that one.
    """
    length = max_length or MAX_LENGTH
    longest = " ".join(["a"] * length)
    return encode_prompt(pipe, [*captions, longest], length)[0][:-1], {}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Sizes are those of sampling: an original of the same size, not cropped."""
    height, width = (8 * side for side in latents.shape[-2:])
    size = latents.new_tensor([[height, width]]).repeat(len(latents), 1)
    prediction: Tensor = denoiser(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=timesteps,
        original_size=size,
        target_size=size,
        crop_coords=size.new_zeros(size.shape),
        return_dict=False,
    )[0]
    return prediction


def _mu(denoiser: Any, scheduler_config: Any, positions: int) -> float:
    """Grows with the square root of the positions."""
    stated = scheduler_config.get
    ratio = positions / stated("base_image_seq_len", 256)
    return float(ratio**0.5 * stated("max_shift", 0.75) + stated("base_shift", 0.25))


HOST = TransformerHost(
    name="cogview4",
    summary="CogView4Transformer2DModel: CogView4",
    denoiser_class="CogView4Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(heads_first=True, in_place=True, rows="text first")},
    reader=lambda config: LatentCalls(config, separate=True),
    training=Training(
        _encode_text,
        _predict,
        max_length=MAX_LENGTH,
        mu=_mu,
        as_tokens=lambda denoiser, text: denoiser.patch_embed.text_proj(text),
    ),
)
