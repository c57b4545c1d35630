"""chroma: ChromaTransformer2DModel, which has the blocks of FLUX and takes its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imageprompt.hosts._training import encode_prompt
from imageprompt.hosts._transformer import PackedCalls, TransformerHost
from imageprompt.hosts.contract import Conditions, Training
from imageprompt.hosts.flux import LAYERS, PUBLISHED, predict_packed, sites

if TYPE_CHECKING:
    from torch import Tensor


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states, and their mask."""
    encoded = encode_prompt(pipe, captions, max_length)
    return encoded[0], {"attention_mask": encoded[2]}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """The mask covers the rows of the picture as well."""
    from torch.nn import functional as F

    rows = latents.shape[-2] * latents.shape[-1] // 4
    mask = F.pad(added["attention_mask"], (0, rows), value=1.0)
    masked = {"attention_mask": mask}
    return predict_packed(denoiser, latents, timesteps, text, masked, guidance_scale)


HOST = TransformerHost(
    name="chroma",
    summary="ChromaTransformer2DModel: Chroma1",
    denoiser_class="ChromaTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=2, ids=3),
    files_of="flux",
    training=Training(_encode_text, _predict, conditions=("attention_mask",), packed=True),
)
