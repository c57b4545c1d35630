"""Tiny transformers of every host, with random weights, and the inputs of one call of each.

Nothing here imports imageprompt, so references are independent of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from copies import Template

HEADS, DIM, TEXT = 2, 16, 32
SIDE = 4  # positions of the picture on a side


@dataclass(frozen=True, kw_only=True)
class TransformerCase:
    """One tiny transformer. `picture(output)` is its prediction [B, ...]."""

    host: str
    model: str
    config: dict[str, Any]
    call: Callable[[int, Callable[..., Tensor]], dict[str, Any]]
    sites: int
    order: tuple[str, ...] = ("negative", "positive")
    """The branches that a batch stacks; one where each has a call of its own."""
    grid: bool = True
    layers: tuple[tuple[str, str, str, int], ...]
    """One site of each kind: attention layer, the module in it that returns its queries, the one
    whose input gets the image term ("": the layer's output), and the picture's first row there."""
    heads_first: bool = False
    token_width: int = HEADS * DIM

    @property
    def positions(self) -> int:
        """Rows of the picture."""
        return SIDE * SIDE if self.grid else 2 * SIDE * SIDE

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """The same weights for the same seed; nothing is zero that could hide a mistake.

        Built once, then copied.
        """
        if torch.empty(0).device.type != "cpu":  # as a test's `with torch.device("meta")` wants it
            return self._built(seed, dtype)
        key = (id(self), seed, dtype)
        if key not in _templates:
            _templates[key] = self, Template(self._built(seed, dtype))
        return _templates[key][1].copy()

    def small(self) -> TransformerCase:
        """With one block of each kind, for what compiles it."""
        kinds = self.config.keys() & {"num_layers", "num_single_layers"}
        return replace(self, config=self.config | dict.fromkeys(kinds, 1))

    def _built(self, seed: int, dtype: torch.dtype) -> Any:
        import diffusers

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Chroma, inside diffusers
            torch.manual_seed(seed)
            model: nn.Module = getattr(diffusers, self.model)(**self.config)
        generator = torch.Generator().manual_seed(1000 + seed)
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim == 1 or not weight.detach().any():
                weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.1)
        return (model if dtype is torch.float32 else model.to(dtype)).eval()

    def inputs(self, batch: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        """Keyword arguments of one call; every row differs, in latents and text."""
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        return self.call(batch, noise)

    def read(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The prediction, its rows in dimension 0."""
        with torch.no_grad():
            output = model(**inputs, return_dict=False)[0]
        return torch.stack(list(output)) if isinstance(output, list) else output


_templates: dict[tuple[int, int, torch.dtype], tuple[TransformerCase, Template]] = {}


def _ids(columns: int = 3) -> Tensor:
    rows = [[0, row, column, 0][:columns] for row in range(SIDE) for column in range(SIDE)]
    return torch.tensor(rows).float()


def _packed(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, SIDE * SIDE, 4),
        "encoder_hidden_states": noise(batch, 5, TEXT),
        "timestep": torch.full((batch,), 0.7),
        "img_ids": _ids(),
        "txt_ids": torch.zeros(5, 3),
    }


def _pooled(batch: int, noise: Any) -> dict[str, Any]:
    return {**_packed(batch, noise), "pooled_projections": noise(batch, 32)}


def _chroma(batch: int, noise: Any) -> dict[str, Any]:
    inputs = _packed(batch, noise)
    return {**inputs, "attention_mask": torch.ones(batch, SIDE * SIDE + 5)}


def _latents(channels: int, patch: int, width: int = TEXT, **more: Any) -> Any:
    def call(batch: int, noise: Any) -> dict[str, Any]:
        inputs = {
            "hidden_states": noise(batch, channels, SIDE * patch, SIDE * patch),
            "encoder_hidden_states": noise(batch, 5, width),
            "timestep": torch.full((batch,), 700.0),
        }
        return inputs | {name: make(batch, noise) for name, make in more.items()}

    return call


def _qwen(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, SIDE * SIDE, 4),
        "encoder_hidden_states": noise(batch, 5, TEXT),
        "encoder_hidden_states_mask": None,
        "timestep": torch.full((batch,), 0.7),
        "img_shapes": [[(1, SIDE, SIDE)]] * batch,
    }


def _z_image(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "x": list(noise(batch, 4, 1, SIDE * 2, SIDE * 2)),
        "t": torch.full((batch,), 0.3),
        "cap_feats": [noise(5 + row, TEXT) for row in range(batch)],
    }


def _lumina2(batch: int, noise: Any) -> dict[str, Any]:
    mask = torch.ones(batch, 5, dtype=torch.long)
    mask[:, 3:] = 0  # a text of three tokens
    inputs = {**_latents(4, 2)(batch, noise), "encoder_attention_mask": mask}
    return inputs | {"timestep": torch.full((batch,), 0.3)}


