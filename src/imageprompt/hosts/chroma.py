"""chroma: ChromaTransformer2DModel, which has the blocks of FLUX and takes its adapters."""

from __future__ import annotations

from imageprompt.hosts._transformer import PackedCalls, TransformerHost
from imageprompt.hosts.flux import LAYERS, PUBLISHED, sites

HOST = TransformerHost(
    name="chroma",
    summary="ChromaTransformer2DModel: Chroma1",
    denoiser_class="ChromaTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=2, ids=3),
    files_of="flux",
)
