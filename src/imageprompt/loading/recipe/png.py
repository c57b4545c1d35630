"""A recipe in the text chunks of a PNG file, and its image prompts."""

from __future__ import annotations

import base64
import binascii
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.loading.recipe.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

# Keys of the text chunks: the recipe (JSON) and the image prompts (safetensors files, base64).
RECIPE_KEY = "imageprompt"
TOKENS_KEY = "imageprompt-tokens"
# Readers refuse text chunks that unpack to more than 1 MiB; base64 turns 3 bytes into 4.
MAX_TOKEN_BYTES = 700_000

Tokens = Sequence[bytes | None]
"""One file for each entry of `Recipe.references`."""


def write_picture(path: Path, image: Image.Image, recipe: Recipe, tokens: Tokens) -> None:
    """Write a PNG with its recipe and those `tokens` that are not larger than MAX_TOKEN_BYTES."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(RECIPE_KEY, recipe.to_json(), zip=True)
    for index, data in enumerate(tokens):
        if data is not None and len(data) <= MAX_TOKEN_BYTES:
            info.add_itxt(_key(index), base64.b64encode(data).decode(), zip=True)
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_picture(path: str | os.PathLike[str]) -> tuple[Recipe, list[bytes | None]]:
    """The recipe in a PNG file, and for each of its references the image prompt (the bytes of a
    safetensors file), or None if the picture does not hold it.

    Reads only the text chunks before the pixels. Raises OptionError.
    """
    from imageprompt.loading.recipe.reading import read_recipe

    where = f"{os.fspath(path)!r}"
    texts = _text_chunks(Path(path), where)
    text = texts.get(RECIPE_KEY)
    if not isinstance(text, str):
        raise OptionError(
            where,
            reason="carries no imageprompt recipe",
            hint="Give a PNG written by imageprompt; image editors remove the recipe.",
        )
    recipe = read_recipe(text, where)
    return recipe, [_decode(texts.get(_key(i)), where) for i in range(len(recipe.references))]


def _decode(encoded: object, where: str) -> bytes | None:
    if not isinstance(encoded, str):
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OptionError(f"image prompt in {where}", reason=f"damaged ({error})") from error


def _key(index: int) -> str:
    return f"{TOKENS_KEY}-{index}" if index else TOKENS_KEY


def _text_chunks(path: Path, where: str) -> dict[Any, Any]:
    from PIL import Image

    if not path.is_file():
        raise OptionError(where, reason="no such file", hint="Check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded
            with Image.open(path, formats=["PNG"]) as image:
                return dict(image.info)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise OptionError(
            where, reason="cannot be read as a PNG", hint="Give a PNG written by imageprompt."
        ) from error
