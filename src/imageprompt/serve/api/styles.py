"""The style library, which all keys share; and the check of references."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from imageprompt.library import Style, paths
from imageprompt.library.search import by_name
from imageprompt.serve.api.common import (
    TASK_SECONDS,
    bound,
    library_errors,
    owner_of,
    places_renamed,
    service_of,
)
from imageprompt.serve.bodies import read_body
from imageprompt.serve.errors import ApiError, Problem, bad_request
from imageprompt.serve.live_job import API
from imageprompt.serve.openapi import fields, json_or_form
from imageprompt.serve.request_body import ENCODING, PICTURE, body_schema, checked_reference
from imageprompt.serve.service import Service
from imageprompt.serve.sources import upload_of

router = APIRouter(tags=["styles"])

_PLACE = "references.0"
_MAX_STYLES_OF_MIX = 32
_MAX_HITS = 200
_OF_REFERENCE = body_schema()["properties"]["references"]["items"]["properties"]
_NEW = {
    "name": {"type": "string", "description": "how it is called from now on"},
    "tags": {"type": "array", "items": {"type": "string"}, "default": []},
    "replace": {"type": "boolean", "default": False, "description": "the style of this name"},
}
_STYLE = fields(
    {
        **_NEW,
        "reference": _OF_REFERENCE["reference"],
        "adapter": _OF_REFERENCE["adapter"],
        **{name: _OF_REFERENCE[name] for name in ENCODING},
    },
    *("name", "reference"),
)
_SEARCH = fields(
    {
        "reference": PICTURE,
        "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_HITS, "default": 10},
    },
    "reference",
)
_MIX = fields(
    {
        **_NEW,
        "weights": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "minProperties": 2,
            "maxProperties": _MAX_STYLES_OF_MIX,
            "description": "styles and their weights",
        },
    },
    *("name", "weights"),
)
_CHECK = fields(
    {"reference": {"anyOf": [PICTURE, {"type": "array", "items": PICTURE}]}}, "reference"
)


@router.get("/styles")
async def list_styles(
    request: Request, tag: str | None = None, search: str | None = None
) -> dict[str, Any]:
    """The styles of the library; those that match a text come best first."""
    service = service_of(request)
    with library_errors():
        styles = await asyncio.to_thread(service.library.styles, tag)
    if not search:
        return {"styles": [_style_dict(service, style) for style in styles], "scores": {}}
    hits = by_name(styles, search[:200])  # a text, even if a file has that name
    return {
        "styles": [_style_dict(service, hit.style) for hit in hits],
        "scores": {hit.style.name: round(hit.score, 4) for hit in hits},
    }


@router.get("/styles/{name}")
async def show_style(request: Request, name: str) -> dict[str, Any]:
    """One style."""
    service = service_of(request)
    return _style_dict(service, await _find(service, name))


@router.get("/styles/{name}/thumbnail", response_model=None)
async def show_thumbnail(request: Request, name: str) -> Response:
    """The picture of a style."""
    from imageprompt.library import thumbnail

    service = service_of(request)
    style = await _find(service, name)
    with library_errors():
        picture = await asyncio.to_thread(thumbnail.read, style)
    if picture is None:
        problem = Problem("not_found", "this style has no thumbnail")
        raise ApiError(404, problem)
    content = await asyncio.to_thread(thumbnail.image_bytes, picture, format="PNG")
    return Response(content, media_type="image/png", headers={"cache-control": "no-cache"})


@router.post("/styles", status_code=201, openapi_extra=json_or_form(_STYLE))
async def add_style(request: Request) -> dict[str, Any]:
    """Encode pictures and keep them as a style."""
    service, owner = service_of(request), owner_of(request)
    body = await read_body(request, service.limits)
    data = _object(body.data, _STYLE)
    name, tags, replace = _new_style(service, data)
    described = {k: v for k, v in data.items() if k in ("reference", "adapter", *ENCODING)}
    adapter = described.pop("adapter", None)
    with places_renamed(_without_place):
        checked_reference(described | {"adapter": adapter}, service.limits, _PLACE)
        found = await bound(service, owner, {"references": [described]}, body.parts)
        service.admission.check_adapter(adapter, f"{_PLACE}.adapter")
    arguments = {
        "name": name,
        "tags": tags,
        "replace": replace,
        "adapter": adapter,
        "options": found["references"][0],
        "folder": str(service.files.uploads(owner)),
    }
    await service.worker.task("add_style", arguments, TASK_SECONDS)
    return _style_dict(service, await _find(service, name))


@router.post("/styles/search", openapi_extra=json_or_form(_SEARCH))
async def search_styles(request: Request) -> dict[str, Any]:
    """The styles that resemble a picture, best first."""
    service, owner = service_of(request), owner_of(request)
    body = await read_body(request, service.limits)
    data = _object(body.data, _SEARCH)
    limit = data.get("limit", 10)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MAX_HITS:
        raise bad_request(f"limit: not a whole number from 1 to {_MAX_HITS}", param="limit")
    (upload,) = await _pictures(service, owner, data, body.parts, most=1)
    found = await service.worker.task(
        "search_styles",
        {"upload": upload, "limit": limit, "folder": str(service.files.uploads(owner))},
        TASK_SECONDS,
    )
    with library_errors():
        styles = await asyncio.to_thread(service.library.styles)
    known = {style.name: style for style in styles}
    hits = [hit for hit in found["found"] if hit["style"] in known]
    return {
        "styles": [_style_dict(service, known[hit["style"]]) for hit in hits],
        "scores": {hit["style"]: hit["score"] for hit in hits},
        "skipped": found["skipped"],
    }


@router.post("/styles/mix", status_code=201, openapi_extra=json_or_form(_MIX))
async def mix_styles(request: Request) -> dict[str, Any]:
    """Keep the weighted mean of styles as a new one."""
    service = service_of(request)
    body = await read_body(request, service.limits)
    data = _object(body.data, _MIX)
    name, tags, replace = _new_style(service, data)
    weights = data.get("weights")
    if not isinstance(weights, dict) or not 2 <= len(weights) <= _MAX_STYLES_OF_MIX:
        raise bad_request(
            f"weights: not an object with 2 to {_MAX_STYLES_OF_MIX} styles and their weights",
            param="weights",
        )
    with library_errors("weights"):
        from imageprompt.library.mix_styles import shares_of

        shares_of(weights)
    for part in weights:
        await _find(service, part)
    arguments = {"name": name, "weights": weights, "tags": tags, "replace": replace}
    await service.worker.task("mix_styles", arguments, TASK_SECONDS)
    return _style_dict(service, await _find(service, name))


@router.delete("/styles/{name}", status_code=204, response_model=None)
async def delete_style(request: Request, name: str) -> Response:
    """Delete a style."""
    service = service_of(request)
    await _find(service, name)
    with library_errors():
        await asyncio.to_thread(service.library.remove, name)
    return Response(status_code=204)


@router.post("/check", tags=["references"], openapi_extra=json_or_form(_CHECK))
async def check_references(request: Request) -> JSONResponse:
    """Are these good reference pictures, and do they mix?"""
    service, owner = service_of(request), owner_of(request)
    body = await read_body(request, service.limits)
    data = _object(body.data, _CHECK)
    most = service.limits.references
    uploads = await _pictures(service, owner, data, body.parts, most=most)
    arguments = {"uploads": uploads, "folder": str(service.files.uploads(owner))}
    return JSONResponse(await service.worker.task("check", arguments, TASK_SECONDS))


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


def _object(data: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object with fields of a schema alone; what they are is checked elsewhere."""
    names = schema["properties"]
    if not isinstance(data, dict):
        raise bad_request("the request: not an object")
    for name in data:
        if name not in names:
            raise bad_request(
                f"{name[:60]}: no such field",
                param=name[:60],
                hint=f"The fields are {', '.join(names)}.",
            )
    return data


