"""Load a bundled tiny stack and sample batches of pictures, each with its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.bundled import GUIDANCE, NAME, STEPS, folder

if TYPE_CHECKING:
    from PIL import Image

BATCH = 16


def load_pipeline(dtype: str = "float32", device: str = "cpu", *, stack: str = NAME) -> Any:
    """A bundled stack as a plain pipeline of diffusers, apart from what is kept loaded."""
    pipe = loading.load_base(stack, folder(stack), dtype=dtype, device=device, bars=False).pipe
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
    eta: float = 0.0,
    on_pictures: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """One picture for each prompt; with an `adapter`, each with its own reference.

    `on_pictures` is called with the number of pictures that were finished since the last call.
    """
    from imageprompt.generation.engine import Engine

    shared = {"steps": steps, "guidance_scale": guidance, "eta": eta}
    requests: list[dict[str, Any]] = [
        {"prompt": prompt, "seed": seed, "scale": 0.0, **shared}
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    if adapter is not None and references is not None:
        for request, reference in zip(requests, references, strict=True):
            request |= {"reference": reference, "adapter": adapter, "scale": scale}
    results = Engine(pipe).generate_many(
        requests,
        batch_size=BATCH,
        on_image=None if on_pictures is None else lambda made: on_pictures(len(made)),
        progress=False,
    )
    return [result.images[0] for result in results]
