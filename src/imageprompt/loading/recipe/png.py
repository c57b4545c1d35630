"""A recipe in the text chunks of a PNG file, and the image prompts beside it."""

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
from imageprompt.loading.recipe.reading import read_recipe
from imageprompt.loading.recipe.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

# Keys of the PNG text chunks: the recipe (JSON) and the image prompts (safetensors files, base64).
RECIPE_KEY = "imageprompt"
TOKENS_KEY = "imageprompt-tokens"
# Readers refuse text chunks that unpack to more than a MiB; base64 makes 4 bytes of 3.
MAX_TOKEN_BYTES = 700_000

Tokens = Sequence[bytes | None]
"""One file for each entry of `Recipe.shown`."""


def write_picture(path: Path, image: Image.Image, recipe: Recipe, tokens: Tokens) -> None:
    """Write `image` as PNG with its recipe, and with those `tokens` that are not too large."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(RECIPE_KEY, recipe.to_json(), zip=True)
    for index, data in enumerate(tokens):
        if data is not None and len(data) <= MAX_TOKEN_BYTES:
            info.add_itxt(_key(index), base64.b64encode(data).decode(), zip=True)
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_picture(path: str | os.PathLike[str]) -> tuple[Recipe, list[bytes | None]]:
    """The recipe in a PNG file, and the image prompts (safetensors files) that are in there too.

    One for each entry of `recipe.shown`, None where it is not there.

    Only the text chunks before the pixels are read. Raises OptionError.
    """
    where = f"{os.fspath(path)!r}"
    texts = _text_chunks(Path(path), where)
    text = texts.get(RECIPE_KEY)
    if not isinstance(text, str):
        raise OptionError(
            where,
            reason="it carries no imageprompt recipe",
            hint="Give a PNG that imageprompt wrote; programs that edit a picture drop it.",
        )
    recipe = read_recipe(text, where)
    return recipe, [_decoded(texts.get(_key(index)), where) for index in range(len(recipe.shown))]


def _decoded(encoded: object, where: str) -> bytes | None:
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
        raise OptionError(where, reason="there is no such file", hint="Check the path.")
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
            where, reason="it cannot be read as a PNG", hint="Give a PNG that imageprompt wrote."
        ) from error
