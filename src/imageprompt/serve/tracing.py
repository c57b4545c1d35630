"""Traces of requests and jobs; kept by nobody unless the environment names a collector."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, MutableMapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imageprompt.serve.errors import Problem
    from imageprompt.serve.store import JobRecord

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of the environment, one of which names the collector."""
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

log = logging.getLogger(__name__)


class JobTrace:
    """What happens to one job; this class tells nobody."""

    def waits(self) -> None:
        """It is in the queue, perhaps again because its worker has ended."""

    def started(self, jobs: int, pictures: int) -> None:
        """The worker has it, in a batch of so many jobs and pictures."""

    def stepped(self, step: int, total: int) -> None:
        """So many of its denoising steps are done."""

    def pictured(self) -> None:
        """The server has one of its pictures."""

    def ended(self, state: str, problem: Problem | None = None) -> None:
        """It has ended, or its server has."""


class Tracing:
    """Spans of requests and of jobs; this class makes none."""

    @contextlib.contextmanager
    def request(self, scope: MutableMapping[str, Any], status: Callable[[], int]) -> Iterator[None]:
        """A request is answered in the block; `status` tells at its end with what."""
        yield

    def parent(self) -> str | None:
        """The request that is answered now, as a `traceparent` (W3C Trace Context)."""
        return None

    def job(self, record: JobRecord) -> JobTrace:
        return JobTrace()

    def close(self) -> None:
        """Send what is left."""


def note(traceparent: str | None) -> str:
    """The end of a line of the log: its trace, if it has one."""
    return "" if traceparent is None else f", trace {trace_id(traceparent)}"


def trace_id(traceparent: str | None) -> str | None:
    """32 hexadecimal digits."""
    return None if traceparent is None else traceparent.split("-")[1]


def tracing_of_environment() -> Tracing:
    """Spans for the collector that the environment names; without one, nothing is imported."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracing()
    if not all(map(_installed, _NEEDED)):
        log.warning(
            "%s is set, but OpenTelemetry is not installed: pip install imageprompt[otel]",
            next(name for name in ENDPOINTS if os.environ.get(name)),
        )
        return Tracing()
    from imageprompt.serve.open_telemetry import OpenTelemetry, exporting

    return OpenTelemetry(exporting())


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what contains it
        return False