def _flux2(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, SIDE * SIDE, 4),
        "encoder_hidden_states": noise(batch, 5, TEXT),
        "timestep": torch.full((batch,), 0.7),
        "img_ids": _ids(4)[None].expand(batch, -1, -1),
        "txt_ids": torch.zeros(batch, 5, 4),
        "guidance": torch.ones(batch),
    }


def _hunyuan(batch: int, noise: Any) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    rope = get_2d_rotary_pos_embed(DIM, ((0, 0), (SIDE, SIDE)), (SIDE, SIDE), output_type="pt")
    return {
        "hidden_states": noise(batch, 4, SIDE * 2, SIDE * 2),
        "timestep": torch.full((batch,), 700.0),
        "encoder_hidden_states": noise(batch, 5, TEXT),
        "text_embedding_mask": torch.ones(batch, 5),
        "encoder_hidden_states_t5": noise(batch, 6, TEXT),
        "text_embedding_mask_t5": torch.ones(batch, 6),
        "image_meta_size": torch.full((batch, 6), 8.0),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": rope,
    }


def _cogview4(batch: int, noise: Any) -> dict[str, Any]:
    size = torch.full((batch, 2), 64.0)
    return {
        **_latents(4, 2)(batch, noise),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch, 2),
    }


def _hidream(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, SIDE * 2, SIDE * 2),
        "timesteps": torch.full((batch,), 700.0),
        "encoder_hidden_states_t5": noise(batch, 5, TEXT),
        "encoder_hidden_states_llama3": noise(2, batch, 5, TEXT),
        "pooled_embeds": noise(batch, 32),
    }


def _wan(batch: int, noise: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, SIDE * 2, SIDE * 2),
        "timestep": torch.full((batch,), 700),
        "encoder_hidden_states": noise(batch, 5, TEXT),
    }


_FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": DIM,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 4, 8),
}
_SEPARATE = ("positive",)

