"""A recipe in the text chunks of a PNG file, and its image prompts."""

from __future__ import annotations

import base64
import binascii
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import Budget, LimitError, open_regular, png_chunks
from imageprompt.loading.recipe.limits import MAX_REFERENCES
from imageprompt.loading.recipe.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

# Keys of the text chunks: the recipe (JSON), the image prompts (safetensors files, base64), and
# what a workflow did (JSON).
RECIPE_KEY = "imageprompt"
TOKENS_KEY = "imageprompt-tokens"
WORKFLOW_KEY = "imageprompt-workflow"
# Readers refuse text chunks that unpack to more than 1 MiB; base64 turns 3 bytes into 4.
MAX_TOKEN_BYTES = 700_000
_MAX_TEXT = 2**20
_MAX_BYTES = (1 + MAX_REFERENCES) * _MAX_TEXT  # a recipe and the tokens of its references
_MAX_CHUNKS = 1000

Tokens = Sequence[bytes | None]
"""One file for each entry of `Recipe.references`."""


def write_picture(
    path: Path,
    image: Image.Image,
    recipe: Recipe | None,
    tokens: Tokens,
    *,
    new: bool = False,
    workflow: str | None = None,
) -> None:
    """Write a PNG with its recipe and those `tokens` that are not larger than MAX_TOKEN_BYTES.

    `workflow` is what a workflow did, as JSON: its pictures need not have a recipe. `new` replaces
    nothing: FileExistsError if `path` exists.
    """
    with write_atomically(path, new=new) as temporary:
        image.save(temporary, format="PNG", pnginfo=_info(recipe, tokens, workflow))


def picture_bytes(
    image: Image.Image, recipe: Recipe | None, tokens: Tokens, *, workflow: str | None = None
) -> bytes:
    """The file that `write_picture` writes, in memory."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=_info(recipe, tokens, workflow))
    return stream.getvalue()


def _info(recipe: Recipe | None, tokens: Tokens, workflow: str | None = None) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, recipe.to_json(), zip=True)
    if workflow is not None:
        info.add_itxt(WORKFLOW_KEY, workflow, zip=True)
    for index, data in enumerate(tokens):
        if data is not None and len(data) <= MAX_TOKEN_BYTES:
            info.add_itxt(_key(index), base64.b64encode(data).decode(), zip=True)
    return info


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


def _text_chunks(path: Path, where: str) -> dict[str, str]:
    """The texts of a recipe by their keys."""
    reason, hint = "", "Give a PNG written by imageprompt."
    try:
        with open_regular(path) as stream:
            return _our_texts(stream)
    except FileNotFoundError:
        reason, hint = "no such file", "Check the path."
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    except (ValueError, zlib.error) as error:
        reason = f"cannot be read as a PNG ({error})"
    raise OptionError(where, reason=reason, hint=hint)


def _our_texts(stream: BinaryIO) -> dict[str, str]:
    """The text chunks before the pixels whose keys are ours. Raises ValueError, zlib.error."""
    if stream.read(8) != b"\x89PNG\r\n\x1a\n":
        raise ValueError("it does not begin like one")
    budget = Budget(nbytes=_MAX_BYTES, unpacked=_MAX_BYTES, items=_MAX_CHUNKS)
    found: dict[str, str] = {}
    for kind, length in png_chunks(stream, budget):
        if kind == b"IDAT":
            break
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        start = stream.read(min(length, len(RECIPE_KEY)))
        if start != RECIPE_KEY.encode():
            continue
        budget.read(length)
        content = start + stream.read(length - len(start))
        if len(content) < length or zlib.crc32(kind + content) != _number(stream.read(4)):
            raise ValueError("a text chunk is damaged")
        key, text = _text(kind, content, budget)
        if key in found:
            raise ValueError(f"it has two texts called {key:.60}")
        found[key] = text
    return found


def _text(kind: bytes, content: bytes, budget: Budget) -> tuple[str, str]:
    """Key and text of a chunk (PNG specification, 11.3.3)."""
    key, _, rest = content.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # past language and translated key
    elif packed:
        rest = rest[1:]
    if packed:
        unpacker = zlib.decompressobj()
        rest = unpacker.decompress(rest, _MAX_TEXT + 1)
        budget.unpack(len(rest))
        if len(rest) <= _MAX_TEXT and not unpacker.eof:
            raise ValueError("a text chunk is cut short")
    if len(rest) > _MAX_TEXT:
        raise LimitError(f"a text of more than {_MAX_TEXT} bytes")
    return key.decode("latin-1"), rest.decode("utf-8" if kind == b"iTXt" else "latin-1")


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big")
