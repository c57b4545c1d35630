"""What made a picture, in full: written into its PNG file, and read back with suspicion."""

from __future__ import annotations

from imageprompt.recipe.limits import DTYPES, HOW, MIN_SIDE, MIXTURE
from imageprompt.recipe.png import RECIPE_KEY, TOKENS_KEY, read_picture, write_picture
from imageprompt.recipe.recipe import FORMAT, Recipe, Shown, check_size, checked
from imageprompt.recipe.source import Source

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
