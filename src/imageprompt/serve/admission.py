"""Which requests are taken: what is served, what is kept, and whether there is room."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from imageprompt.core.errors import ImagePromptError, NotFoundError, OptionError
from imageprompt.generation.reference import is_picture
from imageprompt.library import Library
from imageprompt.serve import sources
from imageprompt.serve.errors import ApiError, Problem, bad_request, problem_of
from imageprompt.serve.files import Files
from imageprompt.serve.queue import Entry, FairQueue, Full, batch_key
from imageprompt.serve.store import JobRecord
from imageprompt.serve.worker.supervisor import Supervisor
from imageprompt.serve.workflow_body import PICTURES_OF_ONE

PAUSE = 2.0
"""Seconds without new jobs after the disk has refused something."""
NOT_READY = Problem("not_ready", "the worker is starting", None, "Try again.")
DRAINING = Problem("draining", "the server is stopping", None, "Try again.")
_STORAGE = Problem("storage", "the server cannot write to its disk", None, "Try later.")

log = logging.getLogger(__name__)


class Admission:
    """Every check raises ApiError."""

    def __init__(
        self, files: Files, library: Library, queue: FairQueue, worker: Supervisor
    ) -> None:
        self._files, self._library = files, library
        self._queue, self._worker = queue, worker
        self._refused_until = 0.0
        self.draining = False

    # ── room ────────────────────────────────────────────────────────────────────────────────────

    def closed(self) -> str | None:
        """Why no jobs are taken; None if they are."""
        if self.draining:
            return "draining"
        if not self._worker.ready:
            return "not_ready"
        return "queue_full" if self._queue.full else None

    def check_room(self, owner: str, cost: float = 0.0) -> None:
        """Would a job of this owner be taken?"""
        if self.draining:
            raise ApiError(503, DRAINING, retry_after=10)
        if not self._worker.described:
            raise ApiError(503, NOT_READY, retry_after=5)
        self.check_disk()
        try:
            self._queue.check(owner, cost)
        except Full as full:
            kind, what = ("quota", "you have") if full.quota else ("queue_full", "there are")
            problem = Problem(kind, f"{what} too many jobs that wait", None, "Try again later.")
            seconds = self._queue.seconds() * random.uniform(1.0, 1.2)
            raise ApiError(429, problem, retry_after=seconds) from None

    def check_disk(self) -> None:
        """Can anything be written?"""
        if time.monotonic() < self._refused_until or self._files.full():
            raise ApiError(503, _STORAGE, retry_after=60)

    def disk_refused(self, error: BaseException) -> ApiError:
        """The answer to a request that could not be kept; none is taken for a while."""
        log.error("the disk: %s", type(error).__name__)
        self._refused_until = time.monotonic() + PAUSE
        return ApiError(503, _STORAGE, retry_after=60)

    # ── what is served ──────────────────────────────────────────────────────────────────────────

    def check_served(self, request: Mapping[str, Any]) -> None:
        """Are base, size, adapters and styles those of this server?"""
        described = self._worker.described
        if not described:
            return
        base = described["base"]
        if request.get("base") not in (None, base["name"]):
            raise _not_served("base", [base["name"]])
        multiple, size = base["multiple"], request.get("size")
        if size is not None and any(side % multiple for side in size):
            raise bad_request(
                f"size: sides must be multiples of {multiple} for this base",
                param="size",
                type="invalid_option",
            )
        for index, reference in enumerate(request.get("references") or ()):
            self._check_reference(reference, f"references.{index}")

    def _check_reference(self, reference: Mapping[str, Any], place: str) -> None:
        name, style = reference.get("adapter"), reference.get("style")
        self.check_adapter(name, f"{place}.adapter")
        if not self._worker.described["adapters"] and style is None:
            raise bad_request(f"{place}: this server has no adapter", param=place)
        if style is not None:
            self._check_style(style, name, f"{place}.style")

    def check_parts(self, references: Sequence[Mapping[str, Any]]) -> None:
        """A style by name beside a content picture must not stand for content itself."""
        for index, one in enumerate(references):
            style, place = one.get("style"), f"references.{index}.style"
            if one.get("content") is None or style is None or is_picture(style):
                continue
            try:
                self._library.show(style).check_part("style")
            except NotFoundError:
                continue  # told when the job is checked
            except OptionError as error:
                raise ApiError(400, problem_of(error, place)) from error

    def check_adapter(self, name: str | None, place: str) -> None:
        """Is it None or served?"""
        adapters = [one["name"] for one in self._worker.described.get("adapters", ())]
        if name is not None and name not in adapters:
            raise _not_served(place, adapters)

    def _check_style(self, style: str, adapter: str | None, place: str) -> None:
        try:
            made_by = self._library.show(style).adapter.hash
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
        adapters = self._worker.described.get("adapters", ())
        return [one["name"] for one in adapters if one["projector"] == projector]

    def check_uploads(self, request: Mapping[str, Any], owner: str) -> None:
        """Are its pictures uploads of this owner? They are then kept for another while."""
        for place, holder, key in sources.places(request):
            if sources.kind_of(holder[key]) not in ("upload", "tokens"):
                raise bad_request(f"{place}: not an upload", param=place)
            if not self._files.has(owner, sources.upload_of(holder[key])):
                raise bad_request(
                    f"{place}: no such upload",
                    type="missing_upload",
                    param=place,
                    hint="Send the picture to POST /api/v1/uploads.",
                )

    # ── cost ────────────────────────────────────────────────────────────────────────────────────

    def entry(self, record: JobRecord) -> Entry:
        """A job as the queue knows it. One that has ended a worker runs alone."""
        base, request = self._worker.described.get("base", {}), record.request
        workflow = "workflow" in request
        request = request["inputs"] if workflow else request
        width, height = request.get("size") or (base.get("width", 512), base.get("height", 512))
        steps = request.get("steps") or base.get("steps") or 50
        pictures = int(request.get("num_images") or 1) * (PICTURES_OF_ONE if workflow else 1)
        pixels = int(width) * int(height)
        return Entry(
            id=record.id,
            owner=record.owner,
            cost=float(pixels) * int(steps) * pictures,
            pictures=pictures,
            pixels=pixels,
            batch_key=None if workflow or record.crashes else batch_key(request),
        )


def _not_served(place: str, served: Sequence[str]) -> ApiError:
    return bad_request(
        f"{place}: not served",
        type="invalid_option",
        param=place,
        hint=f"There are: {', '.join(served) or 'none'}.",
    )
