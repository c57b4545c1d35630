"""From a request to pictures and the recipe that made them, on any diffusers pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imageprompt.generation.reference import Reference
from imageprompt.generation.replay import request_of
from imageprompt.generation.request import Request, check_names
from imageprompt.generation.result import GenerationResult
from imageprompt.loading.recipe import read_picture

if TYPE_CHECKING:
    from imageprompt.encoding.images.open_image import PictureSource

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
    **shown: Any,
) -> GenerationResult:
    """Pictures from reference picture(s) and, optionally, words.

    - `reference`: a path, a file's bytes, a PIL picture, or a list of these. **All arguments of
      `Reference` can be given here**: `adapter`, `scale` (0..2, or by site), `preset`, `schedule`,
      `mask`, `style`, `fusion`, `weights`, `framing`, `negative_reference` ... `also` are further
      references, each with an adapter and controls of its own. With nothing to show, only
      `scale=0` makes sense: words alone, the base as it is.
    - `base`: folder or Hub id of a diffusers pipeline, or a loaded pipeline; None is the bundled
      tiny stack. `size` is (width, height) in pixels.
    - `init_image` is where the pictures start from; `strength` (0..1) says how much of it changes,
      `inpaint_mask` where (white). It is scaled to `size`, or near to the base's own size.
    - `controlnet` (folder, Hub id or model) with its `control_image` and `control_scale`, 0..2.
    - `guidance` says how a base stacks its batch where that cannot be told: see `Adapter.use`.
    - `library`: the folder that `style` names are looked up in.
    - Picture i has a generator of its own, seeded with `seed + i`. `batch_size` of them are
      denoised side by side; rounding may depend on that number, nothing else does.

    Raises an ImagePromptError before anything is computed wherever that can be told.
    """
    arguments = {name: value for name, value in locals().items() if name != "shown"}
    check_names(shown)
    return _run(Request.of(arguments | shown))


def repeat(picture: str | os.PathLike[str], **changes: Any) -> GenerationResult:
    """Make a picture again, bit for bit, from the recipe in its PNG file.

    `changes` are arguments of `generate` that replace what the recipe says (those of `Reference`
    in its first one); without `num_images` or `seed` among them, only this one picture of its
    request is made. Base, adapters and ControlNet are the bundled ones, local paths, or in the
    Hub's local cache: a recipe never makes this download anything, only a `base` or `adapter` among
    the changes does. Unless they are among the changes, they must be what they were, and so must
    masks, init and control image lie where they lay. References need not: their tokens are in the
    file, where they are not too large. The same bits need the same machine and library versions;
    where those differ, a warning says so.
    """
    recipe, tokens = read_picture(picture)
    return _run(request_of(recipe, tokens, changes))


def _run(request: Request) -> GenerationResult:
    request.check()
    from imageprompt.generation.run import run

    return run(request)
