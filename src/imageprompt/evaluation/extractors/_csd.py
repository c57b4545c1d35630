"""CSD's network: OpenAI's CLIP image tower without its projection, and a head for style."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from imageprompt.encoding.encoders.clip import ClipEncoder
from imageprompt.evaluation.extractors._tower import Tower
from imageprompt.evaluation.extractors._weights import (
    MISFITS,
    Source,
    WeightFile,
    misfit,
    published_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "40e92fad63a361b8"
"""Start of the SHA-256 of pytorch_model.bin."""
HEAD_WIDTH = 64
"""Of each attention head in all of OpenAI's towers."""
_NAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""OpenAI's names of tensors -> those of transformers."""


def open_csd(source: str, device: str | None) -> Tower:
    """Raises NotFoundError, EncoderError."""
    stated = Source.of(source)
    file = WeightFile.open(stated.place)
    name = published_weights("csd", [file], stated, PUBLISHED)
    try:
        model = tower(
            {one.removeprefix("module."): value for one, value in file.tensors(None).items()}
        )
    except MISFITS as error:
        raise misfit("csd", stated, error) from None
    return Tower(name, ClipEncoder(model.to(device or "cpu")), "image_embeds")


def tower(tensors: Mapping[str, Tensor]) -> Any:
    """A CLIP of transformers that projects to styles. Raises one of MISFITS."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    positions, hidden = tensors["backbone.positional_embedding"].shape
    _, _, patch, _ = tensors["backbone.conv1.weight"].shape
    style = tensors["last_layer_style"]
    _, width = style.shape
    if min(positions, hidden, patch, width) < 1:
        raise ValueError("a tensor is empty")
    layers = {one.split(".")[3] for one in tensors if one.startswith("backbone.transformer.")}
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=len(tensors["backbone.transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=len(layers),
        num_attention_heads=max(hidden // HEAD_WIDTH, 1),
        patch_size=patch,
        image_size=round((positions - 1) ** 0.5) * patch,
        projection_dim=width,
        hidden_act="quick_gelu",
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    weights = {"visual_projection.weight": style.T.contiguous()}
    for name, value in tensors.items():
        if name.startswith("backbone."):
            for renamed, part in _parts(name.removeprefix("backbone."), value):
                weights[f"vision_model.{renamed}"] = part
    model.load_state_dict(weights, assign=True)
    model.vision_model.embeddings.position_ids = torch.arange(positions)[None]  # not a weight
    return model


def _parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors of transformers that hold one of OpenAI's: queries, keys, values are apart."""
    for pattern, by in _NAMES:
        name = re.sub(pattern, by, name)
    if ".attn.in_proj_" not in name:
        return [(name, value)]
    layer, kind = name.split(".attn.in_proj_")
    parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
    return [(f"{layer}.self_attn.{part}.{kind}", one.contiguous()) for part, one in parts]
