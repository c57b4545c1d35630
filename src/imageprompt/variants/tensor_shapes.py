"""Which tensors an adapter has: names and shapes of its parts, and sizes read back off them.

The torch-free twin of projectors.py and weights.py; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imageprompt.core.spec import RESAMPLER_HEAD_WIDTH as HEAD_WIDTH
from imageprompt.core.spec import HostSpec, ProjectorSpec, Shape, Shapes, SiteKind

FACE_WIDTH = 512
"""Of an ArcFace embedding."""
LORA_RANK = 128
"""Of the published FaceID adapters."""
MLP_MULTIPLE = 4


def linear(name: str, out: int, features: int, *, bias: bool = True) -> dict[str, Shape]:
    """A linear layer [features] -> [out]."""
    shapes: dict[str, Shape] = {f"{name}.weight": (out, features)}
    if bias:
        shapes[f"{name}.bias"] = (out,)
    return shapes


def norm(name: str, width: int) -> dict[str, Shape]:
    """A LayerNorm with weight and bias."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def token_mlp(spec: ProjectorSpec) -> dict[str, Shape]:
    """Linear, GELU, Linear to all tokens at once, LayerNorm over each; `width` inside."""
    return (
        linear("proj.0", spec.width, spec.feature_width)
        | linear("proj.2", (spec.tokens or 0) * spec.text_width, spec.width)
        | norm("norm", spec.text_width)
    )


def read_token_mlp(shapes: Shapes) -> ProjectorSpec | None:
    """The inverse of `token_mlp`; some tensors may be missing. None if this is no such MLP."""
    rows = size(shapes, ("proj.2.weight", 0), ("proj.2.bias", 0))
    text_width = size(shapes, ("norm.weight", 0), ("norm.bias", 0))
    if not (rows and text_width):
        return None
    return ProjectorSpec(
        feature_width=size(shapes, ("proj.0.weight", 1)),
        text_width=text_width,
        tokens=rows // text_width,
        width=size(shapes, ("proj.0.weight", 0), ("proj.2.weight", 1), ("proj.0.bias", 0)),
    )


@dataclass(frozen=True, kw_only=True)
class ResamplerSize:
    """The sizes of a resampler; 0 where no tensor tells."""

    feature_width: int
    text_width: int
    depth: int
    heads: int
    width: int

    @classmethod
    def of(cls, shapes: Shapes) -> ResamplerSize | None:
        """Read off shapes, of which some may be missing; None if this is no resampler."""
        layers = {int(i) for i in _numbers(shapes, "layers")}
        first = f"layers.{min(layers, default=0)}"
        width = size(
            shapes, ("proj_in.weight", 0), ("proj_out.weight", 1), (f"{first}.1.0.weight", 0)
        )
        text_width = size(shapes, ("proj_out.weight", 0), ("norm_out.weight", 0))
        if not (layers and width and text_width):
            return None
        inner = size(shapes, *((f"layers.{i}.0.to_q.weight", 0) for i in sorted(layers)))
        return cls(
            feature_width=size(shapes, ("proj_in.weight", 1)),
            text_width=text_width,
            depth=min(max(layers) + 1, 2 * len(layers)),  # names from strangers have any number
            heads=inner // HEAD_WIDTH,
            width=width,
        )


def resampler(
    feature_width: int, text_width: int, *, depth: int, heads: int, width: int
) -> dict[str, Shape]:
    """A resampler without its latents."""
    inner = heads * HEAD_WIDTH
    shapes = linear("proj_in", width, feature_width) | linear("proj_out", text_width, width)
    shapes |= norm("norm_out", text_width)
    for i in range(depth):
        attention, mlp = f"layers.{i}.0", f"layers.{i}.1"
        shapes |= norm(f"{attention}.norm1", width) | norm(f"{attention}.norm2", width)
        shapes |= linear(f"{attention}.to_q", inner, width, bias=False)
        shapes |= linear(f"{attention}.to_kv", 2 * inner, width, bias=False)
        shapes |= linear(f"{attention}.to_out", width, inner, bias=False)
        shapes |= norm(f"{mlp}.0", width)
        shapes |= linear(f"{mlp}.1", MLP_MULTIPLE * width, width, bias=False)
        shapes |= linear(f"{mlp}.3", width, MLP_MULTIPLE * width, bias=False)
    return shapes


def key_values(
    host: HostSpec, kinds: Iterable[SiteKind] = ("cross",), *, bias: bool = False
) -> dict[str, Shape]:
    """K' and V' at every site of these kinds."""
    kinds = tuple(kinds)
    shapes: dict[str, Shape] = {}
    for site in host.sites:
        for kind in "kv" if site.kind in kinds else "":
            name = f"{site.file_id}.to_{kind}_ip"
            shapes |= linear(name, site.width, site.text_width, bias=bias)
    return shapes


def lora(host: HostSpec, rank: int) -> dict[str, Shape]:
    """LoRA of this rank on q, k, v and out of every attention layer."""
    shapes: dict[str, Shape] = {}
    for layer in host.layers:
        for kind in ("q", "k", "v", "out"):
            read = layer.input_width if kind in "kv" else layer.width
            name = f"{layer.file_id}.to_{kind}_lora"
            shapes |= linear(f"{name}.down", rank, read, bias=False)
            shapes |= linear(f"{name}.up", layer.width, rank, bias=False)
    return shapes


def under(prefix: str, shapes: Shapes) -> dict[str, Shape]:
    """The same tensors inside a module called `prefix`."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def inside(prefix: str, shapes: Shapes) -> dict[str, Shape]:
    """The tensors of the module called `prefix`: the inverse of `under`."""
    start = f"{prefix}."
    return {n.removeprefix(start): shape for n, shape in shapes.items() if n.startswith(start)}


def size(shapes: Shapes, *places: tuple[str, int]) -> int:
    """The first of these (tensor, dimension) that is there; 0 if none is."""
    for name, dimension in places:
        shape = shapes.get(name, ())
        if dimension < len(shape):
            return shape[dimension]
    return 0


def _numbers(shapes: Mapping[str, Shape], prefix: str) -> set[str]:
    """The numbers N of all names `prefix.N.*`."""
    parts = (name.split(".", 2) for name in shapes)
    return {p[1] for p in parts if len(p) == 3 and p[0] == prefix and p[1].isdecimal()}
