"""Uploads by their hash, and the request in a PNG."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from imageprompt.serve.api.common import keep_upload, owner_of, service_of
from imageprompt.serve.api.jobs import picture_response
from imageprompt.serve.bodies import read_picture_body
from imageprompt.serve.errors import not_found
from imageprompt.serve.files import media_type
from imageprompt.serve.live_job import API
from imageprompt.serve.openapi import one_picture
from imageprompt.serve.sources import HASH

router = APIRouter(tags=["uploads"])


@router.post("/uploads", status_code=201, openapi_extra=one_picture())
async def keep_picture(request: Request) -> dict[str, Any]:
    """Keep one picture."""
    service, owner = service_of(request), owner_of(request)
    content = await read_picture_body(request, service.limits)
    upload = await keep_upload(service, owner, content, None)
    return {**asdict(upload), "url": f"{API}/uploads/{upload.hash}"}


@router.get("/uploads/{digest}", response_model=None)
async def show_upload(request: Request, digest: str) -> Response:
    """A picture as it was sent."""
    service, owner = service_of(request), owner_of(request)
    content = None
    if re.fullmatch(HASH, digest, re.ASCII):
        content = await asyncio.to_thread(service.files.read_upload, owner, digest)
    kind = None if content is None else media_type(content)
    if content is None or kind is None:
        raise not_found("upload")
    return picture_response(content, kind, f"{digest[:12]}.{kind.partition('/')[2]}")


@router.post("/recipe", openapi_extra=one_picture(["image/png"]))
async def restore_request(request: Request) -> dict[str, Any]:
    """The request in a PNG that imageprompt wrote, and the hashes of the pictures it lacks."""
    service, owner = service_of(request), owner_of(request)
    content = await read_picture_body(request, service.limits)
    upload = await keep_upload(service, owner, content, None)
    path = service.files.upload(owner, upload.hash)
    found = await asyncio.to_thread(
        service.restorer.restore,
        path,
        upload.hash,
        lambda digest: len(digest) == 64 and service.files.has(owner, digest),
    )
    return {**found.as_dict(), "png": f"upload:{upload.hash}"}
