"""Recipes: all that determines a picture, kept in its PNG file and checked when read back."""

from __future__ import annotations

from imageprompt.loading.recipe.png import (
    RECIPE_KEY,
    TOKENS_KEY,
    WORKFLOW_KEY,
    picture_bytes,
    read_picture,
    write_picture,
)
from imageprompt.loading.recipe.recipe import (
    FORMAT,
    AssetRecord,
    Recipe,
    ReferenceMetadata,
    check_asset,
    check_batch,
    check_limit,
    check_size,
    library_versions,
)

__all__ = [
    "FORMAT",
    "RECIPE_KEY",
    "TOKENS_KEY",
    "WORKFLOW_KEY",
    "AssetRecord",
    "Recipe",
    "ReferenceMetadata",
    "check_asset",
    "check_batch",
    "check_limit",
    "check_size",
    "library_versions",
    "picture_bytes",
    "read_picture",
    "write_picture",
]
