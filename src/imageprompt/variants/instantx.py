"""instantx: InstantX's adapter for FLUX: SigLIP's pooled output, MLP, 128 tokens, every block."""

from __future__ import annotations

from dataclasses import dataclass

from imageprompt.core.spec import Feature, HostSpec, ProjectorSpec, Shape, SiteKind
from imageprompt.variants.faceid import FaceID


@dataclass(frozen=True)
class InstantX(FaceID):
    name: str = "instantx"
    summary: str = "the picture on FLUX: SigLIP's pooled output, MLP, 128 tokens (files only yet)"
    feature = Feature("pooler_output")
    site_kinds: tuple[SiteKind, ...] = ("joint double", "joint single")
    pending: str = "adapters for FLUX do not run yet"

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return host.shapes(self.site_kinds)


VARIANT = InstantX()
