"""The weights of an adapter as a module: a projector, K', V' of every site, LoRA of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imageprompt.attention.decoupled import KeyValue
from imageprompt.core.fingerprint import versions

LORA_KINDS = ("q", "k", "v", "out")
"""The linear layers of an attention layer that published adapters add LoRA to."""
NORM_EPS = 1e-6


class Lora(nn.Module):
    """A low-rank addition to a linear layer: x -> up(down(x)), without alpha.

    Computes on the device and in the dtype of x, which are the base's; the weights keep their own.
    A copy of them there is kept as long as they do not change.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = _linear(down)
        self.up = _linear(up)
        self._cast: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        down, up = self._weights_like(x)
        return F.linear(F.linear(x, down), up)

    def forget(self) -> None:
        """Drop the copy of the weights: they may have been written to in a way nothing counts."""
        self._cast = None

    def _weights_like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down, up = self.down.weight, self.up.weight
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return down.to(x.device, x.dtype), up.to(x.device, x.dtype)
        if (down.device, down.dtype, up.device, up.dtype) == (x.device, x.dtype) * 2:
            self._cast = None
            return down, up
        key = (x.device, x.dtype, versions((down, up)))
        if self._cast is None or self._cast[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # usable in every grad mode
                self._cast = (key, (down.to(x.device, x.dtype), up.to(x.device, x.dtype)))
        return self._cast[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the copy of the weights out."""
        return {**vars(self), "_cast": None}


class LayerWeights(nn.Module):
    """The weights of an adapter at one attention layer, under their names in files.

    `to_k_ip` and `to_v_ip` (cross_attention_dim -> inner_dim) where image tokens enter,
    `to_{q,k,v,out}_lora` where the variant has LoRA.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for kind in "kv":
            if (weight := tensors.get(f"to_{kind}_ip.weight")) is not None:
                bias = tensors.get(f"to_{kind}_ip.bias")
                self.add_module(f"to_{kind}_ip", _linear(weight, bias))
        self._add_norms(tensors)
        for kind in LORA_KINDS:
            name = f"to_{kind}_lora"
            if f"{name}.down.weight" in tensors:
                pair = (tensors[f"{name}.{part}.weight"] for part in ("down", "up"))
                self.add_module(name, Lora(*pair))

    def _add_norms(self, tensors: Mapping[str, Tensor]) -> None:
        """Norms of q, k and K' over a head, and shift and scale of the tokens by the timestep."""
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            if (weight := tensors.get(f"{name}.weight")) is not None:
                norm = nn.RMSNorm(weight.shape, eps=NORM_EPS, device="meta")
                norm.weight = nn.Parameter(weight)
                self.add_module(name, norm)
        if (weight := tensors.get("norm_ip.linear.weight")) is not None:
            modulation = nn.ModuleDict({"linear": _linear(weight, tensors["norm_ip.linear.bias"])})
            self.add_module("norm_ip", modulation)

    def key_value(self, tokens: Tensor, active: Tensor | None = None) -> KeyValue:
        """K' and V' [B, N, inner_dim] of tokens [B, N, W].

        `active` [1 or B, C] is SiLU of the embedded timestep that shifts and scales them.
        """
        layers: Any = self
        if active is not None:
            shift, scale = layers.norm_ip["linear"](active)[:, None].chunk(2, dim=-1)
            tokens = torch.addcmul(shift, tokens, 1 + scale)
        return layers.to_k_ip(tokens), layers.to_v_ip(tokens)

    @property
    def loras(self) -> dict[str, Lora]:
        """Kind of linear layer (q, k, v, out) -> its LoRA."""
        found = {kind: getattr(self, f"to_{kind}_lora", None) for kind in LORA_KINDS}
        return {kind: lora for kind, lora in found.items() if lora is not None}


class AdapterModule(nn.Module):
    """All weights of an adapter; its state-dict keys are those of the standard file."""

    def __init__(self, image_proj: nn.Module, layers: Mapping[str, LayerWeights]) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict(layers)

    @classmethod
    def of(cls, image_proj: nn.Module, tensors: Mapping[str, Tensor]) -> AdapterModule:
        """From tensors named `{file id}.to_k_ip.weight` and so on; they are used, not copied."""
        by_layer: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            file_id, _, rest = name.partition(".")
            by_layer.setdefault(file_id, {})[rest] = tensor
        return cls(image_proj, {i: LayerWeights(by_layer[i]) for i in sorted(by_layer, key=int)})

    @property
    def sites(self) -> list[LayerWeights]:
        """The layers where image tokens enter, in file order."""
        layers = cast("list[LayerWeights]", list(self.ip_adapter.values()))
        return [layer for layer in layers if hasattr(layer, "to_k_ip")]

    def key_values(self, tokens: Tensor, time: Tensor | None = None) -> list[KeyValue]:
        """K', V' [B, N, inner_dim] of tokens [B, N, W], site by site in file order.

        `time` [1 or B, C] embeds the timestep, where they depend on it.
        """
        active = None if time is None else F.silu(time)
        if active is not None:
            tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)
        return [layer.key_value(tokens, active) for layer in self.sites]

    @property
    def loras(self) -> dict[str, dict[str, Lora]]:
        """File id -> the LoRA of that layer, by kind; empty for variants without LoRA."""
        found = {i: layer.loras for i, layer in self.ip_adapter.items()}
        return {i: loras for i, loras in found.items() if loras}  # type: ignore[misc]

    @property
    def rank(self) -> int | None:
        """The rank of the LoRA; None without."""
        every = (lora for loras in self.loras.values() for lora in loras.values())
        return next((lora.down.weight.shape[0] for lora in every), None)


def new_lora(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """New LoRA weights for the LoRA names among `shapes`; they change nothing until trained.

    `down` is normal noise with deviation 1 / rank, `up` is zero, as in the published adapters.
    """
    return {
        name: torch.randn(shape) / shape[0] if ".down." in name else torch.zeros(shape)
        for name, shape in shapes.items()
        if "_lora." in name
    }


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer whose weight [out, in] and bias [out] are these tensors themselves."""
    out, width = weight.shape
    layer = nn.Linear(width, out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
