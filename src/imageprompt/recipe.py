"""What made a picture, in full: written into its PNG file, and read back with suspicion."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.controls import MAX_SCALE, Scale
from imageprompt.errors import OptionError
from imageprompt.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1

# Keys of the PNG text chunks: the recipe (JSON) and the image prompt (a safetensors file, base64).
RECIPE_KEY = "imageprompt"
TOKENS_KEY = "imageprompt-tokens"
# Readers refuse text chunks that unpack to more than a MiB; base64 makes 4 bytes of 3.
MAX_TOKEN_BYTES = 700_000
MAX_JSON_BYTES = 256_000

MIN_SIDE, MAX_SIDE = 8, 8192
MAX_PIXELS = 16_000_000
MAX_BATCH = 64
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One ingredient: how the user named it (None: an object in memory), and what it was.

    `hash` is the sha256 of a file (64 hex digits: adapter, references) or the fingerprint of
    weights (16: base, encoder).
    """

    name: str | None
    hash: str
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a picture. Checked on creation; raises OptionError."""

    prompt: str
    negative_prompt: str
    scale: Scale
    seed: int
    """Of the request; picture i is drawn from seed + i."""
    index: int
    """Which picture of the request this is, from 0."""
    num_images: int
    batch_size: int
    """Pictures denoised side by side: rounding depends on it, so a repeat uses the same."""
    steps: int
    guidance_scale: float | None
    """None where the pipeline has no such option."""
    width: int
    height: int
    dtype: str
    device: str
    scheduler: Mapping[str, Any]
    """Its diffusers configuration, `_class_name` included."""
    base: Source
    adapter: Source | None
    encoder: Source | None
    references: tuple[Source, ...]
    versions: Mapping[str, str]
    format: int = FORMAT

    def __post_init__(self) -> None:
        for item in fields(self):
            checked(item.name, getattr(self, item.name))
        if self.index >= self.num_images:
            raise OptionError(
                f"recipe: index {self.index}", rule=f"only {self.num_images} pictures were made"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> Recipe:
        """Parse what a stranger may have written. Raises OptionError naming `where` and the key."""
        try:
            return cls(**_arguments(text))
        except TypeError as error:  # a key is missing: the dataclass names it
            reason = str(error).removeprefix("Recipe.__init__() ")
            raise OptionError(f"recipe in {where}", rule=reason) from error
        except (ValueError, RecursionError) as error:
            raise OptionError(
                f"recipe in {where}", rule=str(error) or "nested too deeply"
            ) from error
        except OptionError as error:
            raise OptionError(f"recipe in {where}: {error.what}", rule=error.rule) from error


def checked(name: str, value: Any) -> Any:
    """`value` if it is a possible value of the recipe field `name`; else OptionError."""
    try:
        _CHECKS[name](value)
    except ValueError as error:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise OptionError(f"{name.replace('_', ' ')} {shown}", rule=str(error)) from None
    return value


def check_size(width: int, height: int) -> None:
    """Raises OptionError for a picture size nobody can want."""
    for name, value in (("width", width), ("height", height)):
        checked(name, value)
    if width * height > MAX_PIXELS:
        raise OptionError(
            f"size {width}x{height}", rule=f"more than {MAX_PIXELS // 10**6} million pixels"
        )


def write_picture(path: Path, image: Image.Image, recipe: Recipe, tokens: bytes | None) -> None:
    """Write `image` as PNG with its recipe, and with `tokens` where they are not too large."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(RECIPE_KEY, recipe.to_json(), zip=True)
    if tokens is not None and len(tokens) <= MAX_TOKEN_BYTES:
        info.add_itxt(TOKENS_KEY, base64.b64encode(tokens).decode(), zip=True)
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_picture(path: str | os.PathLike[str]) -> tuple[Recipe, bytes | None]:
    """The recipe in a PNG file, and its image prompt (a safetensors file) if it is in there too.

    Only the text chunks before the pixels are read. Raises OptionError.
    """
    where = f"{os.fspath(path)!r}"
    texts = _text_chunks(Path(path), where)
    text = texts.get(RECIPE_KEY)
    if not isinstance(text, str):
        raise OptionError(
            where,
            rule="it carries no imageprompt recipe",
            remedy="Give a PNG that imageprompt wrote; programs that edit a picture drop it.",
        )
    recipe = Recipe.from_json(text, where)
    encoded = texts.get(TOKENS_KEY)
    if not isinstance(encoded, str):
        return recipe, None
    try:
        return recipe, base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OptionError(f"image prompt in {where}", rule=f"damaged ({error})") from error


def _text_chunks(path: Path, where: str) -> dict[Any, Any]:
    from PIL import Image

    if not path.is_file():
        raise OptionError(where, rule="there is no such file", remedy="Check the path.")
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
            where, rule="it cannot be read as a PNG", remedy="Give a PNG that imageprompt wrote."
        ) from error


