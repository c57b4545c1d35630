"""sd3: SD3Transformer2DModel, joint blocks of SD3 and SD3.5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Site
from imageprompt.hosts._transformer import LatentCalls, Layer, TransformerHost
from imageprompt.hosts.contract import Conditions, Training

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "dual_attention_layers": (),
}
"""SD3.5 Large."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """The joint attention of every block; a block's second attention takes a file id as well."""
    heads, file_id = config["num_attention_heads"], 0
    for i in range(config["num_layers"]):
        yield Site(
            name=f"transformer_blocks.{i}.attn",
            file_id=str(file_id),
            inner_dim=heads * config["attention_head_dim"],
            heads=heads,
            cross_attention_dim=config["caption_projection_dim"],
            role="other",
            kind="joint",
        )
        file_id += 2 if i in config["dual_attention_layers"] else 1


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """The states of both CLIPs side by side, those of T5 after them; both CLIPs' pooled states."""
    from imageprompt.hosts._training import encode_prompt

    encoded = encode_prompt(pipe, captions, max_length)
    return encoded[0], {"pooled_projections": encoded[2]}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=latents,
        timestep=timesteps,
        encoder_hidden_states=text,
        return_dict=False,
        **added,
    )[0]
    return prediction


def _as_tokens(denoiser: Any, text: Tensor) -> Tensor:
    """Every block normalises the embedded text before it reads it."""
    from torch.nn import functional as F

    embedded = denoiser.context_embedder(text)
    return F.layer_norm(embedded, embedded.shape[-1:])


HOST = TransformerHost(
    name="sd3",
    summary="SD3Transformer2DModel: SD3 and SD3.5",
    denoiser_class="SD3Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint": Layer(heads_first=True, own_keys=True)},
    reader=lambda config: LatentCalls(config, timestep=(3, "timestep")),
    training=Training(
        _encode_text,
        _predict,
        conditions=("pooled_projections",),
        tokenizer="tokenizer_3",
        clip="tokenizer",
        as_tokens=_as_tokens,
    ),
)
