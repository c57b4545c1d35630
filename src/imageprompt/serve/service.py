"""The jobs of a server: taken, queued, run, kept, told of; the one thing that all routes call."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from imageprompt.core.atomic_files import locked
from imageprompt.core.errors import ImagePromptError, WriteError
from imageprompt.library import Library
from imageprompt.serve import sources
from imageprompt.serve.errors import ApiError, Problem, bad_request, not_found
from imageprompt.serve.events import Event, EventLog, number_after
from imageprompt.serve.files import Files
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.queue import Entry, FairQueue, Full, batch_key
from imageprompt.serve.recipes import Restorer, restored_or_none
from imageprompt.serve.request_body import checked_request
from imageprompt.serve.settings import Settings
from imageprompt.serve.store import (
    ENDED,
    Image,
    JobRecord,
    State,
    Store,
    StoreThread,
    fingerprint,
)
from imageprompt.serve.worker.protocol import Message
from imageprompt.serve.worker.supervisor import Supervisor

API = "/api/v1"
WINDOW = 0.02
"""Seconds that the worker waits for jobs that could run together, when several clients are busy."""
MAX_CRASHES = 2
"""A job that ends the worker so often has failed."""
MAX_ATTEMPTS = 5
"""Starts of a job, whatever ended it: the server may have been ended by it, too."""
RECENT = 500
"""Jobs that have ended whose events are kept in memory."""
ONCE_SECONDS = 24 * 3600.0
SWEEP_SECONDS = 3600.0
PING_SECONDS = 15.0
"""Quiet time after which a stream says that it lives."""
_GIVEN_UP = Problem("crashed", "the server ended several times with this job")
GUESSED_RATE = 512.0**2 * 20 / 10
"""Pixels × steps a second, until it is known."""

log = logging.getLogger(__name__)


@dataclass
class Job:
    """A job that waits, runs, or has ended lately."""

    record: JobRecord
    entry: Entry
    log: EventLog = field(default_factory=EventLog)
    step: int = 0
    total: int | None = None
    cancelling: bool = False
    writes: list[asyncio.Task[None]] = field(default_factory=list)
    stepped: float = 0.0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ended(self) -> bool:
        return self.record.state in ENDED


class Service:
    """`submit`, `wait` and `events` are what other APIs translate to."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.limits = settings.limits
        self.folder = settings.data_folder
        self.files = Files(self.folder, self.limits)
        self.library = Library(settings.library_folder)
        self.queue = FairQueue(self.limits, settings.queue)
        self.epoch = secrets.token_hex(4)
        """Tells the events of this server from those of an earlier one."""
        self.draining = False
        self._store = StoreThread(self.folder / "jobs.sqlite")
        self._live: dict[str, Job] = {}
        self._recent: OrderedDict[str, Job] = OrderedDict()
        self._batch: dict[str, Job] = {}
        self._busy = False
        self._began = 0.0
        self._rate: float | None = None
        self._crowded = 0.0
        self._positions_due = False
        self._full_until = 0.0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held = contextlib.ExitStack()
        self._done_cost = 0.0
        self.decoding = asyncio.Semaphore(2)
        """Pictures that are decoded at once: each takes up to 300 MB."""
        self.streams = 0
        self.worker = Supervisor(settings, self._heard, self._died)

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Take the data folder and begin to work. Raises OptionError, BusyError, WriteError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(
            locked(
                self.folder / "lock",
                f"data folder {str(self.folder)!r}",
                timeout=0,
                reason="another server uses it",
                hint="Give another one: --data DIR.",
            )
        )
        self._store.start()
        await self._take_up()
        self.worker.start()
        self._task(self._dispatch())
        self._task(self._sweep_often())

    async def first_ready(self) -> None:
        """Until the worker can work. Raises an ImagePromptError if it never will."""
        await asyncio.shield(self.worker.first_start)
        self._task(self._rebuild())

    async def stop(self) -> None:
        """End the worker; what runs waits for the next server."""
        self.draining = True
        for task in list(self._tasks):
            task.cancel()
        await self.worker.stop()
        left = [job.id for job in self._batch.values()]
        if left:
            with contextlib.suppress(sqlite3.Error):
                await self._store.change(lambda store: store.requeue(left, crashed=False))
        await asyncio.to_thread(self._store.stop)
        self._held.close()

    def drain(self) -> None:
        """Take no more jobs, start none, and let the streams of those that wait end."""
        self.draining = True
        for job in self._live.values():
            job.log.wake()

    @property
    def idle(self) -> bool:
        """Is nothing running, and nobody listening?"""
        return (
            not self._batch
            and self.streams == 0
            and not any(job.record.state == "running" for job in self._live.values())
        )

    def not_ready(self) -> str | None:
        """Why no jobs are taken; None if they are."""
        if self.draining:
            return "draining"
        if not self.worker.ready:
            return "not_ready"
        return "queue_full" if self.queue.full else None

    async def _take_up(self) -> None:
        """Jobs of an earlier server wait again."""
        unfinished = await self._store.look_up(lambda store: store.unfinished())
        for record in unfinished:
            running, one = record.state == "running", record.id
            if running and record.attempt >= MAX_ATTEMPTS:
                await self._store.change(
                    partial(Store.end, job=one, state="failed", error=_GIVEN_UP)
                )
                continue
            if running:
                await self._store.change(partial(Store.requeue, ids=[one], crashed=False))
            record.state = "queued"
            job = Job(record, self._entry(record))
            self._live[job.id] = job
            (self.queue.push_again if running else self.queue.push)(job.entry)
            job.log.add("queued", position=len(self.queue) - 1)

    async def _rebuild(self) -> None:
        """Jobs whose pictures are there, but whose rows are lost."""
        known = await self._store.look_up(lambda store: store.known())
        for owner, job in await asyncio.to_thread(lambda: list(self.files.all_jobs())):
            if job in known:
                continue
            record = await asyncio.to_thread(self._record_of_files, owner, job)
            if record is not None:
                needed = sorted(sources.uploads_in(record.request))
                with contextlib.suppress(sqlite3.Error):
                    await self._store.change(partial(Store.add, job=record, uploads=needed))

    def _record_of_files(self, owner: str, job: str) -> JobRecord | None:
        found = self.files.results_of(owner, job)
        restored = [(one, restored_or_none(self.restorer, one.path)) for one in found]
        images = [
            Image(one.index, r.width, r.height, r.request["seed"], one.path.stat().st_size)
            for one, r in restored
            if r is not None
        ]
        first = next((r for _, r in restored if r is not None), None)
        if first is None:
            return None
        made = found[0].path.stat().st_mtime
        request = first.request | {"num_images": len(images)}
        return JobRecord(
            id=job,
            owner=owner,
            request=request,
            state="done",
            created=made,
            started=made,
            ended=made,
            attempt=1,
            images=images,
        )

    @property
    def restorer(self) -> Restorer:
        return Restorer(self.worker.described, self.library.names)

    async def _sweep_often(self) -> None:
        while True:
            with contextlib.suppress(OSError, sqlite3.Error):
                await self._sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> None:
        """Delete uploads that no job needs, and forget old idempotency keys."""
        await self._store.change(lambda store: store.forget_once(ONCE_SECONDS))
        seconds = self.settings.keep_uploads * 3600
        for owner, digest in await asyncio.to_thread(lambda: [*self.files.old_uploads(seconds)]):
            needed = await self._store.look_up(partial(Store.needed, owner=owner, upload=digest))
            if not needed:
                self.files.upload(owner, digest).unlink(missing_ok=True)

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self, request: Mapping[str, Any], owner: str, *, once: str | None = None
    ) -> Job | JobRecord:
        """Take a request whose pictures are uploads; returns when the job is on the disk.

        With `once` that was used for the same request, its job is returned. Raises ApiError.
        """
        request = dict(request)
        checked_request(request, self.limits)
        self._check_served(request)
        self.check_uploads(request, owner)
        if once is not None and (known := await self._known(owner, once, request)) is not None:
            return known
        self._admit()
        record = JobRecord(id=secrets.token_hex(16), owner=owner, request=request)
        job = Job(record, self._entry(record))
        self._admit_to_queue(owner, job.entry.cost)
        uploads = sorted(sources.uploads_in(request))
        self.queue.reserved += 1
        try:
            await self._store.change(
                lambda store: store.add(record, uploads, once, fingerprint(request))
            )
        except sqlite3.IntegrityError:
            if once is not None and (known := await self._known(owner, once, request)) is not None:
                return known
            raise
        except sqlite3.Error as error:
            raise self._storage(error) from error
        finally:
            self.queue.reserved -= 1
        if self._live:
            self._crowded = time.monotonic() + 1
        self._live[job.id] = job
        self.queue.push(job.entry)
        job.log.add("queued", position=self.position(job))
        self._queue_changed()
        return job

    async def wait(self, job: Job) -> None:
        """Until the job has ended."""
        while not job.log.ended:
            await job.log.wait()

    async def find(self, owner: str, job: str) -> Job | JobRecord:
        """A job of this owner. Raises ApiError."""
        live = self._live.get(job) or self._recent.get(job)
        if live is not None and live.record.owner == owner:
            return live
        record = await self._store.look_up(lambda store: store.job(owner, job))
        if record is None:
            raise not_found(f"job {job:.64}")
        return record

    async def list(
        self, owner: str, *, limit: int, before: str | None, state: str | None
    ) -> Sequence[Job | JobRecord]:
        """Jobs of this owner, newest first."""
        records = await self._store.look_up(
            lambda store: store.jobs(owner, limit=limit, before=before, state=state)
        )
        return [self._live.get(record.id, record) for record in records]

    async def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, within one step if it runs."""
        if job.ended or job.cancelling:
            return
        job.cancelling = True
        if self.queue.remove(job.id):
            await self._end(job, "cancelled")
            self._queue_changed()
        else:
            self.worker.send(Message("cancel", {"job": job.id}))

    async def remove(self, owner: str, job: str) -> None:
        """Delete a job that has ended, and its pictures."""
        await asyncio.to_thread(self.files.remove_results, owner, job)
        await self._store.change(lambda store: store.remove(job))
        self._recent.pop(job, None)

    def position(self, job: Job) -> int | None:
        return self.queue.positions().get(job.id)

    def retry_after(self) -> float:
        """Seconds until the queue has room, by how fast it was so far."""
        seconds = self.queue.cost / (self._rate or GUESSED_RATE)
        return max(1.0, min(100.0, seconds)) * random.uniform(1.0, 1.2)

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    async def events(self, job: Job | JobRecord, last_id: str = "") -> AsyncIterator[Event | None]:
        """The events after one, until the job has ended; None when there is nothing to tell for a
        while. While the server drains, those of a job that waits end early."""
        number = number_after(last_id, self.epoch)
        if isinstance(job, JobRecord):
            for event in _past(job).after(number):
                yield event
            return
        events = job.log
        events.readers += 1
        if events.readers == 1 and job.id in self._batch:
            self.worker.send(Message("watch", {"job": job.id}))
        try:
            while True:
                told = False
                for event in events.after(number):
                    number, told = event.number, True
                    yield event
                if told:  # more may have happened meanwhile
                    continue
                if events.ended or (self.draining and job.record.state == "queued"):
                    return
                try:
                    await asyncio.wait_for(events.wait(), timeout=PING_SECONDS)
                except TimeoutError:
                    yield None
        finally:
            events.readers -= 1
            if events.readers == 0 and job.id in self._batch:
                self.worker.send(Message("unwatch", {"job": job.id}))

    # ── admission ───────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> None:
        """Raises ApiError when no jobs are taken."""
        if self.draining:
            problem = Problem("draining", "the server is stopping", None, "Try again.")
            raise ApiError(503, problem, retry_after=10)
        if not self.worker.described:
            problem = Problem("not_ready", "the worker is starting", None, "Try again.")
            raise ApiError(503, problem, retry_after=5)
        self.check_disk()

    def check_disk(self) -> None:
        """Raises ApiError while nothing can be written."""
        if time.monotonic() < self._full_until or self.files.full():
            raise self._storage(None)

    def check_room(self, owner: str) -> None:
        """Raises ApiError if a job of this owner would not be taken, before its pictures are."""
        self._admit()
        self._admit_to_queue(owner, 0.0)

    def uploads_folder(self, owner: str) -> str:
        return str(self.files.upload(owner, "0" * 64).parent)

    def _storage(self, error: Exception | None) -> ApiError:
        if error is not None:
            log.error("the store: %s", error)
            self._full_until = time.monotonic() + 2
        problem = Problem("storage", "the server cannot write to its disk", None, "Try later.")
        return ApiError(503, problem, retry_after=60)

    def _admit_to_queue(self, owner: str, cost: float) -> None:
        try:
            self.queue.check(owner, cost)
        except Full as full:
            kind, what = ("quota", "you have") if full.quota else ("queue_full", "there are")
            problem = Problem(kind, f"{what} too many jobs that wait", None, "Try again later.")
            raise ApiError(429, problem, retry_after=self.retry_after()) from None

    async def _known(
        self, owner: str, once: str, request: Mapping[str, Any]
    ) -> Job | JobRecord | None:
        """The job that an idempotency key was used for. Raises ApiError for another request."""
        found = await self._store.look_up(lambda store: store.once(owner, once))
        if found is None:
            return None
        if found[1] != fingerprint(request):
            problem = Problem("conflict", "this Idempotency-Key was used for another request")
            raise ApiError(409, problem)
        return await self.find(owner, found[0])

    def _check_served(self, request: Mapping[str, Any]) -> None:
        """Base, adapters, styles and size are those of this server. Raises ApiError."""
        described = self.worker.described
        if not described:
            return
        base = described["base"]
        if request.get("base") not in (None, base["name"]):
            raise bad_request(
                "base: not served",
                param="base",
                hint=f"There is: {base['name']}.",
                type="invalid_option",
            )
        if request.get("size") is not None and any(
            side % base["multiple"] for side in request["size"]
        ):
            raise bad_request(
                f"size: sides must be multiples of {base['multiple']} for this base",
                param="size",
                type="invalid_option",
            )
        for index, reference in enumerate(request.get("references") or ()):
            self._check_reference(reference, f"references.{index}")

    def _check_reference(self, reference: Mapping[str, Any], place: str) -> None:
        adapters = self.worker.described["adapters"]
        name, style = reference.get("adapter"), reference.get("style")
        self.check_adapter(name, f"{place}.adapter")
        if not adapters and style is None:
            raise bad_request(f"{place}: this server has no adapter", param=place)
        if style is not None:
            self._check_style(style, name, f"{place}.style")

    def check_adapter(self, name: str | None, place: str) -> None:
        """Raises ApiError unless it is None or served."""
        adapters = [one["name"] for one in self.worker.described.get("adapters", ())]
        if name is not None and name not in adapters:
            raise bad_request(
                f"{place}: not served",
                type="invalid_option",
                param=place,
                hint=f"There are: {', '.join(adapters) or 'none'}.",
            )

    def _check_style(self, style: str, adapter: str | None, place: str) -> None:
        try:
            made_by = self.library.show(style).adapter.hash
        except ImagePromptError as error:
            raise bad_request(
                f"style {style!r:.120}: not in the library",
                type="invalid_option",
                param=place,
                hint="GET /api/v1/styles lists them.",
            ) from error
        fitting = self.adapters_of(made_by)
        if adapter not in (None, *fitting) or not fitting:
            raise bad_request(
                f"style {style!r:.120}: made with another adapter",
                type="invalid_option",
                param=place,
                hint=f"Use it with: {', '.join(fitting)}." if fitting else "",
            )

    def adapters_of(self, projector: str) -> Sequence[str]:
        """The names of the adapters that made styles with this record."""
        adapters = self.worker.described.get("adapters", ())
        return [one["name"] for one in adapters if one["projector"] == projector]

    def check_uploads(self, request: Mapping[str, Any], owner: str) -> None:
        for place, holder, key in sources.places(request):
            kind = sources.kind_of(holder[key])
            if kind not in ("upload", "tokens"):
                raise bad_request(f"{place}: not an upload", param=place)
            if not self.files.has(owner, sources.upload_of(holder[key])):
                raise bad_request(
                    f"{place}: no such upload",
                    type="missing_upload",
                    param=place,
                    hint="Send the picture to POST /api/v1/uploads.",
                )

    def _entry(self, record: JobRecord) -> Entry:
        base = self.worker.described.get("base", {})
        request = record.request
        width, height = request.get("size") or (base.get("width", 512), base.get("height", 512))
        steps = request.get("steps") or base.get("steps") or 50
        pictures = int(request.get("num_images") or 1)
        pixels = int(width) * int(height)
        return Entry(
            id=record.id,
            owner=record.owner,
            cost=float(pixels) * int(steps) * pictures,
            pictures=pictures,
            pixels=pixels,
            batch_key=None if record.crashes else batch_key(request),
        )

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    async def _dispatch(self) -> None:
        """Give the worker one batch after another."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._can_start():
                continue
            if self.queue.reserved or time.monotonic() < self._crowded:
                await asyncio.sleep(WINDOW)
            if self._can_start():
                entries = self.queue.take(self.settings.batch_size)
                if entries:
                    self._start([self._live[entry.id] for entry in entries])
                    self._queue_changed()

    def _can_start(self) -> bool:
        return self.worker.ready and not self._busy and not self.draining and len(self.queue) > 0

    def _start(self, jobs: Sequence[Job]) -> None:
        now, ids = time.time(), [job.id for job in jobs]
        self._busy, self._began = True, time.monotonic()
        self._batch = {job.id: job for job in jobs}
        for job in jobs:
            record = job.record
            record.state, record.started, record.attempt = "running", now, record.attempt + 1
            job.step, job.total, job.stepped = 0, None, time.monotonic()
            job.log.add("started", attempt=record.attempt)
            self.metrics.waited.observe(now - record.created)
        self.metrics.batch.observe(sum(job.entry.pictures for job in jobs))
        self._task(self._store.change(lambda store: store.start(ids, self.epoch)))
        described = [
            {
                "id": job.id,
                "request": job.record.request,
                "folder": self.uploads_folder(job.record.owner),
            }
            for job in jobs
        ]
        self.worker.send(Message("run", {"jobs": described}))
        for job in jobs:
            if job.log.readers:
                self.worker.send(Message("watch", {"job": job.id}))

    def _heard(self, message: Message) -> None:
        """A message of the worker."""
        if message.kind == "ready":
            self.metrics.worker_starts.inc()
            self._wake.set()
        elif message.kind == "idle":
            self._batch_ended()
        elif (job := self._batch.get(message.data.get("job", ""))) is not None:
            self._heard_of(job, message)

    def _heard_of(self, job: Job, message: Message) -> None:
        data = message.data
        if message.kind == "step":
            now = time.monotonic()
            if job.step:
                self.metrics.step.observe(now - job.stepped)
            job.step, job.total, job.stepped = data["step"], data["total"], now
            job.log.add("progress", **{k: v for k, v in data.items() if k != "job"})
        elif message.kind == "preview":
            jpeg = base64.b64encode(message.content).decode()
            job.log.add("preview", index=data["index"], step=data["step"], jpeg=jpeg)
        elif message.kind == "image":
            job.writes.append(self._task(self._keep_image(job, data, message.content)))
        elif message.kind == "ended":
            del self._batch[job.id]
            error = data.get("error")
            problem = None if error is None else Problem.from_dict(error)
            self._task(self._finish(job, data["state"], problem))

    def _batch_ended(self) -> None:
        seconds = time.monotonic() - self._began
        self._busy = False
        self._wake.set()
        if self._done_cost and seconds > 0:
            now = self._done_cost / seconds
            self._rate = now if self._rate is None else 0.8 * self._rate + 0.2 * now
        self._done_cost = 0.0

    async def _keep_image(self, job: Job, data: Mapping[str, Any], png: bytes) -> None:
        """The file first, then its row, then the event."""
        record = job.record
        image = Image(data["index"], data["width"], data["height"], data["seed"], len(png))
        await asyncio.to_thread(self.files.keep_result, record.owner, record.id, image.index, png)
        await self._store.change(lambda store: store.add_images(record.id, [image]))
        record.images = [one for one in record.images if one.index != image.index]
        record.images = sorted([*record.images, image], key=lambda one: one.index)
        self.metrics.pictures.inc()
        job.log.add("image", **image_dict(record.id, image))

    async def _finish(self, job: Job, state: State, problem: Problem | None) -> None:
        """A job that the worker has ended: when its pictures are on the disk."""
        for written in await asyncio.gather(*job.writes, return_exceptions=True):
            if isinstance(written, OSError | WriteError | sqlite3.Error):
                log.error("a picture of job %s: %s", job.id, type(written).__name__)
                self._full_until = time.monotonic() + 2
                state = "failed"
                problem = Problem("storage", "the server could not write to its disk")
            elif isinstance(written, Exception):
                raise written
        job.writes.clear()
        if state == "done":
            self._done_cost += job.entry.cost
        await self._end(job, state, problem)

    async def _end(self, job: Job, state: State, problem: Problem | None = None) -> None:
        record = job.record
        for pause in (1.0, 5.0, None):
            try:
                await self._store.change(lambda store: store.end(record.id, state, problem))
                break
            except sqlite3.Error as error:
                log.error("the end of job %s: %s", record.id, error)
                if pause is None:  # the next server finds it running, and starts it again
                    break
                await asyncio.sleep(pause)
        record.state, record.error, record.ended = state, problem, time.time()
        self._live.pop(job.id, None)
        self._recent[job.id] = job
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        self.metrics.jobs.labels(state).inc()
        if problem is None:
            job.log.add(state, images=len(record.images))
        else:
            if problem.type == "out_of_memory":
                self.metrics.out_of_memory.inc()
            job.log.add(state, error=problem.as_dict())

    def _died(self) -> None:
        """The worker has ended with the jobs that it ran."""
        jobs, self._batch, self._busy = list(self._batch.values()), {}, False
        for job in jobs:
            job.record.crashes += 1
            if job.cancelling:
                self._task(self._finish(job, "cancelled", None))
            elif job.record.crashes >= MAX_CRASHES:
                problem = Problem("crashed", "the worker ended twice with this job")
                self._task(self._finish(job, "failed", problem))
            else:
                self._again(job)

    def _again(self, job: Job) -> None:
        """It waits again, in the first place, and then runs alone."""
        job.record.state = "queued"
        job.entry = self._entry(job.record)
        self._task(self._store.change(lambda store: store.requeue([job.id], crashed=True)))
        self.queue.push_again(job.entry)
        job.log.add("queued", position=self.position(job))
        self._wake.set()

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────

    def _queue_changed(self) -> None:
        self.metrics.waiting.set(len(self.queue))
        self.metrics.work.set(self.queue.cost)
        self._wake.set()
        if not self._positions_due:
            self._positions_due = True
            asyncio.get_running_loop().call_later(0.3, self._tell_positions)

    def _tell_positions(self) -> None:
        self._positions_due = False
        for job, position in self.queue.positions().items():
            live = self._live.get(job)
            if live is not None and live.log.readers:
                live.log.add("queued", position=position)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", type(error).__name__, error)


def image_dict(job: str, image: Image) -> dict[str, Any]:
    """A picture in the words of the API."""
    return {
        "index": image.index,
        "url": f"{API}/jobs/{job}/result/{image.index}.png",
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "bytes": image.bytes,
    }


def _past(record: JobRecord) -> EventLog:
    """The events of a job that ended before this server began."""
    events = EventLog()
    if record.started is not None:
        events.add("started", attempt=record.attempt)
    for image in record.images:
        events.add("image", **image_dict(record.id, image))
    if record.state in ENDED:
        if record.error is None:
            events.add(record.state, images=len(record.images))
        else:
            events.add(record.state, error=record.error.as_dict())
    return events
