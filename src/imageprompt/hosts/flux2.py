"""flux2: Flux2Transformer2DModel, double blocks, and single blocks with a fused projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Site
from imageprompt.hosts._training import chat_before, encode_prompt
from imageprompt.hosts._transformer import Layer, PackedCalls, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
}
"""FLUX.2 dev."""
STEPS = 50
"""Steps of sampling, which its shift depends on: those of a call that states none."""


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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """States of three layers of Mistral (dev) or Qwen (klein) side by side."""
    return encode_prompt(pipe, captions, max_length)[0], {}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Latents are 2 x 2 already (see data/latents.py), so a position is a row."""
    import torch

    (height, width), rows = latents.shape[-2:], len(latents)

    def ids(*counts: int) -> Tensor:
        axes = [torch.arange(count, device=latents.device) for count in counts]
        return torch.cartesian_prod(*axes).expand(rows, -1, -1)

    guided = denoiser.config.get("guidance_embeds", True)
    prediction: Tensor = denoiser(
        hidden_states=latents.flatten(2).transpose(1, 2),
        timestep=timesteps / 1000,
        guidance=timesteps.new_full(timesteps.shape, guidance_scale) if guided else None,
        encoder_hidden_states=text,
        txt_ids=ids(1, 1, 1, text.shape[1]),
        img_ids=ids(1, height, width, 1),
        return_dict=False,
    )[0]
    return prediction.transpose(1, 2).reshape(latents.shape)


def _reserved(pipe: Any) -> int:
    """Mistral's (dev) system message, or what Qwen (klein) reads before a caption."""
    tokenizer, system = pipe.tokenizer, getattr(pipe, "system_message", None)
    if system is None:
        return chat_before(tokenizer, add_generation_prompt=True, enable_thinking=False)
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    return chat_before(inner, {"role": "system", "content": system})


def _mu(denoiser: Any, scheduler_config: Any, positions: int) -> float:
    """The pipelines' fit: linear in the positions at 10 and at 200 steps, and between the two."""
    at_200 = 0.00016927 * positions + 0.45666666
    if positions > 4300:
        return at_200
    at_10 = 8.73809524e-05 * positions + 1.89833333
    return at_200 + (at_10 - at_200) * (200 - STEPS) / 190


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
    training=Training(
        _encode_text,
        _predict,
        reserved=_reserved,
        mu=_mu,
        as_tokens=lambda denoiser, text: denoiser.context_embedder(text),
    ),
)
