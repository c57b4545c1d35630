"""bria: BriaTransformer2DModel, which has the shape of FLUX and guidance in one batch."""

from __future__ import annotations

from imageprompt.hosts._transformer import PackedCalls, TransformerHost
from imageprompt.hosts.flux import LAYERS, PUBLISHED, sites

HOST = TransformerHost(
    name="bria",
    summary="BriaTransformer2DModel: Bria 3.2",
    denoiser_class="BriaTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=3, ids=4, separate=False),
    files_of="flux",
)
