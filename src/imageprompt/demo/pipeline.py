"""Loads the bundled tiny stack and paints batches with it, each picture with a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt.core.bundled import GUIDANCE, STEPS, folder

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["GUIDANCE", "STEPS", "folder", "load_pipeline", "paint"]

BATCH = 16


def load_pipeline(dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """The bundled stack as a plain StableDiffusionPipeline (fp32 on the CPU unless told)."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder(), dtype=dtype or torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or "cpu")


def paint(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    adapter: Any = None,
    references: Sequence[Image.Image] | None = None,
    scale: Any = 1.0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    after: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """One picture per prompt; with `adapter`, each with its own reference.

    `after` is told how many pictures each batch has brought.
    """
    import torch

    painted: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        chosen = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        options = {
            "prompt": list(prompts[chosen]),
            "generator": generators,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
        }
        if adapter is None or references is None:
            found = pipe(**options).images
        else:
            prompt = adapter.encode([[reference] for reference in references[chosen]])
            with adapter.use(prompt, scale=scale):
                found = pipe(**options).images
        painted += found
        if after:
            after(len(found))
    return painted
