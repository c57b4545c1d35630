"""Bodies of requests: strict JSON, or a form with one JSON part and pictures, within limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
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
    kind = content_type(request)
    if kind == "application/json":
        return Body(_json(await request.body(), limits.json_bytes))
    if kind != "multipart/form-data":
        raise _unsupported("application/json or multipart/form-data")
    parts = _unique(await read_form(request, limits))
    if REQUEST_PART not in parts:
        raise bad_request(
            f"the form has no part {REQUEST_PART!r}", type="invalid_multipart", param=REQUEST_PART
        )
    text = parts.pop(REQUEST_PART)
    return Body(_json(text, limits.json_bytes), parts)


async def read_picture_body(request: Request, limits: Limits) -> bytes:
    """The bytes of the only picture of a body. Raises ApiError."""
    kind = content_type(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    if kind != "multipart/form-data":
        raise _unsupported("multipart/form-data or image/...")
    parts = _unique(await read_form(request, limits))
    if len(parts) != 1:
        raise bad_request(f"{len(parts)} parts: one picture is expected", type="invalid_multipart")
    return next(iter(parts.values()))


async def read_json_with_pictures(request: Request, limits: Limits) -> Any:
    """JSON in which pictures may stand as base64. Raises ApiError."""
    if content_type(request) != "application/json":
        raise _unsupported("application/json")
    return await asyncio.to_thread(_json, await request.body(), limits.picture_json_bytes)


def content_type(request: Request) -> str:
    """Without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(expected: str) -> ApiError:
    problem = Problem("unsupported_type", f"the Content-Type is not {expected}")
    return ApiError(415, problem)


def _json(text: bytes, limit: int) -> Any:
    if len(text) > limit:
        raise too_large("the JSON", limit)
    budget = Budget(nbytes=limit, items=_MAX_ITEMS, depth=_MAX_DEPTH)
    try:
        data = parse_json(text.decode("utf-8"), budget, unique=True)
        json.dumps(data, ensure_ascii=False).encode()  # no half of a surrogate pair
        return data
    except ValueError as error:
        raise bad_request(f"not valid JSON ({error})", type="invalid_json") from error


async def read_form(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Name and content of each part. Nothing is written to a file; names of files are not looked
    at. Raises ApiError."""
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
    parts: list[tuple[str, bytes]] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                parts.append((name, await value.read()))
            else:
                parts.append((name, value.encode("utf-8", "surrogateescape")))
    finally:
        await form.close()
    return parts


def _unique(parts: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, content in parts:
        if name in found:
            raise bad_request(
                f"two parts named {name[:60]!r}", type="invalid_multipart", param=name[:60]
            )
        found[name] = content
    return found
