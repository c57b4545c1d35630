"""Pictures for `file_id`, and those that an answer named by URL."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from imageprompt.serve import sources
from imageprompt.serve.api.common import keep_upload, owner_of, service_of
from imageprompt.serve.api.jobs import picture_response
from imageprompt.serve.api.openai.answers import picture_of
from imageprompt.serve.api.openai.options import Options
from imageprompt.serve.bodies import read_form
from imageprompt.serve.errors import bad_request, not_found
from imageprompt.serve.files import media_type

router = APIRouter()

LINK_SECONDS = 3600.0
"""How long the URL of a picture works; none works after a restart."""
_MAX_LINKS = 10_000
_FILE = re.compile(f"file-({sources.HASH})")


@dataclass(frozen=True)
class Link:
    """A picture of a job, in the format that was asked for."""

    owner: str
    job: str
    index: int
    options: Options
    made: float = field(default_factory=time.monotonic)

    @property
    def expired(self) -> bool:
        return time.monotonic() - self.made > LINK_SECONDS


class Links:
    """Pictures by names that nobody can guess."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, Link] = OrderedDict()

    def add(self, link: Link) -> str:
        while self._links and (len(self._links) >= _MAX_LINKS or self._oldest.expired):
            self._links.popitem(last=False)
        name = f"img-{secrets.token_urlsafe(24)}"
        self._links[name] = link
        return name

    def find(self, owner: str, name: str) -> Link | None:
        """None also for what is somebody else's, or too old."""
        link = self._links.get(name)
        return None if link is None or link.owner != owner or link.expired else link

    @property
    def _oldest(self) -> Link:
        return next(iter(self._links.values()))


def links_of(request: Request) -> Links:
    found = getattr(request.app.state, "links", None)
    if found is None:
        found = request.app.state.links = Links()
    assert isinstance(found, Links)
    return found


def source_of_file(request: Request, identity: str, place: str) -> str:
    """How a request names this file. Raises ApiError."""
    owner = owner_of(request)
    if (upload := _FILE.fullmatch(identity)) is not None:
        return f"upload:{upload[1]}"
    link = links_of(request).find(owner, identity)
    if link is None:
        raise bad_request(f"{place}: no such file", type="missing_upload", param=place)
    return f"result:{link.job}/{link.index}"


@router.post("/files")
async def keep_file(request: Request) -> dict[str, Any]:
    """Keep one picture; its name and purpose do not matter."""
    service, owner = service_of(request), owner_of(request)
    parts = await read_form(request, service.limits)
    found = [content for name, content in parts if name == "file"]
    if len(found) != 1:
        raise bad_request("file: one picture is expected", param="file")
    upload = await keep_upload(service, owner, found[0], "file")
    return _file_dict(upload.hash, upload.bytes, time.time())


@router.get("/files/{name}", response_model=None)
async def show_file(request: Request, name: str) -> Response | dict[str, Any]:
    """What is known of a file; of a picture that an answer named by URL, the picture."""
    found = _FILE.fullmatch(name)
    if found is None:
        return await show_content(request, name)
    content = await _upload(request, found[1])
    kept = service_of(request).files.upload(owner_of(request), found[1]).stat()
    return _file_dict(found[1], len(content), kept.st_mtime)


@router.get("/files/{name}/content", response_model=None)
async def show_content(request: Request, name: str) -> Response:
    """The picture itself."""
    service, owner = service_of(request), owner_of(request)
    if (upload := _FILE.fullmatch(name)) is not None:
        content = await _upload(request, upload[1])
    elif (link := links_of(request).find(owner, name)) is not None:
        content = await picture_of(service, owner, link.job, link.index, link.options)
    else:
        raise not_found("file")
    kind = media_type(content)
    assert kind is not None
    return picture_response(content, kind, f"{name[:13]}.{kind.partition('/')[2]}")


async def _upload(request: Request, digest: str) -> bytes:
    files, owner = service_of(request).files, owner_of(request)
    content = await asyncio.to_thread(files.read_upload, owner, digest)
    if content is None:
        raise not_found("file")
    return content


def _file_dict(digest: str, size: int, created: float) -> dict[str, Any]:
    return {
        "id": f"file-{digest}",
        "object": "file",
        "bytes": size,
        "created_at": int(created),
        "filename": "picture",
        "purpose": "vision",
        "status": "processed",
    }
