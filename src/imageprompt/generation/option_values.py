"""How the values of `generate`'s options are written: as text in flags, and in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from imageprompt.control.controls import Controls
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.core.schema import Option
from imageprompt.core.untrusted import parse_json, read_regular
from imageprompt.loading.recipe import limits

JsonSchema = Mapping[str, Any]

MAX_CONTROLS = 2**20  # bytes of a file of controls

# Headings of the options in help texts.
REFERENCES = "references"
CONTROL = "control: how strongly, where and when"
ENCODING = "encoding of the references"
FACES = "faces"
TEXT = "text"
START = "starting images"
SAMPLING = "sampling"
MODELS = "models"


def or_null(*kinds: JsonSchema) -> JsonSchema:
    """The JSON schema of a value of one of these kinds, or null."""
    return {"anyOf": [*kinds, {"type": "null"}]}


def list_of(kind: JsonSchema) -> JsonSchema:
    return {"type": "array", "items": kind}


STRING: JsonSchema = {"type": "string"}
NUMBER: JsonSchema = {"type": "number"}
OBJECT: JsonSchema = {"type": "object"}
FILE = or_null(STRING)
FILES = or_null(STRING, list_of(STRING))
TEXTS = FILES
NUMBERS = or_null(list_of(NUMBER))
SCALE: JsonSchema = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 2}, STRING, OBJECT, list_of(STRING)]
}
"""See `imageprompt.control.Scale`."""

# Options that several commands have, as types of annotated fields.
_sampling = partial(Option, group=SAMPLING)
_models = partial(Option, group=MODELS)
NumImages = Annotated[
    int,
    _sampling(
        "number of pictures (default 1)",
        "N",
        ge=limits.NUM_IMAGES.low,
        le=limits.NUM_IMAGES.high,
    ),
]
Seed = Annotated[
    int,
    _sampling(
        "picture i uses the seed N + i (default 1)", "N", ge=limits.SEED.low, le=limits.SEED.high
    ),
]
Steps = Annotated[
    int | None,
    _sampling(
        "denoising steps (default: the pipeline's)",
        "N",
        ge=limits.STEPS.low,
        le=limits.STEPS.high,
    ),
]
GuidanceScale = Annotated[
    float | None,
    _sampling(
        "classifier-free guidance scale (default: the pipeline's)",
        "G",
        ge=limits.GUIDANCE_SCALE.low,
        le=limits.GUIDANCE_SCALE.high,
    ),
]
Base = Annotated[
    Any,
    _models(
        "diffusers pipeline, or bundled-sd3, bundled-sd3-128 (default: bundled)",
        "PATH_OR_HUB_ID",
        json=FILE,
    ),
]
LibraryFolder = Annotated[
    Any,
    _models(
        "folder of the style library (default: $IMAGEPROMPT_LIBRARY, else your data folder)",
        "DIR",
        json=FILE,
    ),
]
Dtype = Annotated[
    str | None,
    _models(
        "float32, float16 or bfloat16 (default: float32 on the CPU, else float16)",
        "TYPE",
        json=or_null({"enum": list(limits.DTYPES), **STRING}),
    ),
]
Device = Annotated[
    str | None, _models("cpu, cuda, cuda:N, mps, xpu (default: the best available)", "NAME")
]


# ── text of flags ───────────────────────────────────────────────────────────────────────────────


def parse_scale(text: str) -> Any:
    """`0.8`, `style=1,layout=0.2`, ComfyUI's `3:1.0,6:0.5`, JSON, or a .json file.

    Raises OptionError.
    """
    if text.endswith(".json"):  # `imageprompt probe --output` writes such files
        try:
            text = read_regular(text, MAX_CONTROLS).decode()
        except (OSError, ValueError) as error:  # UnicodeDecodeError, a NUL in the path
            raise OptionError(f"scale file {text!r}", reason=f"cannot be read ({error})") from None
    if text.lstrip().startswith(("{", "[")):
        try:
            return parse_json(text)
        except ValueError as error:
            raise OptionError(f"scale {text!r:.80}", reason=f"not valid JSON ({error})") from None
    if "=" in text:
        return _scale_by_site(text)
    return text if ":" in text else _number(text, "scale", "a number, or style=1,layout=0.2")


def parse_controls(text: str) -> Controls:
    """The controls in a file that `imageprompt tune` wrote. Raises OptionError, ScaleError."""
    what = f"controls file {text!r}"
    try:
        data = parse_json(read_regular(text, MAX_CONTROLS))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(what, reason=f"cannot be read ({reason})") from None
    try:
        return Controls.from_dict(data)
    except ImagePromptError as error:
        raise OptionError(what, reason=str(error)) from error


def _scale_by_site(text: str) -> dict[str, float]:
    scales: dict[str, float] = {}
    for part in text.split(","):
        site, _, value = (word.strip() for word in part.partition("="))
        if site in scales:
            raise OptionError(f"scale {text!r}", reason=f"names {site!r} twice")
        scales[site] = _number(value, "scale", "a number, or style=1,layout=0.2")
    return scales


def parse_numbers(text: str) -> list[float]:
    """`0.7,0.3`. Raises OptionError."""
    return [_number(part, "weights", "numbers such as 0.7,0.3") for part in text.split(",")]


def parse_layout(text: str) -> str | list[str]:
    """The name of a guidance layout, or branches such as `negative,positive`.

    Raises OptionError for a number, which is meant for --guidance-scale.
    """
    try:
        number = float(text)
    except ValueError:
        return text.split(",") if "," in text else text
    raise OptionError(
        f"guidance {text!r}",
        reason="not the name of a guidance layout",
        hint=f"Did you mean --guidance-scale {number:g}?",
    )


def parse_size(text: str) -> tuple[int, int]:
    """`512x768` (width x height) or `512` (square), in pixels. Raises OptionError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and side.isascii() for side in sides):
        raise OptionError(
            f"size {text!r}", reason="not a size in pixels", hint="Write 512 or 512x768."
        )
    width, height = sides[0], sides[-1]
    return int(width), int(height)


def number_or_word(text: str) -> int | str:
    """`0` is a number, `largest` stays a word."""
    return int(text) if text.isdecimal() else text


def _number(text: str, what: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(
            f"{what} {text!r}", reason="not a number", hint=f"Give {expected}."
        ) from None
