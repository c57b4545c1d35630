"""From a request to pictures and the recipes that made them, on any diffusers pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request, check_names
from imageprompt.generation.result import GenerationResult

if TYPE_CHECKING:
    from imageprompt.encoding.images.open_image import PictureSource
    from imageprompt.generation.run import Progress

__all__ = ["GenerationResult", "Reference", "generate", "repeat"]


def generate(
    prompt: str = "",
    reference: PictureSource | Sequence[PictureSource] | None = None,
    *,
    base: Any = None,
    also: Sequence[Reference] = (),
    seed: int = 1,
    num_images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_until: float | None = None,
    eta: float | None = None,
    true_cfg_scale: float | None = None,
    guidance: str | Sequence[str] = "auto",
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
    init_image: PictureSource | None = None,
    strength: float | None = None,
    inpaint_mask: Any = None,
    controlnet: Any = None,
    control_image: PictureSource | None = None,
    control_scale: float | None = None,
    library: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int = 4,
    progress: bool = True,
    on_progress: Callable[[str, int, int], object] | None = None,
    on_image: Callable[[GenerationResult], object] | None = None,
    on_step: Callable[[Progress], object] | None = None,
    **reference_options: Any,
) -> GenerationResult:
    """Generate pictures from reference pictures and, optionally, a text prompt.

    - `reference`: a path, the bytes of a file, a PIL image, or a list of these. **All fields of
      `Reference` can be given here**: `adapter`, `scale` (0..2, or by site), `preset`, `schedule`,
      `mask`, `style`, `fusion`, `weights`, `framing`, `negative_reference` ... `also` are further
      references, each with its own adapter and controls. Without any reference, give `scale=0`:
      the base with the text prompt alone.
    - `base`: folder or Hub id of a diffusers pipeline, or a loaded pipeline; None or "bundled" is
      the tiny stack inside the package, "bundled-sd3" the one there with a transformer, and
      "bundled-sd3-128" the one for larger scenes. `size` is (width, height) in pixels.
    - `init_image` is the picture to start from, `strength` (0..1) how much of it changes,
      `inpaint_mask` (white inside) where. It is scaled to `size`, or to about the base's own size.
    - `controlnet` (folder, Hub id or model) with its `control_image` and `control_scale` (0..2).
    - `guidance_until` (0..1) is the share of the steps after which guidance is off: the rest takes
      half the time. UNet and SD3 pipelines only.
    - `eta` (0..1) is the share of the noise that each step draws anew, with DDIM and Euler's steps
      of flow matching. It mends mistakes of the steps before; by default it is 0, and 1 for
      "bundled-sd3-128".
    - `true_cfg_scale` above 1 gives FLUX, whose `guidance_scale` is an input of the model, a
      negative side: a second pass with `negative_prompt` and what stands for no picture.
    - `guidance` is the layout of the guidance batch, for pipelines where it cannot be inferred:
      see `Adapter.use`.
    - `library`: the folder in which `style` names are looked up.
    - Picture i has its own generator, seeded with `seed + i`. `batch_size` pictures are denoised
      together; only rounding depends on that number, and on a CPU in float32 nothing does.
    - `progress` shows one progress bar; without it nothing is printed. `on_progress` is called
      with ("picture 5 of 60", steps done, all steps) instead.
    - `on_step` is called with a `Progress` after every denoising step: its `preview()` is a small
      picture of what the step predicts, its `cancel()` ends the call with the pictures so far.
    - `on_image` is called with a `GenerationResult` of one picture as soon as it is finished, for
      example to save it: `on_image=lambda one: one.save("outputs")`.

    Base, adapters, encoders and encoded references stay loaded for the next call, until their files
    change: see `Engine`, and `release` to free them.

    Raises an ImagePromptError, before anything is loaded wherever possible.
    """
    arguments = {name: value for name, value in locals().items() if name != "reference_options"}
    check_names(reference_options)
    return _run(Request.from_arguments(arguments | reference_options))


def repeat(picture: str | os.PathLike[str], **changes: Any) -> GenerationResult:
    """Make a picture again, bit for bit, from the recipe in its PNG file.

    `changes` are arguments of `generate` that replace what the recipe says; those of `Reference`
    change its first reference. Unless `num_images` or `seed` is changed, only this picture of its
    request is made.

    A recipe never causes a download: base, adapters and ControlNet must be bundled, local, or in
    the Hub's cache, unless they are among the changes. They must have the same weights, and masks,
    init image and control image must be unchanged files. Reference pictures are not needed: their
    tokens are in the PNG file, unless they are too large for it.

    The bits are the same on the same machine with the same library versions; a warning names any
    that differ. Raises an ImagePromptError.
    """
    from imageprompt.generation.replay import request_from_recipe
    from imageprompt.loading.recipe import read_picture

    recipe, tokens = read_picture(picture)
    return _run(request_from_recipe(recipe, tokens, changes))


def _run(request: Request) -> GenerationResult:
    request.check()
    from imageprompt.generation.engine import run_request

    return run_request(request)
