"""flux: FluxTransformer2DModel, double and single blocks: FLUX.1 dev, schnell, Kontext, Fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Arguments, KeywordArguments, Site, SiteKind
from imageprompt.hosts._transformer import Layer, PackedCalls, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument, with_argument

if TYPE_CHECKING:
    from torch import Tensor

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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, and CLIP's pooled state."""
    from imageprompt.hosts._training import encode_prompt

    states, pooled, _ = encode_prompt(pipe, captions, max_length)
    return states, {"pooled_projections": pooled}


def predict_packed(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """FLUX and its relatives; timesteps from 0 to 1."""
    from imageprompt.hosts._training import grid_ids, pack, unpack

    guided = denoiser.config.get("guidance_embeds", False)
    rows = denoiser(
        hidden_states=pack(latents),
        timestep=timesteps / 1000,
        encoder_hidden_states=text,
        txt_ids=text.new_zeros(text.shape[1], 3),
        img_ids=grid_ids(latents),
        return_dict=False,
        **({"guidance": timesteps.new_full(timesteps.shape, guidance_scale)} if guided else {}),
        **added,
    )[0]
    return unpack(rows, latents)


TEXT, IDS, ATTENTION = (1, "encoder_hidden_states"), (5, "txt_ids"), (7, "joint_attention_kwargs")
MASK = "attention_mask"


def _append_text(
    args: Arguments, kwargs: KeywordArguments, tokens: Tensor, bias: Tensor | None
) -> tuple[Arguments, KeywordArguments]:
    """Tokens after those of T5, at the position of all text: (0, 0, 0).

    Raises AttachError for a call with an attention mask of its own.
    """
    import torch

    text, ids = argument(args, kwargs, *TEXT), argument(args, kwargs, *IDS)
    options = argument(args, kwargs, *ATTENTION) or {}
    if MASK in options:
        raise AttachError(
            f"a call with {ATTENTION[1]}={{{MASK!r}: ...}}",
            reason="the adapter makes the text longer than that mask",
            hint="Leave it out.",
        )
    args, kwargs = with_argument(args, kwargs, *TEXT, torch.cat((text, tokens), dim=1))
    more = ids.new_zeros(*ids.shape[:-2], tokens.shape[1], ids.shape[-1])
    args, kwargs = with_argument(args, kwargs, *IDS, torch.cat((ids, more), dim=-2))
    if bias is None:
        return args, kwargs
    return with_argument(args, kwargs, *ATTENTION, {**options, MASK: bias})


HOST = TransformerHost(
    name="flux",
    summary="FluxTransformer2DModel: FLUX.1 dev, schnell, Kontext, Fill and Control",
    denoiser_class="FluxTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=3, ids=4),
    training=Training(
        _encode_text,
        predict_packed,
        conditions=("pooled_projections",),
        tokenizer="tokenizer_2",
        packed=True,
    ),
    append_text=_append_text,
)
