"""bria: BriaTransformer2DModel, which has the shape of FLUX and guidance in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imageprompt.hosts._training import encode_prompt, grid_ids, pack, unpack
from imageprompt.hosts._transformer import PackedCalls, TransformerHost
from imageprompt.hosts.contract import Conditions, Training
from imageprompt.hosts.flux import LAYERS, PUBLISHED, sites

if TYPE_CHECKING:
    from torch import Tensor


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """T5's states; as in sampling, an empty text is zeros."""
    import torch

    states = encode_prompt(pipe, captions, max_length)[0]
    empty = torch.tensor([not caption for caption in captions], device=states.device)
    return states.masked_fill(empty.reshape(-1, 1, 1), 0), {}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    rows = denoiser(
        hidden_states=pack(latents),
        timestep=timesteps,
        encoder_hidden_states=text,
        txt_ids=text.new_zeros(text.shape[1], 3),
        img_ids=grid_ids(latents),
        return_dict=False,
    )[0]
    return unpack(rows, latents)


HOST = TransformerHost(
    name="bria",
    summary="BriaTransformer2DModel: Bria 3.2",
    denoiser_class="BriaTransformer2DModel",
    published_config=PUBLISHED,
    sites=sites,
    layers=LAYERS,
    reader=lambda config: PackedCalls(timestep=3, ids=4, separate=False),
    files_of="flux",
    training=Training(_encode_text, _predict, packed=True),
)
