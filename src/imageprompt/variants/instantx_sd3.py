"""instantx-sd3: InstantX's adapter for SD3.5 Large: SigLIP patches, time-modulated resampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imageprompt.core.spec import (
    Entry,
    Feature,
    HostSpec,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
    Shapes,
    SiteKind,
)
from imageprompt.variants.plus import Plus
from imageprompt.variants.tensor_shapes import MODULATIONS, linear, size

if TYPE_CHECKING:
    from torch import nn

TOKENS = 64
TIME_DIM = 320


@dataclass(frozen=True)
class InstantXSD3(Plus):
    name: str = "instantx-sd3"
    summary: str = "the picture on SD3.5 Large: SigLIP patches, 64 tokens by timestep"
    feature = Feature("hidden_states[-2]")
    null_rule: NullRule = "zero features"
    twins: Mapping[str, str] = field(default_factory=dict)
    site_kinds: tuple[SiteKind, ...] = ("joint",)
    entries: Mapping[SiteKind, Entry] = field(default_factory=lambda: {"joint": "among rows"})
    key_norms: Mapping[SiteKind, float] = field(default_factory=dict)

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        time_dim = size(shapes, ("time_embedding.linear_1.weight", 1))
        spec = super().read(shapes)
        return replace(spec, time_dim=time_dim) if spec and time_dim else None

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]:
        shapes = super().projector_shapes(spec)
        shapes |= linear("time_embedding.linear_1", spec.inner_dim, spec.time_dim)
        shapes |= linear("time_embedding.linear_2", spec.inner_dim, spec.inner_dim)
        for i in range(spec.depth):
            shapes |= linear(f"layers.{i}.2.1", MODULATIONS * spec.inner_dim, spec.inner_dim)
        return shapes

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        """K', V', norms of q, k and k' over a head, and shift and scale by timestep."""
        shapes = host.shapes(self.site_kinds)
        for site in (site for site in host.sites if site.kind in self.site_kinds):
            shapes |= linear(f"{site.file_id}.norm_ip.linear", 2 * site.inner_dim, spec.inner_dim)
            for name in ("norm_q", "norm_k", "norm_ip_k"):
                shapes[f"{site.file_id}.{name}.weight"] = (site.inner_dim // site.heads,)
        return shapes

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        tokens = options.tokens or TOKENS
        spec = super().propose(feature_dim, cross_attention_dim, replace(options, tokens=tokens))
        return replace(spec, time_dim=TIME_DIM)

    def build(self, spec: ProjectorSpec) -> nn.Module:
        from imageprompt.variants._projectors import TimeResampler

        return TimeResampler(
            spec.feature_dim,
            spec.cross_attention_dim,
            spec.tokens or TOKENS,
            depth=spec.depth,
            heads=spec.heads,
            inner_dim=spec.inner_dim,
            time_dim=spec.time_dim,
        )


VARIANT = InstantXSD3()
