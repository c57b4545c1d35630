"""What made a picture, in full: written into its PNG file, and read back with suspicion."""

from __future__ import annotations

from imageprompt.loading.recipe.limits import DTYPES, HOW, MIN_SIDE, MIXTURE
from imageprompt.loading.recipe.png import RECIPE_KEY, TOKENS_KEY, read_picture, write_picture
from imageprompt.loading.recipe.recipe import FORMAT, Recipe, Shown, Source, check_size, checked

__all__ = [
    "DTYPES",
    "FORMAT",
    "HOW",
    "MIN_SIDE",
    "MIXTURE",
    "RECIPE_KEY",
    "TOKENS_KEY",
    "Recipe",
    "Shown",
    "Source",
    "check_size",
    "checked",
    "read_picture",
    "write_picture",
]
