"""One training step in plain float32, as the reference recipe computes it.

Image tokens are appended to the text tokens, attention is written out, the scheduler is diffusers'
own. Nothing here imports imageprompt; the weights are those of an adapter file, with gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

import formulas
from peer import site_ids


@dataclass
class Case:
    """Inputs of a step, with all random draws."""

    latents: Tensor
    text: Tensor
    features: Any
    added: dict[str, Tensor]
    noise: Tensor
    times: Tensor
    drop_image: Tensor
    drop_text: Tensor
    null_text: Tensor
    null_features: Any
    null_added: dict[str, Tensor]


class PlainProcessor:
    """Attention with `count` image tokens after the text; weights by their suffix."""

    def __init__(self, weights: Mapping[str, Tensor], count: int) -> None:
        self.weights, self.count = weights, count

    def __call__(
        self, attn: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text, image = x, None
        if encoder_hidden_states is not None:
            text = encoder_hidden_states[:, : -self.count]
            image = encoder_hidden_states[:, -self.count :]
        q = self._linear(attn.to_q, "q", x)
        k, v = self._linear(attn.to_k, "k", text), self._linear(attn.to_v, "v", text)
        out = _attend(q, k, v, attn.heads)
        if image is not None:
            k, v = (image @ self.weights[f"to_{kind}_ip.weight"].T for kind in "kv")
            out = out + _attend(q, k, v, attn.heads)
        return self._linear(attn.to_out[0], "out", out)

    def _linear(self, layer: nn.Linear, kind: str, x: Tensor) -> Tensor:
        """The frozen layer, plus LoRA if the file has one."""
        out = layer(x)
        down = self.weights.get(f"to_{kind}_lora.down.weight")
        if down is None:
            return out
        return out + x @ down.T @ self.weights[f"to_{kind}_lora.up.weight"].T


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def step(
    unet: nn.Module, state: Mapping[str, Mapping[str, Tensor]], variant: str, kind: str, case: Case
) -> tuple[float, dict[str, Tensor]]:
    """Loss of the batch and the gradient of every tensor of an adapter file `state`."""
    flat = {
        f"{part}.{name}": tensor.detach().float().clone().requires_grad_()
        for part, tensors in state.items()
        for name, tensor in tensors.items()
    }
    projector = {n.removeprefix("image_proj."): t for n, t in flat.items() if "image_proj" in n}
    rows = _features(case)
    tokens = torch.stack([formulas.tokens(variant, projector, row) for row in rows]).float()
    text = _dropped(case.text, case.null_text, case.drop_text)
    added = {
        name: _dropped(value, case.null_added[name], case.drop_text)
        if name in case.null_added
        else value
        for name, value in case.added.items()
    }
    scheduler = DDPMScheduler(prediction_type=kind)
    noisy = scheduler.add_noise(case.latents, case.noise, case.times)
    target = case.noise
    if kind == "v_prediction":
        target = scheduler.get_velocity(case.latents, case.noise, case.times)
    states = torch.cat([text, tokens], dim=1)
    model = with_processors(unet, flat, tokens.shape[1])
    prediction = model(noisy, case.times, states, added_cond_kwargs=added or None).sample
    loss = (prediction - target).square().mean()
    loss.backward()
    return float(loss.detach()), {name: tensor.grad for name, tensor in flat.items()}


def with_processors(unet: nn.Module, flat: Mapping[str, Tensor], count: int) -> nn.Module:
    """A copy of the denoiser with these processors."""
    model = copy.deepcopy(unet).requires_grad_(False)
    ids = {name: number for number, name in enumerate(model.attn_processors)}
    assert set(site_ids(model)) <= set(ids.values())
    for name, number in ids.items():
        prefix = f"ip_adapter.{number}."
        weights = {n.removeprefix(prefix): t for n, t in flat.items() if n.startswith(prefix)}
        layer = model.get_submodule(name.removesuffix(".processor"))
        layer.set_processor(PlainProcessor(weights, count))
    return model


def _features(case: Case) -> list[Any]:
    """The features of every sample, a pair if the variant reads two."""
    if isinstance(case.features, Tensor):
        return list(_dropped(case.features, case.null_features, case.drop_image))
    pairs = zip(case.features, case.null_features, strict=True)
    return list(zip(*(_dropped(*pair, case.drop_image) for pair in pairs), strict=True))


def _dropped(values: Tensor, null: Tensor, which: Tensor) -> Tensor:
    rows = [null[0] if dropped else row for row, dropped in zip(values, which, strict=True)]
    return torch.stack(rows)
