"""The tensors of an adapter: names and shapes of its parts, and sizes read back from them.

What `_projectors` and `adapter.weights` build, without torch; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imageprompt.core.spec import RESAMPLER_HEAD_DIM as HEAD_DIM
from imageprompt.core.spec import HostSpec, ProjectorSpec, Shape, Shapes

FACE_DIM = 512
"""Width of an ArcFace embedding."""
LORA_RANK = 128
"""The rank of the published FaceID adapters."""
MLP_MULTIPLE = 4
"""Inner width of a resampler's MLP, as a multiple of its latents' width."""
MODULATIONS = 4
"""Shift and scale before attention, shift and scale before the MLP: of a timestep in a layer."""


def linear(name: str, out: int, features: int, *, bias: bool = True) -> dict[str, Shape]:
    """A linear layer [features] -> [out]."""
    shapes: dict[str, Shape] = {f"{name}.weight": (out, features)}
    if bias:
        shapes[f"{name}.bias"] = (out,)
    return shapes


def norm(name: str, inner_dim: int) -> dict[str, Shape]:
    """A LayerNorm with weight and bias."""
    return {f"{name}.weight": (inner_dim,), f"{name}.bias": (inner_dim,)}


def token_mlp(spec: ProjectorSpec) -> dict[str, Shape]:
    """Linear to `inner_dim`, GELU, Linear to all tokens at once, LayerNorm over each token."""
    return (
        linear("proj.0", spec.inner_dim, spec.feature_dim)
        | linear("proj.2", (spec.tokens or 0) * spec.cross_attention_dim, spec.inner_dim)
        | norm("norm", spec.cross_attention_dim)
    )


def read_token_mlp(shapes: Shapes) -> ProjectorSpec | None:
    """The inverse of `token_mlp`; some tensors may be missing. None if this is not such an MLP."""
    rows = size(shapes, ("proj.2.weight", 0), ("proj.2.bias", 0))
    cross_attention_dim = size(shapes, ("norm.weight", 0), ("norm.bias", 0))
    if not (rows and cross_attention_dim):
        return None
    return ProjectorSpec(
        feature_dim=size(shapes, ("proj.0.weight", 1)),
        cross_attention_dim=cross_attention_dim,
        tokens=rows // cross_attention_dim,
        inner_dim=size(shapes, ("proj.0.weight", 0), ("proj.2.weight", 1), ("proj.0.bias", 0)),
    )


@dataclass(frozen=True, kw_only=True)
class ResamplerSize:
    """The sizes of a resampler; 0 where no tensor shows them."""

    feature_dim: int
    cross_attention_dim: int
    depth: int
    heads: int
    inner_dim: int

    @classmethod
    def of(cls, shapes: Shapes) -> ResamplerSize | None:
        """From shapes, some of which may be missing; None if this is not a resampler."""
        layers = {int(i) for i in _numbers(shapes, "layers")}
        first = f"layers.{min(layers, default=0)}"
        inner_dim = size(
            shapes, ("proj_in.weight", 0), ("proj_out.weight", 1), (f"{first}.1.0.weight", 0)
        )
        cross_attention_dim = size(shapes, ("proj_out.weight", 0), ("norm_out.weight", 0))
        if not (layers and inner_dim and cross_attention_dim):
            return None
        inner = size(shapes, *((f"layers.{i}.0.to_q.weight", 0) for i in sorted(layers)))
        return cls(
            feature_dim=size(shapes, ("proj_in.weight", 1)),
            cross_attention_dim=cross_attention_dim,
            depth=min(max(layers) + 1, 2 * len(layers)),  # a broken file may name any number
            heads=inner // HEAD_DIM,
            inner_dim=inner_dim,
        )


def resampler(
    feature_dim: int, cross_attention_dim: int, *, depth: int, heads: int, inner_dim: int
) -> dict[str, Shape]:
    """A resampler without its latents."""
    inner = heads * HEAD_DIM
    shapes = linear("proj_in", inner_dim, feature_dim) | linear(
        "proj_out", cross_attention_dim, inner_dim
    )
    shapes |= norm("norm_out", cross_attention_dim)
    for i in range(depth):
        attention, mlp = f"layers.{i}.0", f"layers.{i}.1"
        shapes |= norm(f"{attention}.norm1", inner_dim) | norm(f"{attention}.norm2", inner_dim)
        shapes |= linear(f"{attention}.to_q", inner, inner_dim, bias=False)
        shapes |= linear(f"{attention}.to_kv", 2 * inner, inner_dim, bias=False)
        shapes |= linear(f"{attention}.to_out", inner_dim, inner, bias=False)
        shapes |= norm(f"{mlp}.0", inner_dim)
        shapes |= linear(f"{mlp}.1", MLP_MULTIPLE * inner_dim, inner_dim, bias=False)
        shapes |= linear(f"{mlp}.3", inner_dim, MLP_MULTIPLE * inner_dim, bias=False)
    return shapes


def lora(host: HostSpec, rank: int) -> dict[str, Shape]:
    """LoRA of this rank on q, k, v and out of every attention layer."""
    shapes: dict[str, Shape] = {}
    for layer in host.layers:
        for kind in ("q", "k", "v", "out"):
            input_dim = layer.input_dim if kind in "kv" else layer.inner_dim
            name = f"{layer.file_id}.to_{kind}_lora"
            shapes |= linear(f"{name}.down", rank, input_dim, bias=False)
            shapes |= linear(f"{name}.up", layer.inner_dim, rank, bias=False)
    return shapes


def under(prefix: str, shapes: Shapes) -> dict[str, Shape]:
    """The same tensors inside a module called `prefix`."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def without_prefix(prefix: str, shapes: Shapes) -> dict[str, Shape]:
    """The tensors of the module called `prefix`: the inverse of `under`."""
    start = f"{prefix}."
    return {n.removeprefix(start): shape for n, shape in shapes.items() if n.startswith(start)}


def size(shapes: Shapes, *places: tuple[str, int]) -> int:
    """The size of the first (tensor, dimension) that exists; 0 if none does."""
    for name, dimension in places:
        shape = shapes.get(name, ())
        if dimension < len(shape):
            return shape[dimension]
    return 0


def _numbers(shapes: Mapping[str, Shape], prefix: str) -> set[str]:
    """The numbers N of all names `prefix.N.*`."""
    parts = (name.split(".", 2) for name in shapes)
    return {p[1] for p in parts if len(p) == 3 and p[0] == prefix and p[1].isdecimal()}
