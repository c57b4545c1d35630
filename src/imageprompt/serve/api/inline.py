"""Pictures in base64, as other APIs have them in JSON."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from imageprompt.serve.errors import ApiError, bad_request
from imageprompt.serve.files import too_large
from imageprompt.serve.settings import Limits

_DATA_URL = re.compile(r"data:[a-z0-9.+-]+/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def picture_in(text: Any, place: str, limits: Limits) -> bytes:
    """The bytes in a data URL, or in base64 alone. Raises ApiError."""
    if not isinstance(text, str) or not text:
        raise _wrong(place, "not a picture in base64")
    if re.match(r"\w+:/", text):
        raise _wrong(place, "a URL, which the server does not fetch")
    start = _DATA_URL.match(text)
    encoded = text[start.end() :] if start else text
    if len(encoded) // 4 * 3 > limits.picture_bytes + 3:
        raise too_large("a picture", limits.picture_bytes, place)
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(place, "not a picture in base64") from error


def is_data_url(text: Any) -> bool:
    """Does it claim to hold a picture?"""
    return isinstance(text, str) and text[:5].lower() == "data:"


def encoded(content: bytes) -> str:
    """In base64."""
    return base64.b64encode(content).decode()


def _wrong(place: str, reason: str) -> ApiError:
    return bad_request(
        f"{place}: {reason}",
        type="invalid_picture",
        param=place,
        hint="Send a PNG, JPEG or WebP file as base64 or as a data URL.",
    )
