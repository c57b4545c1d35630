"""xlabs: XLabs' adapters for FLUX: pooled embedding, linear projector, double blocks (v1, v2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imageprompt.core.spec import Entry, HostSpec, NullRule, ProjectorSpec, Shape, SiteKind
from imageprompt.variants.base import Base


@dataclass(frozen=True)
class XLabs(Base):
    name: str = "xlabs"
    summary: str = "global look of the picture on FLUX: 4 (v1) or 16 tokens (v2)"
    null_rule: NullRule = "black picture"
    site_kinds: tuple[SiteKind, ...] = ("joint double",)
    entries: Mapping[SiteKind, Entry] = field(default_factory=lambda: {"joint double": "block"})
    key_norms: Mapping[SiteKind, float] = field(default_factory=dict)

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return host.shapes(self.site_kinds, bias=True)


VARIANT = XLabs()
