"""The jobs of a server: taken, found, followed, cancelled; the one thing that all routes call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from imageprompt.core.atomic_files import locked
from imageprompt.library import Library
from imageprompt.serve import sources
from imageprompt.serve.admission import Admission
from imageprompt.serve.errors import ApiError, Problem, not_found
from imageprompt.serve.events import Event, number_after
from imageprompt.serve.files import Files
from imageprompt.serve.live_job import Job, past_events
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.queue import FairQueue
from imageprompt.serve.recipes import Restorer, restored_or_none
from imageprompt.serve.request_body import checked_request
from imageprompt.serve.runner import Runner
from imageprompt.serve.settings import Settings
from imageprompt.serve.store import Image, JobRecord, Store, StoreThread, fingerprint
from imageprompt.serve.tracing import Tracing, tracing_of_environment
from imageprompt.serve.worker.supervisor import Supervisor

MAX_ATTEMPTS = 5
"""Starts of a job, whatever ended it: the server may have been ended by it, too."""
ONCE_SECONDS = 24 * 3600.0
"""How long an idempotency key is remembered."""
SWEEP_SECONDS = 3600.0
SWEPT_AT_ONCE = 200
"""Old jobs that are deleted with one change."""
PING_SECONDS = 15.0
"""Quiet time after which a stream says that it lives."""
_GIVEN_UP = Problem("crashed", "the server ended several times with this job")

log = logging.getLogger(__name__)


class Service:
    """`submit`, `wait` and `events` are what other APIs translate to.

    The ids of its jobs begin with `mark`, hexadecimal digits that tell it from its replicas.
    """

    def __init__(self, settings: Settings, mark: str = "", tracing: Tracing | None = None) -> None:
        self.settings, self.limits, self._mark = settings, settings.limits, mark
        self.tracing = tracing or tracing_of_environment()
        self.metrics = Metrics()
        self.folder = settings.data_folder
        self.files = Files(self.folder, self.limits)
        self.library = Library(settings.library_folder)
        self.queue = FairQueue(self.limits, settings.queue)
        self.epoch = secrets.token_hex(4)
        """Tells this server from earlier ones: in ids of events, and in leases."""
        self.streams = 0
        self.decoding = asyncio.Semaphore(2)
        """Pictures that are decoded at once: each takes up to 300 MB."""
        self._store = StoreThread(self.folder / "jobs.sqlite")
        self._runner = Runner(
            self._store,
            self.files,
            self.queue,
            self.metrics,
            batch_size=settings.batch_size,
            lease=self.epoch,
        )
        self.worker = Supervisor(settings, self._runner.heard, self._runner.died)
        self.admission = Admission(self.files, self.library, self.queue, self.worker)
        self._held = contextlib.ExitStack()

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
        self._runner.connect(self.worker, self.admission)
        self._runner.spawn(self._sweep_often())

    async def first_ready(self) -> None:
        """Until the worker can work. Raises an ImagePromptError if it never will."""
        await asyncio.shield(self.worker.first_start)
        self._runner.spawn(self._rebuild())

    async def stop(self) -> None:
        """End the worker; what runs waits for the next server."""
        self.admission.draining = True
        self._runner.cancel_tasks()
        await self.worker.stop()
        if left := list(self._runner.batch):
            with contextlib.suppress(sqlite3.Error):
                await self._store.change(partial(Store.requeue, ids=left, crashed=False))
        for job in self._runner.live.values():
            job.trace.ended("kept")  # the next server goes on with it, in the same trace
        await asyncio.to_thread(self._store.stop)
        await asyncio.to_thread(self.tracing.close)
        self._held.close()

    def drain(self) -> None:
        """Take no more jobs, start none, and let the streams of those that wait end."""
        self.admission.draining = True
        for job in self._runner.live.values():
            job.log.wake()

    @property
    def idle(self) -> bool:
        """Is nothing running, and nobody listening?"""
        return self._runner.idle and self.streams == 0

    async def _take_up(self) -> None:
        """Jobs of an earlier server wait again."""
        await self._store.change(Store.end_cancelled)
        for record in await self._store.look_up(Store.unfinished):
            running, one = record.state == "running", record.id
            if running and record.attempt >= MAX_ATTEMPTS:
                end = partial(Store.end, job=one, state="failed", error=_GIVEN_UP)
                await self._store.change(end)
                continue
            if running:
                await self._store.change(partial(Store.requeue, ids=[one], crashed=False))
            record.state = "queued"
            job = Job(record, self.admission.entry(record), self.tracing.job(record))
            self._runner.add(job, again=running)

    async def _rebuild(self) -> None:
        """Jobs whose pictures are there, but whose rows are lost."""
        known = await self._store.look_up(Store.known)
        for owner, job in await asyncio.to_thread(lambda: list(self.files.all_jobs())):
            if job in known:
                continue
            record = await asyncio.to_thread(self._record_of_files, owner, job)
            if record is not None:
                needed = sorted(sources.uploads_in(record.request))
                with contextlib.suppress(sqlite3.Error):
                    await self._store.change(partial(Store.add, job=record, uploads=needed))
        with contextlib.suppress(OSError, sqlite3.Error):
            await self._remove_old()

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
        return JobRecord(
            id=job,
            owner=owner,
            request=first.request | {"num_images": len(images)},
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
        """Delete old jobs and uploads that no job needs, and forget old idempotency keys."""
        await self._store.change(partial(Store.forget_once, seconds=ONCE_SECONDS))
        await self._remove_old()
        seconds = self.settings.keep_uploads * 3600
        for owner, digest in await asyncio.to_thread(lambda: [*self.files.old_uploads(seconds)]):
            if not await self._store.look_up(partial(Store.needed, owner=owner, upload=digest)):
                await asyncio.to_thread(self.files.remove_upload, owner, digest)

    async def _remove_old(self) -> None:
        """Delete the jobs that are kept no longer: files first, or a lost store would bring them
        back. What cannot be deleted now is tried again with the next sweep."""
        if self.settings.keep_jobs is None:
            return
        number, before = 0, time.time() - self.settings.keep_jobs * 3600
        look_up = partial(Store.old, before=before, limit=SWEPT_AT_ONCE)
        while found := await self._store.look_up(partial(look_up, after=number)):
            removed = []
            number = found[-1][0]
            for _, owner, job in found:
                try:
                    await asyncio.to_thread(self.files.remove_results, owner, job)
                    removed.append(job)
                except OSError as error:
                    log.error("job %s is not deleted: %s", job, type(error).__name__)
            await self._store.change(partial(Store.remove, jobs=removed))
            for job in removed:
                self._runner.recent.pop(job, None)
            self.metrics.removed.inc(len(removed))

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self,
        request: Mapping[str, Any],
        owner: str,
        *,
        once: str | None = None,
        workflow: bool = False,
    ) -> Job | JobRecord:
        """Take a request whose pictures are uploads; returns when the job is on the disk.

        With `once` that was used for the same request, its job is returned. `workflow` says that
        it is one of `workflow_body.checked`, whatever its keys are. Raises ApiError.
        """
        request = dict(request)
        if not workflow:  # its route has checked one
            checked_request(request, self.limits)
            self.admission.check_served(request)
        self.admission.check_uploads(request, owner)
        if once is not None and (known := await self._known(owner, once, request)) is not None:
            return known
        name = self._mark + secrets.token_hex(16)[len(self._mark) :]
        record = JobRecord(id=name, owner=owner, request=request, trace=self.tracing.parent())
        job = Job(record, self.admission.entry(record))
        self.admission.check_room(owner, job.entry.cost)
        add = partial(
            Store.add,
            job=record,
            uploads=sorted(sources.uploads_in(request)),
            once=once,
            fingerprint=fingerprint(request),
        )
        self.queue.reserved += 1
        try:
            await self._store.change(add)
        except sqlite3.IntegrityError:
            if once is not None and (known := await self._known(owner, once, request)) is not None:
                return known
            raise
        except sqlite3.Error as error:
            raise self.admission.disk_refused(error) from error
        finally:
            self.queue.reserved -= 1
        job.trace = self.tracing.job(record)
        self._runner.add(job)
        return job

    async def _known(
        self, owner: str, once: str, request: Mapping[str, Any]
    ) -> Job | JobRecord | None:
        """The job that an idempotency key was used for. Raises ApiError for another request."""
        found = await self._store.look_up(partial(Store.once, owner=owner, once=once))
        if found is None:
            return None
        if found[1] != fingerprint(request):
            problem = Problem("conflict", "this Idempotency-Key was used for another request")
            raise ApiError(409, problem)
        return await self.find(owner, found[0])

    async def wait(self, job: Job) -> None:
        """Until the job has ended."""
        while not job.log.ended:
            await job.log.wait()

    async def find(self, owner: str, job: str) -> Job | JobRecord:
        """A job of this owner. Raises ApiError."""
        live = self._runner.live.get(job) or self._runner.recent.get(job)
        if live is not None and live.record.owner == owner:
            return live
        record = await self._store.look_up(partial(Store.job, owner=owner, job=job))
        if record is None:
            raise not_found(f"job {job:.64}")
        return record

    async def list(
        self, owner: str, *, limit: int, before: str | None, state: str | None
    ) -> Sequence[Job | JobRecord]:
        """Jobs of this owner, newest first."""
        look_up = partial(Store.jobs, owner=owner, limit=limit, before=before, state=state)
        records = await self._store.look_up(look_up)
        return [self._runner.live.get(record.id, record) for record in records]

    async def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, within one step if it runs."""
        await self._runner.cancel(job)

    async def remove(self, owner: str, job: str) -> None:
        """Delete a job that has ended, and its pictures."""
        await asyncio.to_thread(self.files.remove_results, owner, job)
        await self._store.change(partial(Store.remove, jobs=[job]))
        self._runner.recent.pop(job, None)

    def position(self, job: Job) -> int | None:
        """The number of jobs before it; None if it does not wait."""
        return self.queue.positions().get(job.id) if job.id in self.queue else None

    async def events(self, job: Job | JobRecord, last_id: str = "") -> AsyncIterator[Event | None]:
        """The events after one, until the job has ended; None when there is nothing to tell for a
        while. While the server drains, those of a job that waits end early."""
        number = number_after(last_id, self.epoch)
        if isinstance(job, JobRecord):
            for event in past_events(job).after(number):
                yield event
            return
        self._runner.watch(job, 1)
        try:
            while True:
                told = False
                for event in job.log.after(number):
                    number, told = event.number, True
                    yield event
                if told:  # more may have happened meanwhile
                    continue
                if job.log.ended or (self.admission.draining and job.record.state == "queued"):
                    return
                if not await job.log.wait(PING_SECONDS):
                    yield None
        finally:
            self._runner.watch(job, -1)
