"""Generations and edits."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from imageprompt.serve import sources
from imageprompt.serve.api.catalog import described_of
from imageprompt.serve.api.common import bound, check_streams, once_of, owner_of, service_of
from imageprompt.serve.api.following import check_done, until_ended
from imageprompt.serve.api.inline import encoded
from imageprompt.serve.api.jobs import EventStream
from imageprompt.serve.api.openai.answers import Stream, images_dict, picture_of
from imageprompt.serve.api.openai.body import Asked, read_edit, read_generation
from imageprompt.serve.api.openai.files import Link, links_of, source_of_file
from imageprompt.serve.api.openai.options import Options, options_of
from imageprompt.serve.api.openai.translation import in_words_of_openai, inpaint_mask, request_of
from imageprompt.serve.errors import bad_request
from imageprompt.serve.live_job import Job
from imageprompt.serve.request_body import checked_request
from imageprompt.serve.service import Service
from imageprompt.serve.store import JobRecord

router = APIRouter()


@router.post("/images/generations", response_model=None)
async def generate_images(request: Request) -> Response | dict[str, Any]:
    """Pictures from a prompt, and from the references in `ip_adapter`."""
    asked = await read_generation(request, service_of(request).limits)
    options = options_of(asked.values, edit=False)
    return await _answer(request, asked, options, "image_generation")


@router.post("/images/edits", response_model=None)
async def edit_images(request: Request) -> Response | dict[str, Any]:
    """Pictures from a prompt and reference pictures; with a mask, the first picture is painted."""
    find_file = partial(source_of_file, request)
    asked = await read_edit(request, service_of(request).limits, find_file)
    options = options_of(asked.values, edit=True)
    if not asked.pictures:
        raise bad_request("image: missing", param="image")
    return await _answer(request, asked, options, "image_edit")


async def _answer(
    request: Request, asked: Asked, options: Options, kind: str
) -> Response | dict[str, Any]:
    service, once = service_of(request), once_of(request)
    check_streams(service)
    with in_words_of_openai(options.own):
        job = await _submit(service, owner_of(request), asked, options, once)
    if options.stream:
        return _stream(service, job, options, kind, kept=once is not None)
    record = await until_ended(request, job, kept=once is not None)
    with in_words_of_openai(options.own):
        check_done(record)
    data = [
        {**await _datum(request, record, image.index, options), "seed": image.seed}
        for image in record.images
    ]
    return images_dict(record, options, data)


async def _submit(
    service: Service, owner: str, asked: Asked, options: Options, once: str | None
) -> Job | JobRecord:
    described = described_of(service)
    data = request_of(asked, options, described, once=once)
    checked_request(data, service.limits)
    service.admission.check_room(owner)
    if asked.mask is not None:
        mask, first = asked.mask, asked.pictures[0]
        contents = [await _content(service, owner, one, asked) for one in (mask, first)]
        async with service.decoding:
            asked.parts["mask"] = await asyncio.to_thread(inpaint_mask, *contents)
        data["inpaint_mask"] = "part:mask"
    return await service.submit(await bound(service, owner, data, asked.parts), owner, once=once)


async def _content(service: Service, owner: str, source: str, asked: Asked) -> bytes:
    """The bytes of mask or picture. Raises ApiError."""
    kind, _, name = source.partition(":")
    if kind == "part":
        return asked.parts[name]
    if kind == "upload":
        read, of_what = service.files.read_upload, (sources.upload_of(source),)
        content = await asyncio.to_thread(read, owner, *of_what)
    else:
        job, _, index = name.partition("/")
        content = await asyncio.to_thread(service.files.read_result, owner, job, int(index))
    if content is None:
        raise bad_request("image: no such file", type="missing_upload", param="image")
    return content


async def _datum(
    request: Request, record: JobRecord, index: int, options: Options
) -> dict[str, Any]:
    """One picture of an answer."""
    owner = owner_of(request)
    if options.url:
        name = links_of(request).add(Link(owner, record.id, index, options))
        return {"url": str(request.url_for("show_file", name=name))}
    content = await picture_of(service_of(request), owner, record.id, index, options)
    return {"b64_json": await asyncio.to_thread(encoded, content)}


def _stream(
    service: Service, job: Job | JobRecord, options: Options, kind: str, *, kept: bool
) -> Response:
    base = service.worker.described["base"]
    width, height = options.size or (base["width"], base["height"])

    async def gone() -> None:
        if not kept and isinstance(job, Job):
            await service.cancel(job)

    stream = Stream(service, job, options, kind, f"{width}x{height}", kept)
    return EventStream(service, stream.lines(), gone)
