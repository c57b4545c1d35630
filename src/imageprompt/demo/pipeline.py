"""Load the bundled tiny stack and sample batches of pictures, each with its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.bundled import GUIDANCE, STEPS, folder

if TYPE_CHECKING:
    from PIL import Image

BATCH = 16


def load_pipeline(dtype: str = "float32", device: str = "cpu") -> Any:
    """The bundled stack as a plain StableDiffusionPipeline, apart from what is kept loaded."""
    pipe = loading.load_base(None, folder(), dtype=dtype, device=device, bars=False).pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    adapter: Any = None,
    references: Sequence[Image.Image] | None = None,
    scale: Any = 1.0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    on_pictures: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """One picture for each prompt; with an (attached) `adapter`, each with its own reference.

    `on_pictures` is called with the number of pictures of each finished batch.
    """
    import torch

    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        batch = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[batch]]
        options = {
            "prompt": list(prompts[batch]),
            "generator": generators,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
        }
        if adapter is None or references is None:
            images = pipe(**options).images
        else:
            prompt = adapter.encode([[reference] for reference in references[batch]])
            with adapter.use(prompt, scale=scale):
                images = pipe(**options).images
        pictures += images
        if on_pictures:
            on_pictures(len(images))
    return pictures