def _new_style(service: Service, data: Mapping[str, Any]) -> tuple[str, Sequence[str], bool]:
    """Name, tags and `replace`. Raises ApiError, a 409 for a name that is taken."""
    with library_errors():
        try:
            name = paths.checked_name(data.get("name"))
            tags = paths.checked_tags(data.get("tags") or ())
        except Exception as error:
            place = "name" if "name" in str(error) else "tags"
            with library_errors(place):
                raise
        taken = paths.same_name(name, service.library.names())
    replace = data.get("replace", False)
    if not isinstance(replace, bool):
        raise bad_request("replace: neither true nor false", param="replace")
    if taken is not None and not (replace and taken == name):
        problem = Problem(
            "conflict", f"a style {taken!r} exists already", "name", "Choose another name."
        )
        raise ApiError(409, problem)
    return name, tags, replace


async def _pictures(
    service: Service,
    owner: str,
    data: Mapping[str, Any],
    parts: Mapping[str, bytes],
    *,
    most: int,
) -> list[str]:
    """The hashes of the pictures in `reference`."""
    given = data.get("reference")
    pictures = given if isinstance(given, list) else [given]
    if not 1 <= len(pictures) <= most:
        raise bad_request(f"reference: not 1 to {most} pictures", param="reference")
    with places_renamed(_without_place):
        described = {"reference": pictures}
        checked_reference(described, service.limits, _PLACE)
        found = await bound(service, owner, {"references": [described]}, parts)
        service.admission.check_uploads(found, owner)
    return [upload_of(one) for one in found["references"][0]["reference"]]


async def _find(service: Service, name: str) -> Style:
    try:
        paths.checked_name(name)
        return await asyncio.to_thread(service.library.show, name)
    except Exception as error:
        with library_errors():
            raise
        raise AssertionError from error


def _style_dict(service: Service, style: Style) -> dict[str, Any]:
    from urllib.parse import quote

    fitting = service.admission.adapters_of(style.adapter.hash)
    url = f"{API}/styles/{quote(style.name, safe='')}/thumbnail"
    return {
        "name": style.name,
        "tags": list(style.tags),
        "adapter": fitting[0] if fitting else None,
        "variant": style.variant,
        "created": style.created,
        "references": len(style.references),
        "thumbnail": url if "thumbnail" in style.tensors else None,
    }


def _without_place(param: str) -> str:
    return param.removeprefix(f"{_PLACE}.")
