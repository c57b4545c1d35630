"""wan: WanTransformer3DModel, cross-attention in every block: Wan 2.1, and 2.2 with its two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128}
"""Wan 14B."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    heads = config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    return block_sites(
        "blocks.{}.attn2",
        config["num_layers"],
        inner_dim=width,
        heads=heads,
        cross_attention_dim=width,
        kind="cross",
    )


def _read(args: Arguments, kwargs: KeywordArguments) -> Call:
    """Latents [B, C, frames, height, width]; a region mask has no frames, so there is no grid."""
    return Call(
        argument(args, kwargs, 0, "hidden_states"),
        argument(args, kwargs, 1, "timestep"),
        argument(args, kwargs, 2, "encoder_hidden_states"),
        (0, 0),
        separate=True,
    )


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, zeros after the end of the text."""
    return encode_prompt(pipe, captions, max_length)[0], {}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """A picture is a video of one frame."""
    prediction: Tensor = denoiser(
        hidden_states=latents.unsqueeze(2),
        timestep=timesteps,
        encoder_hidden_states=text,
        return_dict=False,
    )[0]
    return prediction.squeeze(2)


HOST = TransformerHost(
    name="wan",
    summary="WanTransformer3DModel: Wan 2.1 and 2.2",
    denoiser_class="WanTransformer3DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"cross": Layer()},
    reader=lambda config: _read,
    training=Training(
        _encode_text,
        _predict,
        as_tokens=lambda denoiser, text: denoiser.condition_embedder.text_embedder(text),
    ),
)
