"""The body of a request to OpenAI's images API: a form or JSON, in the spellings that clients use.

Pictures get names: `image.0`, `image.1` ... in the order in which they were sent, and `mask`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from imageprompt.core.untrusted import Budget, parse_json
from imageprompt.serve import sources
from imageprompt.serve.api.inline import is_data_url, picture_in
from imageprompt.serve.bodies import content_type, read_form, read_json_with_pictures
from imageprompt.serve.errors import bad_request
from imageprompt.serve.files import media_type
from imageprompt.serve.settings import Limits

OWN_FIELD = "ip_adapter"
_IMAGE = re.compile(r"image(\[\d{0,3}\])?")
_NUMBERS = ("n", "output_compression", "partial_images")
_FLAGS = ("stream",)
_MAX_ITEMS, _MAX_DEPTH = 5_000, 12


@dataclass
class Asked:
    """Plain values by the names of fields; pictures and mask as sources, `part:` those in parts."""

    values: dict[str, Any] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    mask: str | None = None
    parts: dict[str, bytes] = field(default_factory=dict)

    def add_picture(self, content: bytes) -> None:
        name = f"image.{len(self.pictures)}"
        self.pictures.append(f"part:{name}")
        self.parts[name] = content


FindFile = Callable[[str, str], str]
"""The source of an id of a file, and of the place that has it. Raises ApiError."""


async def read_generation(request: Request, limits: Limits) -> Asked:
    """JSON without pictures of its own. Raises ApiError."""
    asked = Asked(_object(await read_json_with_pictures(request, limits)))
    _open_own_field(asked, limits)
    return asked


async def read_edit(request: Request, limits: Limits, find_file: FindFile) -> Asked:
    """A form with files, or JSON with data URLs or ids of files. Raises ApiError."""
    if content_type(request) == "multipart/form-data":
        asked = _from_form(await read_form(request, limits), limits)
    else:
        asked = _from_json(
            _object(await read_json_with_pictures(request, limits)), limits, find_file
        )
    _open_own_field(asked, limits)
    return asked


# ── forms ───────────────────────────────────────────────────────────────────────────────────────


def _from_form(parts: list[tuple[str, bytes]], limits: Limits) -> Asked:
    asked = Asked()
    for name, content in parts:
        if _IMAGE.fullmatch(name):
            asked.add_picture(content)
        elif name in asked.values or name in asked.parts:
            raise bad_request(f"two parts named {name[:60]!r}", param=name[:60])
        elif name == "mask":
            asked.mask, asked.parts["mask"] = "part:mask", content
        elif media_type(content) is not None:
            asked.parts[name] = content
        else:
            asked.values[name] = _value(name, content, limits)
    return asked


def _value(name: str, content: bytes, limits: Limits) -> Any:
    if name.startswith(f"{OWN_FIELD}["):
        raise bad_request(
            f"{OWN_FIELD}: spread over several fields, which loses what belongs together",
            param=OWN_FIELD,
            hint="Send it as one field with a JSON text.",
        )
    if len(content) > limits.json_bytes:
        raise bad_request(f"{name[:60]}: too long, or not a picture", param=name[:60])
    text = content.decode("utf-8", "replace")
    if name in _NUMBERS and re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        return int(text)
    if name in _FLAGS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise bad_request("the request: not an object")
    return {name: value for name, value in data.items() if value is not None}


def _from_json(data: dict[str, Any], limits: Limits, find_file: FindFile) -> Asked:
    asked = Asked()
    for place, described in _described_pictures(data, limits):
        source = _source(described, place, limits, find_file)
        if isinstance(source, str):
            asked.pictures.append(source)
        else:
            asked.add_picture(source)
    mask = data.pop("mask", None)
    if mask is not None:
        source = _source(mask, "mask", limits, find_file)
        asked.mask = source if isinstance(source, str) else "part:mask"
        if isinstance(source, bytes):
            asked.parts["mask"] = source
    asked.values = data
    return asked


def _described_pictures(data: dict[str, Any], limits: Limits) -> Iterator[tuple[str, Any]]:
    for name in ("image", "images"):
        listed = data.pop(name, [])
        listed = listed if isinstance(listed, list) else [listed]
        if len(listed) > limits.references + 1:
            raise bad_request(f"{name}: more than {limits.references}", param=name)
        for index, described in enumerate(listed):
            yield f"{name}.{index}", described


def _source(described: Any, place: str, limits: Limits, find_file: FindFile) -> str | bytes:
    """The bytes of a data URL, or the source of a file: of a text or of an object with one."""
    if not isinstance(described, Mapping):
        return picture_in(described, place, limits)
    if (identity := described.get("file_id")) is not None:
        return find_file(str(identity), f"{place}.file_id")
    url = described.get("image_url")
    if isinstance(url, Mapping):  # as in chats
        url = url.get("url")
    return picture_in(url, f"{place}.image_url", limits)


# ── ip_adapter ──────────────────────────────────────────────────────────────────────────────────


def _open_own_field(asked: Asked, limits: Limits) -> None:
    """Its JSON text becomes an object, and data URLs in it become parts."""
    own = asked.values.get(OWN_FIELD)
    if own is None:
        return
    if isinstance(own, str):
        try:
            own = parse_json(
                own,
                Budget(nbytes=limits.picture_json_bytes, items=_MAX_ITEMS, depth=_MAX_DEPTH),
                unique=True,
            )
        except ValueError as error:
            raise bad_request(
                f"{OWN_FIELD}: not valid JSON ({error})", type="invalid_json", param=OWN_FIELD
            ) from error
    references = own.get("references", []) if isinstance(own, dict) else None
    if not isinstance(references, list) or not all(isinstance(one, dict) for one in references):
        raise bad_request(
            f"{OWN_FIELD}: not an object with a list of references",
            param=OWN_FIELD,
            hint='Write {"references": [{"scale": 0.7}]}.',
        )
    if len(references) > limits.references:
        raise bad_request(f"{OWN_FIELD}.references: more than {limits.references}", param=OWN_FIELD)
    for place, holder, key in list(sources.places(own)):
        if is_data_url(holder[key]):
            name = f"{OWN_FIELD}.{place}"[:64]
            asked.parts[name] = picture_in(holder[key], f"{OWN_FIELD}.{place}", limits)
            holder[key] = f"part:{name}"
    asked.values[OWN_FIELD] = own
