"""Gives the worker one batch after another, and keeps what comes of it."""

from __future__ import annotations

import asyncio
import base64
import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from imageprompt.core.errors import WriteError
from imageprompt.serve.admission import Admission
from imageprompt.serve.errors import Problem
from imageprompt.serve.files import Files
from imageprompt.serve.live_job import Job, add_end, image_dict
from imageprompt.serve.metrics import Metrics
from imageprompt.serve.queue import FairQueue
from imageprompt.serve.store import Image, State, Store, StoreThread
from imageprompt.serve.tracing import note
from imageprompt.serve.worker.protocol import Message
from imageprompt.serve.worker.supervisor import Supervisor

WINDOW = 0.02
"""Seconds that the worker waits for jobs that could run together, when several clients are busy."""
CROWDED_SECONDS = 1.0
"""So long after a job came while another was there, several clients count as busy."""
MAX_CRASHES = 2
"""A job that ends the worker so often has failed."""
RECENT = 500
"""Jobs that have ended whose events are kept in memory."""
POSITION_SECONDS = 0.3
"""At least so long between two positions that a reader is told."""
_CRASHED = Problem("crashed", "the worker ended twice with this job")
_NOT_KEPT = Problem("storage", "the server could not write to its disk")

log = logging.getLogger(__name__)


