"""Guidance off late: after a share of the steps, only the positive side is computed.

diffusers' loops ask for guidance in every step and hand their tensors to a callback, so the
callback halves the batch. Adapters in use follow it (see `attention.cfg_layout`).
"""

from __future__ import annotations

import math
from typing import Any

from imageprompt.core.errors import OptionError

_XL = ("prompt_embeds", "add_text_embeds", "add_time_ids")
HALVED = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionImg2ImgPipeline": ("prompt_embeds",),
    "StableDiffusionInpaintPipeline": ("prompt_embeds", "mask", "masked_image_latents"),
    "StableDiffusionControlNetPipeline": ("prompt_embeds", "image"),
    "StableDiffusionControlNetImg2ImgPipeline": ("prompt_embeds", "control_image"),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusionXLControlNetPipeline": (*_XL, "image"),
    "KolorsPipeline": _XL,
    "KolorsImg2ImgPipeline": _XL,
    "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipelines that follow, and the tensors of their loops that hold both sides of guidance.

Others keep something that a callback cannot change, or decide on guidance before the loop.
"""


def check_cutoff(until: float, pipe: Any, guidance_scale: float | None, layout: Any) -> None:
    """Raises OptionError for a pipeline that cannot stop guidance, or has none to stop."""
    what = f"guidance until {until:g}"
    if _known(pipe) is None:
        raise OptionError(
            f"{what} with a {type(pipe).__name__}",
            reason="this pipeline guides to its end",
            hint="Leave it out; UNet and SD3 pipelines from text can stop.",
        )
    if guidance_scale is None or guidance_scale <= 1:
        raise OptionError(
            f"{what} at guidance scale {guidance_scale or 0:g}",
            reason="there is no guidance to stop",
            hint="Leave it out, or give --guidance-scale above 1.",
        )
    if layout != "auto":
        raise OptionError(
            f"{what} with a stated layout",
            reason="the batch has another one afterwards",
            hint="Leave --guidance out: the layout is read from each batch.",
        )


def _known(pipe: Any) -> tuple[str, ...] | None:
    kinds = (kind.__name__ for kind in type(pipe).__mro__)
    return next((HALVED[name] for name in kinds if name in HALVED), None)


class GuidanceCutoff:
    """To be told of the end of every step of one call of a checked pipeline."""

    def __init__(self, pipe: Any, until: float) -> None:
        self._halved = _known(pipe) or ()
        self._until, self._done = until, False

    @property
    def inputs(self) -> list[str]:
        """The tensors that the pipeline must hand to its callback."""
        return ["latents", *self._halved]

    def __call__(self, pipe: Any, step: int, total: int, tensors: dict[str, Any]) -> None:
        """`step` steps of `total` are done: from some step on the pipeline runs without guidance.

        Step i is guided where i/n < until; the first always is.
        """
        if self._done or step < math.ceil(self._until * total - 1e-9):
            return
        self._done = True
        pipe._guidance_scale = 1.0
        for name in self._halved:
            if tensors.get(name) is not None:
                tensors[name] = tensors[name].chunk(2)[-1]