CASES: dict[str, TransformerCase] = {
    case.host: case
    for case in (
        TransformerCase(
            host="flux",
            layers=(
                ("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),
                ("single_transformer_blocks.0.attn", "norm_q", "", 5),
            ),
            model="FluxTransformer2DModel",
            config=_FLUX | {"pooled_projection_dim": 32},
            call=_pooled,
            sites=4,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="chroma",
            layers=(
                ("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),
                ("single_transformer_blocks.0.attn", "norm_q", "", 5),
            ),
            model="ChromaTransformer2DModel",
            config=_FLUX
            | {
                "approximator_num_channels": 8,
                "approximator_hidden_dim": 16,
                "approximator_layers": 1,
            },
            call=_chroma,
            sites=4,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="bria",
            layers=(
                ("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),
                ("single_transformer_blocks.0.attn", "norm_q", "", 5),
            ),
            model="BriaTransformer2DModel",
            config=_FLUX | {"pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8]},
            call=_pooled,
            sites=4,
        ),
        TransformerCase(
            host="sd3",
            layers=(("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),),
            heads_first=True,
            model="SD3Transformer2DModel",
            config={
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "num_layers": 3,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "joint_attention_dim": TEXT,
                "caption_projection_dim": HEADS * DIM,
                "pooled_projection_dim": 32,
                "out_channels": 4,
                "pos_embed_max_size": 8,
                "qk_norm": "rms_norm",
                "dual_attention_layers": (0,),
            },
            call=_latents(4, 2, pooled_projections=lambda batch, noise: noise(batch, 32)),
            sites=3,
        ),
        TransformerCase(
            host="qwen-image",
            layers=(("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),),
            model="QwenImageTransformer2DModel",
            config={
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 1,
                "num_layers": 2,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "joint_attention_dim": TEXT,
                "axes_dims_rope": (4, 4, 8),
            },
            call=_qwen,
            sites=2,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="lumina2",
            layers=(("layers.0.attn", "norm_q", "to_out.0", 3),),
            model="Lumina2Transformer2DModel",
            config={
                "in_channels": 4,
                "hidden_size": HEADS * DIM,
                "num_layers": 2,
                "num_refiner_layers": 1,
                "num_attention_heads": HEADS,
                "num_kv_heads": 1,
                "multiple_of": 16,
                "axes_dim_rope": [4, 4, 8],
                "axes_lens": [64, 32, 32],
                "cap_feat_dim": TEXT,
            },
            call=_lumina2,
            sites=2,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="z-image",
            layers=(("layers.0.attention", "norm_q", "to_out.0", 0),),
            model="ZImageTransformer2DModel",
            config={
                "in_channels": 4,
                "dim": HEADS * DIM,
                "n_layers": 2,
                "n_refiner_layers": 1,
                "n_heads": HEADS,
                "n_kv_heads": HEADS,
                "cap_feat_dim": TEXT,
                "axes_dims": [4, 4, 8],
                "axes_lens": [64, 32, 32],
            },
            call=_z_image,
            sites=2,
            order=("positive", "negative"),
        ),
        TransformerCase(
            host="flux2",
            layers=(
                ("transformer_blocks.0.attn", "norm_q", "to_out.0", 0),
                ("single_transformer_blocks.0.attn", "norm_q", "to_out", 5),
            ),
            model="Flux2Transformer2DModel",
            config={
                "patch_size": 1,
                "in_channels": 4,
                "num_layers": 2,
                "num_single_layers": 2,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "joint_attention_dim": TEXT,
                "timestep_guidance_channels": 16,
                "axes_dims_rope": (4, 4, 4, 4),
            },
            call=_flux2,
            sites=4,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="pixart",
            layers=(("transformer_blocks.0.attn2", "to_q", "to_out.0", 0),),
            model="PixArtTransformer2DModel",
            config={
                "num_attention_heads": HEADS,
                "attention_head_dim": DIM,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": 2,
                "cross_attention_dim": HEADS * DIM,
                "caption_channels": TEXT,
                "sample_size": 8,
                "patch_size": 2,
                "use_additional_conditions": False,
            },
            call=_latents(
                4, 2, added_cond_kwargs=lambda *_: {"resolution": None, "aspect_ratio": None}
            ),
            sites=2,
        ),
        TransformerCase(
            host="sana",
            layers=(("transformer_blocks.0.attn2", "norm_q", "to_out.0", 0),),
            model="SanaTransformer2DModel",
            config={
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": HEADS,
                "attention_head_dim": DIM,
                "num_layers": 2,
                "num_cross_attention_heads": HEADS,
                "cross_attention_head_dim": DIM,
                "cross_attention_dim": HEADS * DIM,
                "caption_channels": TEXT,
                "sample_size": 4,
                "patch_size": 1,
                "qk_norm": "rms_norm_across_heads",
            },
            call=_latents(4, 1),
            sites=2,
        ),
        TransformerCase(
            host="hunyuan-dit",
            layers=(("blocks.0.attn2", "norm_q", "to_out.0", 0),),
            heads_first=True,
            model="HunyuanDiT2DModel",
            config={
                "num_attention_heads": HEADS,
                "attention_head_dim": DIM,
                "in_channels": 4,
                "patch_size": 2,
                "sample_size": 8,
                "hidden_size": 32,
                "num_layers": 2,
                "cross_attention_dim": TEXT,
                "cross_attention_dim_t5": TEXT,
                "pooled_projection_dim": 16,
                "text_len": 5,
                "text_len_t5": 6,
            },
            call=_hunyuan,
            sites=2,
            token_width=TEXT,
        ),
        TransformerCase(
            host="auraflow",
            layers=(
                ("joint_transformer_blocks.0.attn", "norm_q", "to_out.0", 0),
                ("single_transformer_blocks.0.attn", "norm_q", "to_out.0", 13),
            ),
            model="AuraFlowTransformer2DModel",
            config={
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "num_mmdit_layers": 2,
                "num_single_dit_layers": 2,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "joint_attention_dim": TEXT,
                "caption_projection_dim": HEADS * DIM,
                "out_channels": 4,
                "pos_embed_max_size": 64,
            },
            call=_latents(4, 2),
            sites=4,
        ),
        TransformerCase(
            host="cogview4",
            layers=(("transformer_blocks.0.attn1", "norm_q", "to_out.0", 5),),
            heads_first=True,
            model="CogView4Transformer2DModel",
            config={
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "text_embed_dim": TEXT,
                "time_embed_dim": 16,
                "condition_dim": 8,
                "pos_embed_max_size": 8,
                "sample_size": 8,
                "rope_axes_dim": (8, 8),
            },
            call=_cogview4,
            sites=2,
            order=_SEPARATE,
        ),
        TransformerCase(
            host="hidream",
            layers=(
                ("double_stream_blocks.0.block.attn1", "q_rms_norm", "to_out", 0),
                ("single_stream_blocks.0.block.attn1", "q_rms_norm", "to_out", 0),
            ),
            model="HiDreamImageTransformer2DModel",
            config={
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": DIM,
                "num_attention_heads": HEADS,
                "caption_channels": [TEXT, TEXT],
                "text_emb_dim": 32,
                "num_routed_experts": 2,
                "num_activated_experts": 1,
                "axes_dims_rope": (4, 4, 8),
                "max_resolution": (8, 8),
                "llama_layers": [0, 1],
                "force_inference_output": True,
            },
            call=_hidream,
            sites=2,
        ),
        TransformerCase(
            host="wan",
            layers=(("blocks.0.attn2", "norm_q", "to_out.0", 0),),
            model="WanTransformer3DModel",
            config={
                "patch_size": (1, 2, 2),
                "num_attention_heads": HEADS,
                "attention_head_dim": DIM,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": TEXT,
                "freq_dim": 16,
                "ffn_dim": 32,
                "num_layers": 2,
                "rope_max_seq_len": 16,
            },
            call=_wan,
            sites=2,
            order=_SEPARATE,
            grid=False,
        ),
    )
}
