"""txt2img and img2img, which answer with the pictures; and what is asked meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request

from imageprompt.serve.api.a1111.payload import (
    SAMPLER,
    Translation,
    in_words_of_a1111,
    title_of,
)
from imageprompt.serve.api.catalog import described_of
from imageprompt.serve.api.common import bound, check_streams, owner_of, service_of
from imageprompt.serve.api.following import check_done, until_ended
from imageprompt.serve.api.inline import encoded
from imageprompt.serve.bodies import read_json_with_pictures
from imageprompt.serve.events import Event
from imageprompt.serve.live_job import Job
from imageprompt.serve.request_body import checked_request
from imageprompt.serve.service import Service
from imageprompt.serve.store import JobRecord

router = APIRouter()

_PICTURES = ("init_images", "mask", "alwayson_scripts")
"""Keys that are not sent back."""


@dataclass
class Followed:
    """A job whose client waits for its pictures."""

    job: Job
    preview: str | None = None
    """A JPEG in base64."""
    progress: float = 0.0
    """From 0 to 1."""
    interrupted: bool = False
    began: float = field(default_factory=time.monotonic)

    def tell(self, event: Event) -> None:
        if event.kind == "started":
            self.began = time.monotonic()
        elif event.kind == "preview":
            self.preview = event.data["jpeg"]
        elif event.kind == "progress":
            data, pictures = event.data, int(self.job.record.request.get("num_images", 1))
            done = data["index"] + data["pictures"] * data["step"] / data["total"]
            self.progress = min(done / pictures, 0.999)


class Waiting:
    """The jobs of each key whose clients wait, oldest first."""

    def __init__(self) -> None:
        self._followed: dict[str, list[Followed]] = {}

    def of(self, owner: str) -> list[Followed]:
        return list(self._followed.get(owner, ()))

    @contextmanager
    def following(self, owner: str, job: Job) -> Iterator[Followed]:
        """Inside the block, a client waits for this job."""
        followed = Followed(job)
        self._followed.setdefault(owner, []).append(followed)
        try:
            yield followed
        finally:
            self._followed[owner].remove(followed)
            if not self._followed[owner]:
                del self._followed[owner]


def _waiting(request: Request) -> Waiting:
    found = getattr(request.app.state, "waiting", None)
    if found is None:
        found = request.app.state.waiting = Waiting()
    assert isinstance(found, Waiting)
    return found


@router.post("/txt2img")
async def text_to_image(request: Request) -> dict[str, Any]:
    """Pictures from a prompt, and from the units of ControlNet."""
    return await _answer(request, start=False)


@router.post("/img2img")
async def image_to_image(request: Request) -> dict[str, Any]:
    """The same, beginning with a picture; with a mask, white is what changes."""
    return await _answer(request, start=True)


async def _answer(request: Request, *, start: bool) -> dict[str, Any]:
    service, owner = service_of(request), owner_of(request)
    described = described_of(service)
    check_streams(service)
    payload = await read_json_with_pictures(request, service.limits)
    with in_words_of_a1111():
        job = await _submit(service, owner, payload, described, start=start)
    with _waiting(request).following(owner, job) as followed:
        record = await until_ended(request, job, tell=followed.tell)
    if not followed.interrupted:
        with in_words_of_a1111():
            check_done(record)
    images = []
    if payload.get("send_images", True):
        for image in record.images:
            read = service.files.read_result
            content = await asyncio.to_thread(read, owner, record.id, image.index)
            if content is not None:
                images.append(await asyncio.to_thread(encoded, content))
    parameters = {name: value for name, value in payload.items() if name not in _PICTURES}
    info = _info(record, described, interrupted=followed.interrupted)
    return {"images": images, "parameters": parameters, "info": json.dumps(info)}


async def _submit(
    service: Service, owner: str, payload: Any, described: Mapping[str, Any], *, start: bool
) -> Job:
    service.admission.check_room(owner)

    def translated() -> Translation:
        found = Translation(payload, described, service.limits)
        if start:
            found.start()
        return found

    async with service.decoding:
        translation = await asyncio.to_thread(translated)
    checked_request(translation.request, service.limits)
    data = await bound(service, owner, translation.request, translation.parts)
    job = await service.submit(data, owner)
    assert isinstance(job, Job)  # without an Idempotency-Key it is a new one
    return job


def _info(record: JobRecord, described: Mapping[str, Any], *, interrupted: bool) -> dict[str, Any]:
    request, base = record.request, described["base"]
    seeds = [image.seed for image in record.images]
    prompt, negative = request["prompt"], request["negative_prompt"]
    steps, guidance = request.get("steps", base["steps"]), request.get("guidance_scale")
    size = [(image.width, image.height) for image in record.images]
    width, height = size[0] if size else (base["width"], base["height"])
    told = f"{prompt}\nNegative prompt: {negative}\n" if negative else f"{prompt}\n"
    texts = [
        f"{told}Steps: {steps}, Sampler: {SAMPLER}, CFG scale: {guidance}, Seed: {seed}, "
        f"Size: {width}x{height}, Model: {base['name']}"
        for seed in seeds
    ]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": request["seed"],
        "all_seeds": seeds,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER,
        "cfg_scale": guidance,
        "steps": steps,
        "batch_size": len(seeds),
        "denoising_strength": request.get("strength"),
        "sd_model_name": base["name"],
        "sd_model_hash": base["hash"],
        "index_of_first_image": 0,
        "infotexts": texts,
        "job_timestamp": _timestamp(record.created),
        "interrupted": interrupted,
        "job": record.id,
        "model": title_of(base),
    }


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))


# ── meanwhile ───────────────────────────────────────────────────────────────────────────────────


@router.get("/progress")
async def show_progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Of your job that runs, or of the first that waits."""
    all_of_them = _waiting(request).of(owner_of(request))
    one = next((f for f in all_of_them if f.job.record.state == "running"), None)
    one = one or next(iter(all_of_them), None)
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": one is not None and one.interrupted,
        "stopping_generation": False,
        "job": "" if one is None else one.job.id,
        "job_count": len(all_of_them),
        "job_no": 0,
        "job_timestamp": "0" if one is None else _timestamp(one.job.record.created),
        "sampling_step": 0 if one is None else one.job.step,
        "sampling_steps": 0 if one is None else one.job.total or 0,
    }
    progress = 0.0 if one is None else one.progress
    left = 0.0
    if one is not None and progress:
        left = (time.monotonic() - one.began) * (1 - progress) / progress
    shown = None if one is None or skip_current_image else one.preview
    return {
        "progress": progress,
        "eta_relative": left,
        "state": state,
        "current_image": shown,
        "textinfo": None,
    }


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End your jobs that run, or the first that waits; their clients get what is finished."""
    service, all_of_them = service_of(request), _waiting(request).of(owner_of(request))
    running = [one for one in all_of_them if one.job.record.state == "running"]
    for one in running or all_of_them[:1]:
        one.interrupted = True
        await service.cancel(one.job)
    return {}


@router.post("/skip")
async def skip(request: Request) -> dict[str, Any]:
    """The same as interrupt."""
    return await interrupt(request)
