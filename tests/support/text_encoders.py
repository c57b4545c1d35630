"""Tiny tokenizers and text encoders of pipelines of transformers, with random weights.

Widths are those of transformers_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from tiny_stack import make_tokenizer
from transformers_table import TEXT

_SHAPE = {"intermediate_size": 32, "num_attention_heads": 2, "hidden_size": TEXT}
_CAUSAL = {**_SHAPE, "num_key_value_heads": 1, "head_dim": 16}
_CHAT = "{% for one in messages %}user : {{ one['content'] }} . {% endfor %}assistant :"


@cache
def words(*, start: bool = False, end: bool = False, side: str = "right") -> Any:
    """A tokenizer of words, with a token before or after the text; the padding's side."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<unk>", "<s>", "</s>", "a", "red", "blue", "star", "ring", "user", ":", "."]
    inner = Tokenizer(models.WordLevel({one: i for i, one in enumerate(known)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    single = " ".join(["<s>"] * start + ["$A"] + ["</s>"] * end)
    inner.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side=side,
        model_max_length=64,
    )
    made.chat_template = _CHAT
    return made


def _build(name: str, config: str, seed: int = 0, **options: Any) -> Any:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind: Any = getattr(transformers, name)
        made = kind(getattr(transformers, config)(**options))
    for weight in made.parameters():
        if weight.ndim == 1:
            weight.data += torch.linspace(-0.2, 0.2, len(weight))
    return made.eval()


def t5(tokenizer: str = "tokenizer", encoder: str = "text_encoder") -> dict[str, Any]:
    shape = {"d_model": TEXT, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return {
        tokenizer: words(end=True),
        encoder: _build("T5EncoderModel", "T5Config", vocab_size=16, **shape),
    }


def clip(suffix: str = "", width: int = TEXT, *, projected: bool = True, seed: int = 1) -> Any:
    tokenizer = make_tokenizer()
    return {
        f"tokenizer{suffix}": tokenizer,
        f"text_encoder{suffix}": _build(
            "CLIPTextModelWithProjection" if projected else "CLIPTextModel",
            "CLIPTextConfig",
            seed,
            **{**_SHAPE, "hidden_size": width},
            num_hidden_layers=2,
            projection_dim=width,
            max_position_embeddings=16,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    }


def causal(
    name: str, config: str, tokenizer: Any, suffix: str = "", layers: int = 2, **options: Any
) -> dict[str, Any]:
    """A language model that reads the text from left to right."""
    shape = {**_CAUSAL, "num_hidden_layers": layers, "vocab_size": 16, "pad_token_id": 0}
    return {
        f"tokenizer{suffix}": tokenizer,
        f"text_encoder{suffix}": _build(name, config, **{**shape, **options}),
    }


def flux() -> dict[str, Any]:
    return clip(projected=False) | t5("tokenizer_2", "text_encoder_2")


def sd3() -> dict[str, Any]:
    half = TEXT // 2
    return clip(width=half) | clip("_2", half, seed=2) | t5("tokenizer_3", "text_encoder_3")


def hunyuan() -> dict[str, Any]:
    bert = _build(
        "BertModel", "BertConfig", **_SHAPE, num_hidden_layers=1, vocab_size=16,
        max_position_embeddings=77,
    )  # fmt: skip
    parts = t5("tokenizer_2", "text_encoder_2")
    return parts | {"tokenizer": words(start=True, end=True), "text_encoder": bert}


def hidream() -> dict[str, Any]:
    half = TEXT // 2
    llama = causal(
        "LlamaForCausalLM", "LlamaConfig", words(start=True), "_4", attn_implementation="eager"
    )
    return clip(width=half) | clip("_2", half, seed=2) | t5("tokenizer_3", "text_encoder_3") | llama


def qwen(layers: int = 2, width: int = TEXT) -> dict[str, Any]:
    return causal("Qwen3ForCausalLM", "Qwen3Config", words(), layers=layers, hidden_size=width)


def gemma() -> dict[str, Any]:
    return causal("Gemma2Model", "Gemma2Config", words(start=True))


def glm() -> dict[str, Any]:
    return causal("GlmModel", "GlmConfig", words(start=True, side="left"))


def umt5() -> dict[str, Any]:
    shape = {"d_model": TEXT, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return {
        "tokenizer": words(end=True),
        "text_encoder": _build("UMT5EncoderModel", "UMT5Config", vocab_size=16, **shape),
    }


# ── the table ───────────────────────────────────────────────────────────────────────────────────

LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class Text:
    """Tiny text encoders of a pipeline, and what its call needs to have a negative side."""

    parts: Any
    call: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    length: int | None = LENGTH
    guidance: float = 4.0
    order: str = "np"
    """Rows that one call of the denoiser reads; two words where each side has its own call."""


START = 36
"""Tokens of Qwen-Image's template before a caption, of the tiny tokenizer."""
TRUE = {"true_cfg_scale": 2.0, "negative_prompt": ["", ""]}
TABLE = {
    "flux": Text(parts=flux, call=TRUE, guidance=2.5, order="p n", length=20),
    "chroma": Text(parts=t5, order="p n"),
    "bria": Text(parts=t5),
    "sd3": Text(parts=sd3, length=20),
    "pixart": Text(parts=t5),
    "hunyuan-dit": Text(parts=hunyuan, config={"text_len": 77, "text_len_t5": 256}, length=None),
    "sana": Text(parts=gemma),
    "auraflow": Text(parts=t5),
    "cogview4": Text(parts=glm, order="p n", length=16),
    "wan": Text(parts=umt5, order="p n", length=None),
    "qwen-image": Text(
        parts=qwen,
        call=TRUE,
        order="p n",
        attributes={"prompt_template_encode_start_idx": START},
    ),
    "z-image": Text(parts=qwen, order="pn"),
    "lumina2": Text(parts=gemma, order="p n", length=40),
    "flux2 klein": Text(
        parts=lambda: qwen(28, 16), config={"joint_attention_dim": 48}, order="p n"
    ),
    "hidream": Text(parts=hidream),
}