def _arguments(text: str) -> dict[str, Any]:
    """JSON to the keyword arguments of Recipe. Raises ValueError."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES // 1000} kB")
    data = json.loads(text, parse_constant=_no_constant)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if data.get("format") != FORMAT:
        raise ValueError(f"format {data.get('format')!r}; this version reads {FORMAT}")
    _known(data, Recipe, "")
    for name in ("base", "adapter", "encoder"):
        if data.get(name) is not None:
            data[name] = _source(data[name], name)
    if isinstance(data.get("references"), list):
        data["references"] = tuple(_source(entry, "references") for entry in data["references"])
    return data


def _source(data: object, name: str) -> Source:
    if not isinstance(data, dict) or not {"name", "hash"} <= data.keys():
        raise ValueError(f"{name}: not an object with name and hash")
    _known(data, Source, f"{name}: ")
    return Source(**data)


def _known(data: Mapping[str, Any], of: type, where: str) -> None:
    names = [item.name for item in fields(of)]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            raise ValueError(
                f"{where}unknown key {key[:60]!r}" + (f", not {near[0]!r}" if near else "")
            )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number here")


# The checks: each takes a value and raises ValueError with the rule that it breaks.


def _whole(low: int, high: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not a whole number from {low} to {high}")

    return check


def _number(value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"not a number from {low:g} to {high:g}")


def _text(most: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError("not a text")
        if len(value) > most:
            raise ValueError(f"longer than {most} characters")

    return check


def _scale(value: Any) -> None:
    if not isinstance(value, Mapping):
        _number(value, 0, MAX_SCALE)
        return
    for site, scale in value.items():
        _text(200)(site)
        _number(scale, 0, MAX_SCALE)


def _guidance(value: Any) -> None:
    if value is not None:
        _number(value, 0, 1000)


def _dtype(value: Any) -> None:
    if value not in DTYPES:
        raise ValueError(f"not one of {', '.join(DTYPES)}")


def _device(value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,2})?", value):
        raise ValueError("not one of cpu, cuda, cuda:N, mps, xpu")


def _scheduler(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError("not an object")
    name = value.get("_class_name")
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,80}Scheduler", name, re.ASCII):
        raise ValueError("_class_name is not the name of a scheduler")
    for key, entry in value.items():
        _text(80)(key)
        _setting(entry)


def _setting(value: Any) -> None:
    """A value of a scheduler's configuration: nothing that could take memory without end."""
    if isinstance(value, list | tuple):
        if len(value) > 10_000:
            raise ValueError("a list of more than 10000 entries")
        for entry in value:
            _setting(entry)
    elif isinstance(value, str):
        _text(200)(value)
    elif value is not None and not isinstance(value, bool):
        _number(value, -100_000, 100_000)


def _a_source(value: Any) -> None:
    if not isinstance(value, Source):
        raise ValueError("not an object with name and hash")
    if value.name is not None:
        _text(4096)(value.name)
        if "://" in value.name or value.name.startswith(("//", r"\\")):
            raise ValueError("the name of an ingredient is a path or a Hub id")
    if not isinstance(value.hash, str) or not re.fullmatch(
        r"[0-9a-f]{16}|[0-9a-f]{64}", value.hash
    ):
        raise ValueError("a hash is 16 or 64 hex digits")
    if not isinstance(value.spec, Mapping):
        raise ValueError("spec is not an object")


def _maybe_source(value: Any) -> None:
    if value is not None:
        _a_source(value)


def _references(value: Any) -> None:
    if not isinstance(value, tuple) or len(value) > 1000:
        raise ValueError("not a list of at most 1000 references")
    for entry in value:
        _a_source(entry)


def _versions(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > 50:
        raise ValueError("not an object of version numbers")
    for name, version in value.items():
        _text(80)(name)
        _text(80)(version)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "prompt": _text(20_000),
    "negative_prompt": _text(20_000),
    "scale": _scale,
    "seed": _whole(0, 2**63 - 1),
    "index": _whole(0, 10**6 - 1),
    "num_images": _whole(1, 10**6),
    "batch_size": _whole(1, MAX_BATCH),
    "steps": _whole(1, 1000),
    "guidance_scale": _guidance,
    "width": _whole(MIN_SIDE, MAX_SIDE),
    "height": _whole(MIN_SIDE, MAX_SIDE),
    "dtype": _dtype,
    "device": _device,
    "scheduler": _scheduler,
    "base": _a_source,
    "adapter": _maybe_source,
    "encoder": _maybe_source,
    "references": _references,
    "versions": _versions,
    "format": _whole(FORMAT, FORMAT),
}
