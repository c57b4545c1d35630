"""hidream: HiDreamImageTransformer2DModel, double and single blocks, the picture first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument, linear_mu

if TYPE_CHECKING:
    from torch import Tensor

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


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, the pooled ones of two CLIPs, and those of Llama's layers, [n, layers, l, d]."""
    t5, _, llama, _, pooled, _ = encode_prompt(pipe, captions, max_length)
    return t5, {"pooled_embeds": pooled, "encoder_hidden_states_llama3": llama.transpose(0, 1)}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Sampling takes the negative of the output."""
    prediction: Tensor = denoiser(
        hidden_states=latents,
        timesteps=timesteps,
        encoder_hidden_states_t5=text,
        encoder_hidden_states_llama3=added["encoder_hidden_states_llama3"].transpose(0, 1),
        pooled_embeds=added["pooled_embeds"],
        return_dict=False,
    )[0]
    return -prediction


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
    training=Training(
        _encode_text,
        _predict,
        conditions=("pooled_embeds", "encoder_hidden_states_llama3"),
        tokenizer="tokenizer_3",
        mu=lambda denoiser, _, positions: linear_mu(denoiser, {}, denoiser.max_seq),
        as_tokens=lambda denoiser, text: denoiser.caption_projection[-1](text),
    ),
)
