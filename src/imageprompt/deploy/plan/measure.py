"""What a base costs, counted from its configs on the meta device: no weights are read.

The published bases have been counted before: `counted.json`, which `dev/counted_bases.py` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from imageprompt.core.console import errors_only
from imageprompt.deploy.plan.bases import Part, PublishedBase
from imageprompt.deploy.plan.count import DTYPE, Cost, cost, cost_by_area, parameters, reserved
from imageprompt.deploy.plan.curve import Curve

SIDES = (512, 768, 1024)
"""The sizes in pixels that the curves go through, for bases that are made for such."""
_FACTOR = 8  # pixels to a latent, in all of these


def count_base(base: PublishedBase) -> dict[str, Any]:
    """The figures of a base, as plain data: see `CountedBase.of`."""
    sides = (
        SIDES if base.size >= SIDES[0] else [base.size * quarters // 4 for quarters in (2, 3, 4)]
    )
    denoiser = build(base.denoiser)
    denoiser_curves = cost_by_area(denoiser, denoiser_call(base.denoiser, denoiser, base), sides)
    vae = build(base.vae)
    vae_curves = cost_by_area(vae, _decode(base.vae, vae), sides)
    text = {title: _count_text(*given) for title, given in base.text.items()}
    calls = [denoiser_call(base.denoiser, denoiser, base), _decode(base.vae, vae)]
    areas = [side * side / 1e6 for side in sides]
    found = [
        reserved(
            [denoiser, vae],
            [lambda call=call, side=side: call(side) for call in calls],  # type: ignore[misc]
        )
        for side in sides
    ]
    kept = {"bytes": [one.bytes for one in found], "copying": [one.copying for one in found]}
    vision = build(base.image_encoder)
    size = base.image_encoder.config["image_size"]
    picture = torch.empty(1, 3, size, size, dtype=DTYPE, device="meta")
    return {
        "denoiser": _row(parameters(denoiser), denoiser_curves),
        "vae": _row(parameters(vae), vae_curves),
        "text": text,
        "image_encoder": _row(parameters(vision), _flat(cost(vision, lambda: vision(picture)))),
        "reserved": {name: Curve.through(areas, one).as_list() for name, one in kept.items()},
    }


def build(part: Part) -> Any:
    """A model on the meta device, in bfloat16."""
    # diffusers warns at every cast of a model that keeps no module in float32
    with errors_only("diffusers.models.modeling_utils"), torch.device("meta"):
        model = _class(part)(**part.config) if part.library == "diffusers" else _transformer(part)
        return model.to(DTYPE).eval()


def denoiser_call(part: Part, model: Any, base: PublishedBase) -> Callable[[int], Any]:
    """A call for one picture without guidance, as a function of its side in pixels.

    `base` says how many tokens the text has.
    """
    tokens = max(count for _, count in base.text.values())
    call = _CALLS[part.kind]
    return lambda side: call(model, side // _FACTOR, tokens)


def _unet_call(model: Any, side: int, tokens: int) -> Any:
    config = model.config
    width = config.encoder_hid_dim or config.cross_attention_dim
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": _empty(1, pooled), "time_ids": _empty(1, 6)}
    states = _empty(1, tokens, width)
    return model(
        _empty(1, config.in_channels, side, side),
        _empty(1),
        encoder_hidden_states=states,
        added_cond_kwargs=added,
        return_dict=False,
    )


def _flux_call(model: Any, side: int, tokens: int) -> Any:
    config, rows = model.config, (side // 2) ** 2
    return model(
        hidden_states=_empty(1, rows, config.in_channels),
        encoder_hidden_states=_empty(1, tokens, config.joint_attention_dim),
        pooled_projections=_empty(1, config.pooled_projection_dim),
        timestep=_empty(1),
        img_ids=_empty(rows, 3),
        txt_ids=_empty(tokens, 3),
        guidance=_empty(1) if config.guidance_embeds else None,
        return_dict=False,
    )


def _sd3_call(model: Any, side: int, tokens: int) -> Any:
    config = model.config
    return model(
        hidden_states=_empty(1, config.in_channels, side, side),
        encoder_hidden_states=_empty(1, tokens + 77, config.joint_attention_dim),
        pooled_projections=_empty(1, config.pooled_projection_dim),
        timestep=_empty(1),
        return_dict=False,
    )


_CALLS: Mapping[str, Callable[[Any, int, int], Any]] = {
    "UNet2DConditionModel": _unet_call,
    "FluxTransformer2DModel": _flux_call,
    "SD3Transformer2DModel": _sd3_call,
}
"""How a denoiser of a class is called: (model, side of the latents, tokens)."""
COUNTED_CLASSES = tuple(_CALLS)


def _decode(part: Part, vae: Any) -> Callable[[int], Any]:
    channels = part.config["latent_channels"]
    return lambda side: vae.decode(_empty(1, channels, side // _FACTOR, side // _FACTOR))


def _count_text(part: Part | int, tokens: int) -> dict[str, Any]:
    if isinstance(part, int):  # operations: two a weight and token
        return _row(part, _flat(Cost(2.0 * part * tokens, 0.0, 0.0)))
    model = build(part)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return _row(parameters(model), _flat(cost(model, lambda: model(ids))))


def _row(count: int, curves: Sequence[Curve]) -> dict[str, Any]:
    names = (field.name for field in fields(Cost))
    lists = {name: curve.as_list() for name, curve in zip(names, curves, strict=True)}
    return {"parameters": count, **lists}


def _flat(found: Cost) -> list[Curve]:
    return [Curve(value, 0.0, 0.0) for value in (found.flops, found.bytes, found.copying)]


def _class(part: Part) -> Any:
    import diffusers
    import transformers

    return getattr(diffusers if part.library == "diffusers" else transformers, part.kind)


def _transformer(part: Part) -> Any:
    model = _class(part)
    return model(model.config_class(**part.config))


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=DTYPE, device="meta")
