"""The result of a request: pictures, their recipes and the image prompts that they share."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from imageprompt.core.atomic_files import check_folder
from imageprompt.loading.recipe import Recipe, write_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.image_prompt import ImagePrompt


@dataclass(frozen=True, repr=False)
class GenerationResult:
    """Pictures, the recipe of each, and the image prompts that they share.

    `len`, indexing and iteration are those of `images`. Notebooks show the pictures.
    """

    images: list[Image]
    recipes: list[Recipe]
    image_prompts: tuple[ImagePrompt, ...] = ()
    """One for each of `recipe.references`."""
    cancelled: bool = False
    """Did `Progress.cancel()` end the call before all pictures were finished?"""
    request: int = 0
    """Position of its request in `Engine.generate_many`."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first picture; the others differ only in `index`."""
        return self.recipes[0]

    @property
    def image_prompt(self) -> ImagePrompt | None:
        """The image prompt of the first reference, usually the only one."""
        return self.image_prompts[0] if self.image_prompts else None

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `0001.png`, `0002.png` ... with their recipes; returns the paths.

        Numbers continue after those in the folder. Nothing is overwritten, also if several
        processes save to one folder at the same time. Raises OptionError if the folder cannot be
        written.
        """
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokens = [prompt.to().as_bytes() for prompt in self.image_prompts]
        paths = []
        for image, recipe in zip(self.images, self.recipes, strict=True):
            for path in free_numbers(folder):
                with contextlib.suppress(FileExistsError):  # another process was faster
                    write_picture(path, image, recipe, tokens, new=True)
                    paths.append(path)
                    break
        return paths

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        return self.images[index]

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def __repr__(self) -> str:
        if not self.recipes:
            return "GenerationResult(no pictures)"
        first, last = self.recipes[0], self.recipes[-1]
        seeds = f"seed {first.seed + first.index}"
        if len(self) > 1:
            seeds = f"seeds {first.seed + first.index} to {last.seed + last.index}"
        count = "1 picture" if len(self) == 1 else f"{len(self)} pictures"
        return f"GenerationResult({count} of {first.width}x{first.height}, {seeds})"

    def _repr_html_(self) -> str:
        """The pictures, for notebooks."""
        return "".join(
            f'<img src="data:image/png;base64,{_png(image)}" title="picture {recipe.index}" '
            'style="margin: 2px">'
            for image, recipe in zip(self.images, self.recipes, strict=True)
        )


def free_numbers(folder: Path) -> Iterator[Path]:
    """The paths of the numbers after those that are taken."""
    taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]
    return (folder / f"{number:04d}.png" for number in itertools.count(max(taken, default=0) + 1))


def _png(image: Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
