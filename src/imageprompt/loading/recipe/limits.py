"""What the values of a recipe may be: each check takes one and raises ValueError with its rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from imageprompt.control import Controls
from imageprompt.core.errors import ImagePromptError
from imageprompt.encoding.options import EncodeOptions

MIN_SIDE, MAX_SIDE = 8, 8192
MAX_PIXELS = 16_000_000
MAX_BATCH = 64
MAX_SHOWN = 16
DTYPES = ("float32", "float16", "bfloat16")
MIXTURE = (
    *("fusion", "weights", "framing", "noise", "noise_seed"),
    *("subtract_text", "subtract_strength", "text", "text_encoder", "face_strength"),
)
"""What of `EncodeOptions` a recipe keeps as it is; its pictures and masks are sources."""
HOW = (*MIXTURE, "face", "lora_mode")


def whole(low: int, high: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not a whole number from {low} to {high}")

    return check


def number(value: Any, low: float, high: float) -> None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_one or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"not a number from {low:g} to {high:g}")


def text(most: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError("not a text")
        if len(value) > most:
            raise ValueError(f"longer than {most} characters")

    return check


def maybe_number(low: float, high: float) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if value is not None:
            number(value, low, high)

    return check


def controls(value: Any) -> None:
    """What `Controls.as_dict` makes."""
    try:
        Controls.from_dict(value)
    except ImagePromptError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def how(value: Any) -> None:
    """How the references were encoded and the LoRA acts: what is not the default."""
    if not isinstance(value, Mapping) or not set(value) <= set(HOW):
        raise ValueError(f"not an object with some of: {', '.join(HOW)}")
    for key, entry in value.items():
        _setting(entry)
        if key in ("subtract_text", "text") and not _words(entry):
            raise ValueError(f"{key} is not a text, or a list of texts")
        if key == "face" and not (entry in ("largest", "all") or _index(entry)):
            raise ValueError("face is not largest, all or a number")
        if key == "lora_mode" and entry not in ("live", "merged"):
            raise ValueError("lora_mode is not live or merged")
    try:
        EncodeOptions.of(**{key: entry for key, entry in value.items() if key in MIXTURE})
    except ImagePromptError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def _words(value: Any) -> bool:
    texts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(entry, str) for entry in texts)


def _index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000


def guidance(value: Any) -> None:
    """A layout's name, or the branches themselves."""
    if isinstance(value, tuple):
        if not 0 < len(value) <= MAX_BATCH or not set(value) <= {"negative", "positive"}:
            raise ValueError("branches are 'negative' or 'positive'")
    elif not isinstance(value, str) or not re.fullmatch(r"[a-z-]{1,60}", value):
        raise ValueError("not the name of a layout, nor a list of branches")


def dtype(value: Any) -> None:
    if value not in DTYPES:
        raise ValueError(f"not one of {', '.join(DTYPES)}")


def device(value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,2})?", value):
        raise ValueError("not one of cpu, cuda, cuda:N, mps, xpu")


def scheduler(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError("not an object")
    name = value.get("_class_name")
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,80}Scheduler", name, re.ASCII):
        raise ValueError("_class_name is not the name of a scheduler")
    for key, entry in value.items():
        text(80)(key)
        _setting(entry)


def _setting(value: Any) -> None:
    """A value of a scheduler's configuration: nothing that could take memory without end."""
    if isinstance(value, list | tuple):
        if len(value) > 10_000:
            raise ValueError("a list of more than 10000 entries")
        for entry in value:
            _setting(entry)
    elif isinstance(value, str):
        text(200)(value)
    elif value is not None and not isinstance(value, bool):
        number(value, -100_000, 100_000)


def versions(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > 50:
        raise ValueError("not an object of version numbers")
    for name, version in value.items():
        text(80)(name)
        text(80)(version)
