"""Limits of the values in a request and in a recipe that a stranger may have written.

Each check is called with a value and raises ValueError with the rule that is broken. Annotating a
field with one makes pydantic apply it: `seed: Annotated[int, SEED]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imageprompt.control import Controls
from imageprompt.core.errors import ImagePromptError
from imageprompt.encoding.options import EncodeOptions

MIN_SIDE, MAX_SIDE = 8, 8192
MAX_PIXELS = 16_000_000
MAX_BATCH = 64
MAX_BATCH_PIXELS = MAX_BATCH * 1024**2
"""Of the pictures that are denoised together, in sum: 64 of SDXL's, or 4 of the largest."""
MAX_REFERENCES = 16
DTYPES = ("float32", "float16", "bfloat16")
ENCODE_OPTIONS = (
    *("fusion", "weights", "framing", "noise", "noise_seed"),
    *("subtract_text", "subtract_strength", "text", "text_encoder", "face_strength"),
)
"""The fields of `EncodeOptions` that a recipe keeps as they are; pictures and masks are assets."""
RECORDED_OPTIONS = (*ENCODE_OPTIONS, "face")
"""The keys of `ReferenceMetadata.encode_options`."""
LORA_MODES = ("live", "merged")


class Limit:
    """Base of the checks; pydantic applies them in place of the annotated type."""

    def __call__(self, value: Any) -> None:
        raise NotImplementedError

    def checked(self, value: Any) -> Any:
        self(value)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.checked)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return self.json_schema()

    def json_schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Whole(Limit):
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def __call__(self, value: Any) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not self.low <= value <= self.high:
            raise ValueError(f"not a whole number from {self.low} to {self.high}")

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Number(Limit):
    """A finite number from `low` to `high`; None too, if `optional`."""

    low: float
    high: float
    optional: bool = False

    def __call__(self, value: Any) -> None:
        if value is None and self.optional:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not self.low <= value <= self.high:
            raise ValueError(f"not a number from {self.low:g} to {self.high:g}")

    def json_schema(self) -> dict[str, Any]:
        number = {"type": "number", "minimum": self.low, "maximum": self.high}
        return {"anyOf": [number, {"type": "null"}]} if self.optional else number


@dataclass(frozen=True)
class Text(Limit):
    """A text of at most so many characters."""

    longest: int

    def __call__(self, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError("not a text")
        if len(value) > self.longest:
            raise ValueError(f"longer than {self.longest} characters")

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.longest}


@dataclass(frozen=True)
class Items(Limit):
    """A list of at most so many entries, each of which pydantic checks by its type."""

    most: int

    def __call__(self, value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) > self.most:
            raise ValueError(f"not a list of at most {self.most} entries")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "maxItems": self.most}


@dataclass(frozen=True)
class Check(Limit):
    """Any other rule, and the JSON types that it lets pass."""

    rule: Callable[[Any], None]
    types: tuple[str, ...]

    def __call__(self, value: Any) -> None:
        self.rule(value)

    def json_schema(self) -> dict[str, Any]:
        return {"type": self.types[0] if len(self.types) == 1 else list(self.types)}


# ── rules ───────────────────────────────────────────────────────────────────────────────────────


def _dtype(value: Any) -> None:
    if value not in DTYPES:
        raise ValueError(f"not one of {', '.join(DTYPES)}")


def _device(value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,2})?", value):
        raise ValueError("not one of cpu, cuda, cuda:N, mps, xpu")


def _guidance(value: Any) -> None:
    """The name of a layout, or its branches."""
    if isinstance(value, tuple | list):
        known = all(branch in ("negative", "positive") for branch in value)
        if not 0 < len(value) <= MAX_BATCH or not known:
            raise ValueError("branches are 'negative' or 'positive'")
    elif not isinstance(value, str) or not re.fullmatch(r"[a-z-]{1,60}", value):
        raise ValueError("not the name of a layout, nor a list of branches")