class Runner:
    """The jobs of this server, from the queue to the disk."""

    def __init__(
        self,
        store: StoreThread,
        files: Files,
        queue: FairQueue,
        metrics: Metrics,
        *,
        batch_size: int,
        lease: str,
    ) -> None:
        self._store, self._files, self._queue, self._metrics = store, files, queue, metrics
        self._batch_size, self._lease = batch_size, lease
        self.live: dict[str, Job] = {}
        """Jobs that wait or run."""
        self.recent: OrderedDict[str, Job] = OrderedDict()
        """Jobs that have ended, the last one last."""
        self.batch: dict[str, Job] = {}
        """What the worker has and has not ended yet."""
        self._busy = False
        self._began = self._crowded_until = self._done_cost = 0.0
        self._positions_due = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._worker: Supervisor
        self._admission: Admission

    def connect(self, worker: Supervisor, admission: Admission) -> None:
        self._worker, self._admission = worker, admission
        self.spawn(self._dispatch())

    def cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    @property
    def idle(self) -> bool:
        """Does nothing run, and is all on the disk?"""
        running = any(job.record.state == "running" for job in self.live.values())
        return not self.batch and not running

    # ── from the queue to the worker ────────────────────────────────────────────────────────────

    def add(self, job: Job, *, again: bool = False) -> None:
        """A job waits; one that had begun already goes first."""
        if self.live:
            self._crowded_until = time.monotonic() + CROWDED_SECONDS
        self.live[job.id] = job
        job.trace.waits()
        (self._queue.push_again if again else self._queue.push)(job.entry)
        job.log.add("queued", position=self._queue.positions()[job.id])
        self._queue_changed()

    async def cancel(self, job: Job) -> None:
        if job.ended or job.cancelling:
            return
        job.cancelling = True
        if self._queue.remove(job.id):
            await self._end(job, "cancelled")
            self._queue_changed()
        else:
            self._worker.send(Message("cancel", {"job": job.id}))
            await self._store.change(partial(Store.cancel, job=job.id))

    def watch(self, job: Job, readers: int) -> None:
        """So many readers more (or less) follow a job; previews are made for readers only."""
        before, job.log.readers = job.log.readers, job.log.readers + readers
        if job.id in self.batch and bool(before) != bool(job.log.readers):
            kind = "watch" if job.log.readers else "unwatch"
            self._worker.send(Message(kind, {"job": job.id}))

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._can_start():
                continue
            if self._queue.reserved or time.monotonic() < self._crowded_until:
                await asyncio.sleep(WINDOW)
            if self._can_start():
                entries = self._queue.take(self._batch_size)
                self._start([self.live[entry.id] for entry in entries])
                self._queue_changed()

    def _can_start(self) -> bool:
        able = self._worker.ready and not self._busy and not self._admission.draining
        return able and len(self._queue) > 0

    def _start(self, jobs: Sequence[Job]) -> None:
        now, ids = time.time(), [job.id for job in jobs]
        self._busy, self._began = True, time.monotonic()
        self.batch = {job.id: job for job in jobs}
        for job in jobs:
            record = job.record
            record.state, record.started, record.attempt = "running", now, record.attempt + 1
            job.step, job.total, job.stepped = 0, None, time.monotonic()
            job.log.add("started", attempt=record.attempt)
            self._metrics.waited.observe(now - record.created)
        pictures = sum(job.entry.pictures for job in jobs)
        for job in jobs:
            job.trace.started(len(jobs), pictures)
        self._metrics.batch.observe(pictures)
        self.spawn(self._store.change(partial(Store.start, ids=ids, lease=self._lease)))
        described = [
            {
                "id": job.id,
                "request": job.record.request,
                "folder": str(self._files.uploads(job.record.owner)),
                "trace": job.record.trace,
            }
            for job in jobs
        ]
        self._worker.send(Message("run", {"jobs": described}))
        for job in jobs:
            if job.log.readers:
                self._worker.send(Message("watch", {"job": job.id}))

    # ── from the worker to the disk ─────────────────────────────────────────────────────────────

    def heard(self, message: Message) -> None:
        """A message of the worker."""
        if message.kind == "ready":
            self._metrics.worker_starts.inc()
            self._wake.set()
        elif message.kind == "idle":
            self._queue.learn(self._done_cost, time.monotonic() - self._began)
            self._done_cost, self._busy = 0.0, False
            self._wake.set()
        elif (job := self.batch.get(message.data.get("job", ""))) is not None:
            self._heard_of(job, message)

    def _heard_of(self, job: Job, message: Message) -> None:
        data = message.data
        if message.kind == "step":
            now = time.monotonic()
            if job.step:
                self._metrics.step.observe(now - job.stepped)
            job.step, job.total, job.stepped = data["step"], data["total"], now
            job.trace.stepped(data["step"], data["total"])
            job.log.add("progress", **{k: v for k, v in data.items() if k != "job"})
        elif message.kind == "preview":
            jpeg = base64.b64encode(message.content).decode()
            job.log.add("preview", index=data["index"], step=data["step"], jpeg=jpeg)
        elif message.kind == "image":
            job.trace.pictured()
            job.writes.append(self.spawn(self._keep_image(job, data, message.content)))
        elif message.kind == "report":
            keep = self._files.keep_report
            owner = job.record.owner
            job.writes.append(self.spawn(asyncio.to_thread(keep, owner, job.id, message.content)))
        elif message.kind == "ended":
            del self.batch[job.id]
            error = data.get("error")
            problem = None if error is None else Problem.from_dict(error)
            if data["state"] == "done":
                self._done_cost += job.entry.cost
            self.spawn(self._finish(job, data["state"], problem))

    def died(self) -> None:
        """The worker has ended with the jobs that it ran."""
        jobs, self.batch, self._busy = list(self.batch.values()), {}, False
        for job in jobs:
            job.record.crashes += 1
            if job.cancelling:
                self.spawn(self._finish(job, "cancelled"))
            elif job.record.crashes >= MAX_CRASHES:
                self.spawn(self._finish(job, "failed", _CRASHED))
            else:
                job.record.state = "queued"
                job.entry = self._admission.entry(job.record)
                requeue = partial(Store.requeue, ids=[job.id], crashed=True)
                self.spawn(self._store.change(requeue))
                self.add(job, again=True)

    async def _keep_image(self, job: Job, data: Mapping[str, Any], png: bytes) -> None:
        """The file first, then the event; its row comes with the end of the job, which is run again
        if the server does not get so far."""
        record = job.record
        image = Image(data["index"], data["width"], data["height"], data["seed"], len(png))
        await asyncio.to_thread(self._files.keep_result, record.owner, record.id, image.index, png)
        others = [one for one in record.images if one.index != image.index]
        record.images = sorted([*others, image], key=lambda one: one.index)
        self._metrics.pictures.inc()
        job.log.add("image", **image_dict(record.id, image))

    async def _finish(self, job: Job, state: State, problem: Problem | None = None) -> None:
        """A job that the worker has ended, when its pictures are on the disk."""
        for error in await asyncio.gather(*job.writes, return_exceptions=True):
            if isinstance(error, OSError | WriteError | sqlite3.Error):
                self._admission.disk_refused(error)
                state, problem = "failed", _NOT_KEPT
            elif error is not None:
                raise error
        job.writes.clear()
        await self._end(job, state, problem)

    async def _end(self, job: Job, state: State, problem: Problem | None = None) -> None:
        record = job.record
        end = partial(
            Store.end, job=record.id, state=state, error=problem, images=tuple(record.images)
        )
        for pause in (1.0, 5.0, None):
            try:
                await self._store.change(end)
                break
            except sqlite3.Error as error:
                log.error(
                    "the end of job %s is not kept: %s%s", record.id, error, note(record.trace)
                )
                if pause is None:  # the next server finds it running, and starts it again
                    break
                await asyncio.sleep(pause)
        record.state, record.error, record.ended = state, problem, time.time()
        self.live.pop(job.id, None)
        self.recent[job.id] = job
        while len(self.recent) > RECENT:
            self.recent.popitem(last=False)
        job.trace.ended(state, problem)
        log.info(
            "job %s %s after %.0f ms%s",
            *(record.id, state, 1000 * (record.ended - record.created), note(record.trace)),
        )
        self._metrics.jobs.labels(state).inc()
        if problem is not None and problem.type == "out_of_memory":
            self._metrics.out_of_memory.inc()
        add_end(job.log, record)

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────

    def _queue_changed(self) -> None:
        self._metrics.waiting.set(len(self._queue))
        self._metrics.work.set(self._queue.cost)
        self._wake.set()
        if not self._positions_due:
            self._positions_due = True
            asyncio.get_running_loop().call_later(POSITION_SECONDS, self._tell_positions)

    def _tell_positions(self) -> None:
        self._positions_due = False
        for job, position in self._queue.positions().items():
            live = self.live.get(job)
            if live is not None and live.log.readers:
                live.log.add("queued", position=position)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is kept until it ends; what it raises is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", type(error).__name__, error)
