"""Bodies of requests: strict JSON, or a form with one JSON part and pictures, within limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from imageprompt.core.untrusted import Budget, parse_json
from imageprompt.serve.errors import ApiError, Problem, bad_request
from imageprompt.serve.files import too_large
from imageprompt.serve.settings import Limits

REQUEST_PART = "request"
_MAX_ITEMS, _MAX_DEPTH = 50_000, 16


@dataclass(frozen=True)
class Body:
    """The JSON of a request, and the pictures beside it by the names of their parts."""

    data: Any
    parts: Mapping[str, bytes] = field(default_factory=dict)


async def read_body(request: Request, limits: Limits) -> Body:
    """JSON, or multipart with a part `request`. Raises ApiError."""
    kind = _content_type(request)
    if kind == "application/json":
        return Body(_json(await request.body(), limits))
    if kind != "multipart/form-data":
        raise _unsupported("application/json or multipart/form-data")
    parts = await _form(request, limits)
    if REQUEST_PART not in parts:
        raise bad_request(
            f"the form has no part {REQUEST_PART!r}", type="invalid_multipart", param=REQUEST_PART
        )
    text = parts.pop(REQUEST_PART)
    return Body(_json(text, limits), parts)


async def read_picture_body(request: Request, limits: Limits) -> bytes:
    """The bytes of the only picture of a body. Raises ApiError."""
    kind = _content_type(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    if kind != "multipart/form-data":
        raise _unsupported("multipart/form-data or image/...")
    parts = await _form(request, limits)
    if len(parts) != 1:
        raise bad_request(f"{len(parts)} parts: one picture is expected", type="invalid_multipart")
    return next(iter(parts.values()))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(expected: str) -> ApiError:
    problem = Problem("unsupported_type", f"the Content-Type is not {expected}")
    return ApiError(415, problem)


def _json(text: bytes, limits: Limits) -> Any:
    if len(text) > limits.json_bytes:
        raise too_large("the JSON", limits.json_bytes)
    budget = Budget(nbytes=limits.json_bytes, items=_MAX_ITEMS, depth=_MAX_DEPTH)
    try:
        data = parse_json(text.decode("utf-8"), budget, unique=True)
        json.dumps(data, ensure_ascii=False).encode()  # no half of a surrogate pair
        return data
    except ValueError as error:
        raise bad_request(f"not valid JSON ({error})", type="invalid_json") from error


async def _form(request: Request, limits: Limits) -> dict[str, bytes]:
    """Part name -> content. Nothing is written to a file; names of files are not looked at."""
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=limits.parts,
        max_fields=limits.parts,
        max_part_size=limits.picture_bytes,
    )
    parser.spool_max_size = limits.body_bytes + 1  # stays in memory, which the guard counts
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "") or "it has no boundary"
        raise bad_request(f"not a valid form ({reason})", type="invalid_multipart") from error
    parts: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            if name in parts:
                raise bad_request(
                    f"two parts named {name[:60]!r}", type="invalid_multipart", param=name[:60]
                )
            if isinstance(value, UploadFile):
                parts[name] = await value.read()
            else:
                parts[name] = value.encode("utf-8", "surrogateescape")
    finally:
        await form.close()
    return parts