def _asset_name(value: Any) -> None:
    if value is None:
        return
    Text(4096)(value)
    if "://" in value or value.startswith(("//", r"\\")):
        raise ValueError("a name is a path or a Hub id")


def _asset_hash(value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", value):
        raise ValueError("a hash is 16 or 64 hex digits")


def _object(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError("not an object")


def _controls(value: Any) -> None:
    """What `Controls.as_dict` returns."""
    try:
        Controls.from_dict(value)
    except ImagePromptError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def _encode_options(value: Any) -> None:
    """The options of `Adapter.encode` that are not the default."""
    _recorded_options(value)
    try:
        EncodeOptions.of(**{key: value[key] for key in ENCODE_OPTIONS if key in value})
    except ImagePromptError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def _recorded_options(value: Any) -> None:
    """The same, without what `EncodeOptions` itself checks."""
    if not isinstance(value, Mapping) or not set(value) <= set(RECORDED_OPTIONS):
        raise ValueError(f"not an object with some of: {', '.join(RECORDED_OPTIONS)}")
    for key, entry in value.items():
        _setting(entry)
        if key in ("subtract_text", "text") and not _texts(entry):
            raise ValueError(f"{key} is not a text, or a list of texts")
        if key == "face" and not (entry in ("largest", "all") or _index(entry)):
            raise ValueError("face is not largest, all or a number")


def _texts(value: Any) -> bool:
    texts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(entry, str) for entry in texts)


def _index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000


def _lora_mode(value: Any) -> None:
    if value not in LORA_MODES:
        raise ValueError(f"not {' or '.join(LORA_MODES)}")


def _scheduler(value: Any) -> None:
    _object(value)
    name = value.get("_class_name")
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,80}Scheduler", name, re.ASCII):
        raise ValueError("_class_name is not the name of a scheduler")
    for key, entry in value.items():
        Text(80)(key)
        _setting(entry)


def _setting(value: Any) -> None:
    """A value of a configuration: bounded, so that it cannot fill the memory."""
    if isinstance(value, list | tuple):
        if len(value) > 10_000:
            raise ValueError("a list of more than 10000 entries")
        for entry in value:
            _setting(entry)
    elif isinstance(value, str):
        Text(200)(value)
    elif value is not None and not isinstance(value, bool):
        Number(-100_000, 100_000)(value)


def _versions(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > 50:
        raise ValueError("not an object of version numbers")
    for name, version in value.items():
        Text(80)(name)
        Text(80)(version)
        if not version.isprintable():
            raise ValueError("not a version number")


PROMPT = Text(20_000)
SEED = Whole(0, 2**63 - 1)
INDEX = Whole(0, 10**6 - 1)
NUM_IMAGES = Whole(1, 10**6)
BATCH_SIZE = Whole(1, MAX_BATCH)
STEPS = Whole(1, 1000)
GUIDANCE_SCALE = Number(0, 1000, optional=True)
GUIDANCE_UNTIL = Number(0, 1, optional=True)
ETA = Number(0, 1, optional=True)
SIDE = Whole(MIN_SIDE, MAX_SIDE)
STRENGTH = Number(0, 1, optional=True)
CONTROL_SCALE = Number(0, 2, optional=True)
DTYPE = Check(_dtype, ("string",))
DEVICE = Check(_device, ("string",))
GUIDANCE = Check(_guidance, ("string", "array"))
NAME = Check(_asset_name, ("string", "null"))
HASH = Check(_asset_hash, ("string",))
OBJECT = Check(_object, ("object",))
CONTROLS = Check(_controls, ("object",))
ENCODE = Check(_encode_options, ("object",))
RECORDED = Check(_recorded_options, ("object",))
LORA_MODE = Check(_lora_mode, ("string",))
SCHEDULER = Check(_scheduler, ("object",))
VERSIONS = Check(_versions, ("object",))
