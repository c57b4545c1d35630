"""Pictures of a job in the words of OpenAI's images API: at once, or as a stream of events."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imageprompt.serve.admission import DRAINING
from imageprompt.serve.api.following import check_done
from imageprompt.serve.api.inline import encoded
from imageprompt.serve.api.openai.options import Options
from imageprompt.serve.dialects import dialect_of
from imageprompt.serve.errors import ApiError, not_found
from imageprompt.serve.events import Event
from imageprompt.serve.live_job import Job
from imageprompt.serve.service import Service
from imageprompt.serve.store import JobRecord

_NO_TOKENS: Mapping[str, Any] = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""Clients expect numbers; nothing is counted in tokens here."""


def record_of(job: Job | JobRecord) -> JobRecord:
    return job.record if isinstance(job, Job) else job


async def picture_of(service: Service, owner: str, job: str, index: int, options: Options) -> bytes:
    """A picture of a job in the format that was asked for. Raises ApiError."""
    content = await asyncio.to_thread(service.files.read_result, owner, job, index)
    if content is None:
        raise not_found("picture")
    return await asyncio.to_thread(_converted, content, options)


def _converted(content: bytes, options: Options) -> bytes:
    """A PNG stays as it is, with its recipe."""
    from PIL import Image

    picture = Image.open(io.BytesIO(content))
    if str(picture.format).lower() == options.output_format:
        return content
    stream = io.BytesIO()
    quality = {} if options.output_format == "png" else {"quality": options.output_compression or 1}
    picture.convert("RGB").save(stream, format=options.output_format, **quality)
    return stream.getvalue()


def about(options: Options, size: str) -> dict[str, Any]:
    """What every answer tells of its pictures."""
    found = {
        "size": size,
        "quality": options.quality,
        "background": "opaque",
        "output_format": options.output_format,
    }
    if options.safety_identifier is not None:
        found["safety_identifier"] = options.safety_identifier
    return found


def images_dict(record: JobRecord, options: Options, data: list[dict[str, Any]]) -> dict[str, Any]:
    """All pictures in one answer."""
    first = record.images[0]
    return {
        "created": int(record.ended or time.time()),
        "data": data,
        **about(options, f"{first.width}x{first.height}"),
        "usage": _NO_TOKENS,
        "job": record.id,
    }


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Stream:
    """The events of a job as OpenAI's clients read them; `kind` begins their types."""

    service: Service
    job: Job | JobRecord
    options: Options
    kind: str
    size: str
    """Of partial images: what the finished ones will have, as far as it is known."""
    kept: bool = False
    """Does the job wait for the next server, if this one stops before it began?"""
    _partial: dict[int, int] = field(default_factory=dict)
    """Index of a picture -> number of partial images that were sent."""

    async def lines(self) -> AsyncIterator[bytes]:
        async for event in self.service.events(self.job):
            if event is None:
                yield b": ping\n\n"
            elif (found := await self._line(event)) is not None:
                yield found
        record = record_of(self.job)
        try:
            if record.state == "queued" and isinstance(self.job, Job):
                if not self.kept:
                    await self.service.cancel(self.job)
                raise ApiError(503, DRAINING)
            check_done(record)
        except ApiError as error:
            yield _sse("error", dict(dialect_of("/v1/").body(error)))

    async def _line(self, event: Event) -> bytes | None:
        if event.kind == "preview" and self._wanted(event):
            return await self._partial_image(event)
        return await self._image(event) if event.kind == "image" else None

    def _wanted(self, event: Event) -> bool:
        """Partial images are spread over the steps."""
        sent = self._partial.get(event.data["index"], 0)
        total = getattr(self.job, "total", None) or event.data["step"]
        due = (sent + 1) / (self.options.partial_images + 1) * total
        return sent < self.options.partial_images and event.data["step"] >= int(due)

    async def _partial_image(self, event: Event) -> bytes:
        import base64

        index = event.data["index"]
        sent = self._partial.get(index, 0)
        self._partial[index] = sent + 1
        jpeg = base64.b64decode(event.data["jpeg"])
        content = await asyncio.to_thread(_converted, jpeg, self.options)
        data = {"partial_image_index": sent, "index": index, "step": event.data["step"]}
        return self._event("partial_image", content, self.size, data)

    async def _image(self, event: Event) -> bytes:
        record, index = record_of(self.job), event.data["index"]
        content = await picture_of(self.service, record.owner, record.id, index, self.options)
        size = f"{event.data['width']}x{event.data['height']}"
        data = {"usage": _NO_TOKENS, "index": index, "seed": event.data["seed"], "job": record.id}
        return self._event("completed", content, size, data)

    def _event(self, name: str, content: bytes, size: str, more: Mapping[str, Any]) -> bytes:
        told = {
            "type": f"{self.kind}.{name}",
            "b64_json": encoded(content),
            "created_at": int(time.time()),
            **about(self.options, size),
            **more,
        }
        return _sse(str(told["type"]), told)


def _sse(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
