"""What a request gives: pictures, their recipes and the image prompts that they share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.core.atomic_files import check_folder
from imageprompt.loading.recipe import Recipe, write_picture

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.encoding.image_prompt import ImagePrompt


@dataclass(frozen=True)
class GenerationResult:
    """Pictures, the recipe of each, and the image prompts that they share."""

    images: list[Image.Image]
    recipes: list[Recipe]
    image_prompts: tuple[ImagePrompt, ...] = ()
    """One for each of `recipe.shown`."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first picture; the others differ in `index` alone."""
        return self.recipes[0]

    @property
    def image_prompt(self) -> ImagePrompt | None:
        """The first, which mostly is all."""
        return self.image_prompts[0] if self.image_prompts else None

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `0001.png`, `0002.png` ... with their recipes inside; returns the paths.

        Numbers go on after those in the folder: nothing is overwritten.
        """
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokens = [_as_bytes(prompt) for prompt in self.image_prompts]
        taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]
        paths = []
        numbered = zip(self.images, self.recipes, strict=True)
        for number, (image, recipe) in enumerate(numbered, start=max(taken, default=0) + 1):
            path = folder / f"{number:04d}.png"
            write_picture(path, image, recipe, tokens)
            paths.append(path)
        return paths


def _as_bytes(prompt: ImagePrompt) -> bytes:
    """As `ImagePrompt.save` writes it, without what was prepared: that can be made again."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.safetensors"
        prompt.to().save(path)
        return path.read_bytes()
