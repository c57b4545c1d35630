"""The fields of OpenAI's images API: what they mean here, and which are refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from imageprompt.serve.api.common import wrong_option
from imageprompt.serve.errors import bad_request

Format = Literal["png", "webp", "jpeg"]

STEPS_OF: Mapping[str, float] = {
    "low": 0.5,
    "medium": 1.0,
    "high": 1.5,
    "xhigh": 2.0,
    "max": 3.0,
}
"""Quality -> times the base's own number of steps."""
_SAME_AS = {"auto": "medium", "standard": "medium", "hd": "high"}
SCALE_OF: Mapping[str, float] = {"low": 0.5, "high": 1.0}
"""Input fidelity -> scale of references that have none."""
MAX_PARTIAL_IMAGES = 3

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "quality": (*STEPS_OF, *_SAME_AS),
    "background": ("auto", "opaque"),
    "output_format": ("png", "webp", "jpeg"),
    "response_format": ("b64_json", "url"),
    "moderation": ("auto", "low"),
    "input_fidelity": tuple(SCALE_OF),
}
_TEXTS = ("prompt", "model", "size", "user", "safety_identifier")
_NUMBERS = {
    "n": (1, 1000),
    "output_compression": (0, 100),
    "partial_images": (0, MAX_PARTIAL_IMAGES),
}
_REFUSED = ("style", "markup", "complexity", "frame_count", "frame_duration_ms", "svg")
"""They would change the picture, and nothing here does what they ask for."""
_OTHERS = ("stream", "ip_adapter")
_KNOWN = (*_TEXTS, *_NUMBERS, *_CHOICES, *_OTHERS)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked fields of a generation or an edit."""

    prompt: str
    model: str | None = None
    n: int = 1
    size: tuple[int, int] | None = None
    quality: str = "medium"
    output_format: Format = "png"
    output_compression: int = 100
    url: bool = False
    """Are pictures answered as URLs?"""
    stream: bool = False
    partial_images: int = 0
    input_fidelity: str | None = None
    safety_identifier: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    """The object of `ip_adapter`."""


def options_of(values: Mapping[str, Any], *, edit: bool) -> Options:
    """Raises ApiError naming the first field that is wrong or not supported."""
    for name, value in values.items():
        _check(name, value, edit)
    if "prompt" not in values:
        raise bad_request("prompt: missing", param="prompt")
    if values.get("output_format", "png") == "png" and values.get("output_compression", 100) != 100:
        raise wrong_option(
            "output_compression", "a PNG is not compressed with loss", "Use webp or jpeg."
        )
    if values.get("stream") and values.get("response_format") == "url":
        raise wrong_option(
            "response_format", "a stream has the pictures themselves", "Leave it out."
        )
    quality = values.get("quality", "auto")
    return Options(
        prompt=values["prompt"],
        model=values.get("model"),
        n=values.get("n", 1),
        size=_size(values.get("size", "auto")),
        quality=_SAME_AS.get(quality, quality),
        output_format=values.get("output_format", "png"),
        output_compression=values.get("output_compression", 100),
        url=values.get("response_format") == "url",
        stream=values.get("stream", False),
        partial_images=values.get("partial_images", 0),
        input_fidelity=values.get("input_fidelity"),
        safety_identifier=values.get("safety_identifier") or values.get("user") or None,
        own=values.get("ip_adapter", {}),
    )


def _check(name: str, value: Any, edit: bool) -> None:
    shown = name[:60]
    if name in _REFUSED:
        raise wrong_option(name, "not supported", "Leave it out.")
    if name not in _KNOWN or (name == "input_fidelity" and not edit):
        near = difflib.get_close_matches(shown, _KNOWN, n=1)
        hint = f"Did you mean {near[0]}?" if near and near[0] != name else ""
        raise wrong_option(
            shown, "no such field", hint or "Fields of imageprompt go into ip_adapter."
        )
    if name in _CHOICES and value not in _CHOICES[name]:
        raise wrong_option(name, f"not one of {', '.join(_CHOICES[name])}")
    if name in _TEXTS and not isinstance(value, str):
        raise wrong_option(name, "not a text")
    if name in _NUMBERS:
        low, high = _NUMBERS[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not low <= value <= high:
            raise wrong_option(name, f"not a whole number from {low} to {high}")
    if name == "stream" and not isinstance(value, bool):
        raise wrong_option(name, "not true or false")


def _size(text: str) -> tuple[int, int] | None:
    if text == "auto":
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if found is None:
        raise wrong_option("size", "not WIDTHxHEIGHT in pixels, nor auto")
    return int(found[1]), int(found[2])
