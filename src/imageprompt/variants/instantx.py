"""instantx: InstantX's adapter for FLUX: SigLIP's pooled output, MLP, 128 tokens, every block.

Other programs run its files by equations of their own, which are readings: ComfyUI-IPAdapter-Flux
normalises V' as well, and DiffSynth-Studio takes the queries of single blocks after the rotary
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from imageprompt.core.spec import Entry, Feature, HostSpec, ProjectorSpec, Shape, SiteKind
from imageprompt.variants.faceid import FaceID

_NORMS: Mapping[SiteKind, float] = {"joint double": 1e-5, "joint single": 1e-5}


@dataclass(frozen=True)
class InstantX(FaceID):
    name: str = "instantx"
    summary: str = "the picture on FLUX: SigLIP's pooled output, MLP, 128 tokens"
    feature = Feature("pooler_output")
    site_kinds: tuple[SiteKind, ...] = ("joint double", "joint single")
    entries: Mapping[SiteKind, Entry] = field(default_factory=lambda: {"joint single": "all rows"})
    key_norms: Mapping[SiteKind, float] = field(default_factory=lambda: dict(_NORMS))
    value_norms: Mapping[SiteKind, float] = field(default_factory=dict)

    @property
    def readings(self) -> Mapping[str, InstantX]:
        return {
            "comfyui": replace(self, value_norms=_NORMS),
            "diffsynth": replace(self, entries={"joint single": "all rows rotated"}),
        }

    def site_shapes(self, host: HostSpec, spec: ProjectorSpec, lora_rank: int) -> dict[str, Shape]:
        return host.shapes(self.site_kinds)


VARIANT = InstantX()
