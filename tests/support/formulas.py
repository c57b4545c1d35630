"""The method's equations written down plainly, in float64, from the tensors of a file.

Slow on purpose: every head in its own loop, every softmax spelled out, no module of torch or of
ours. Symbols as in arXiv 2308.06721: Q, K, V of the text, K', V' of the image tokens c_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def softmax(scores: Tensor) -> Tensor:
    """Rows that sum to one."""
    shifted = (scores - scores.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for [rows, heads * d], head by head."""
    d = q.shape[-1] // heads
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        out.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(d)) @ v[:, part])
    return torch.cat(out, dim=-1)


def decoupled(
    q: Tensor, k: Tensor, v: Tensor, images: Sequence[tuple[Tensor, Tensor, float]], heads: int
) -> Tensor:
    """Z = Attention(Q, K, V) + sum of scale * Attention(Q, K', V'), equation 5 of the paper."""
    z = attention(q, k, v, heads)
    for k_ip, v_ip, scale in images:
        z = z + scale * attention(q, k_ip, v_ip, heads)
    return z


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance along the last dimension, then an affine map."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear_tokens(state: State, feature: Tensor) -> Tensor:
    """base: one embedding [E] -> tokens [N, D]."""
    w = _double(state)
    width = len(w["norm.weight"])
    tokens = (w["proj.weight"] @ feature.double() + w["proj.bias"]).reshape(-1, width)
    return layer_norm(tokens, w["norm.weight"], w["norm.bias"])


def mlp_tokens(state: State, features: Tensor) -> Tensor:
    """full-face: hidden states [S, H] -> tokens [S, D]."""
    w = _double(state)
    hidden = gelu(features.double() @ w["proj.0.weight"].T + w["proj.0.bias"])
    out = hidden @ w["proj.2.weight"].T + w["proj.2.bias"]
    return layer_norm(out, w["proj.3.weight"], w["proj.3.bias"])


def resampler_tokens(state: State, features: Tensor, *, dim_head: int = 64) -> Tensor:
    """Plus: hidden states [S, H] -> tokens [N, D], any depth.

    A layer is latents += attention(latents; features and latents), latents += feed-forward. Keys
    and values are read from the normed features followed by the normed latents; q and k are each
    scaled by 1/sqrt(sqrt(d)).
    """
    w = _double(state)
    latents = w["latents"][0]
    x = features.double() @ w["proj_in.weight"].T + w["proj_in.bias"]
    depth = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("layers."))
    for i in range(depth):
        a, f = f"layers.{i}.0.", f"layers.{i}.1."
        normed_x = layer_norm(x, w[a + "norm1.weight"], w[a + "norm1.bias"])
        normed = layer_norm(latents, w[a + "norm2.weight"], w[a + "norm2.bias"])
        q = normed @ w[a + "to_q.weight"].T
        k, v = (torch.cat([normed_x, normed]) @ w[a + "to_kv.weight"].T).chunk(2, dim=-1)
        root = math.sqrt(math.sqrt(dim_head))
        heads = []
        for head in range(q.shape[-1] // dim_head):
            part = slice(head * dim_head, (head + 1) * dim_head)
            heads.append(softmax((q[:, part] / root) @ (k[:, part] / root).T) @ v[:, part])
        latents = latents + torch.cat(heads, dim=-1) @ w[a + "to_out.weight"].T
        normed = layer_norm(latents, w[f + "0.weight"], w[f + "0.bias"])
        latents = latents + gelu(normed @ w[f + "1.weight"].T) @ w[f + "3.weight"].T
    out = latents @ w["proj_out.weight"].T + w["proj_out.bias"]
    return layer_norm(out, w["norm_out.weight"], w["norm_out.bias"])


def face_tokens(state: State, face: Tensor) -> Tensor:
    """FaceID: a face's embedding [E] -> tokens [N, D]."""
    w = _double(state)
    hidden = gelu(face.double() @ w["proj.0.weight"].T + w["proj.0.bias"])
    out = (hidden @ w["proj.2.weight"].T + w["proj.2.bias"]).reshape(-1, len(w["norm.weight"]))
    return layer_norm(out, w["norm.weight"], w["norm.bias"])


def shortcut_tokens(state: State, feature: tuple[Tensor, Tensor]) -> Tensor:
    """FaceID-plus v2: the face's tokens, plus their attention to the features [S, H]."""
    face, features = feature
    prefix = "perceiver_resampler."
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    identity = face_tokens(state, face)
    return identity + resampler_tokens({**inner, "latents": identity[None]}, features)


def tokens(variant: str, state: State, feature: Any) -> Tensor:
    """Tokens [N, D] of one picture's feature by the variant's formula."""
    formulas: dict[str, Callable[[State, Any], Tensor]] = {
        "base": linear_tokens,
        "full": mlp_tokens,
        "plus": resampler_tokens,
        "faceid": face_tokens,
        "faceid-plus-v2": shortcut_tokens,
    }
    return formulas[variant](state, feature)


def _double(state: State) -> dict[str, Tensor]:
    return {key: value.double() for key, value in state.items()}


def capture(unet: nn.Module, names: list[str]) -> tuple[dict[str, tuple[Tensor, Any, Tensor]], Any]:
    """Record input, text and output of every cross-attention layer in the next calls."""
    seen: dict[str, tuple[Tensor, Any, Tensor]] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
            text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            seen[name] = (args[0], text, out)

        return record

    handles = [
        unet.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    return seen, handles


def by_formula(
    layer: Any, row: Tensor, text: Tensor, images: list[tuple[Tensor, Tensor, float]]
) -> Tensor:
    """One row of a site's output [Q, C] from its input [Q, C], its text [T, D] and (K', V')."""
    q = row @ layer.to_q.weight.T
    k, v = text @ layer.to_k.weight.T, text @ layer.to_v.weight.T
    z = decoupled(q, k, v, images, layer.heads)
    return z @ layer.to_out[0].weight.T + layer.to_out[0].bias
