"""Spans for OpenTelemetry, with numbers, ids and types alone: no prompts, names or keys."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from imageprompt.core import __version__
from imageprompt.serve.errors import Problem
from imageprompt.serve.store import JobRecord
from imageprompt.serve.tracing import JobTrace, Tracing

CLOSING_SECONDS = 5.0
"""What a collector gets to take the last spans."""
_TRACEPARENT = "traceparent"
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
_STEPS = "imageprompt.steps"
_PROPAGATOR = TraceContextTextMapPropagator()


def exporting() -> TracerProvider:
    """Sends spans to the collector of the environment, whose other OTEL_ variables count, too."""
    provider = TracerProvider(resource=resource())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def resource() -> Resource:
    """What the spans are of."""
    attributes = {"service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "imageprompt"
    return Resource.create(attributes)


class OpenTelemetry(Tracing):
    """Spans of a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("imageprompt.serve", __version__)

    @contextlib.contextmanager
    def request(self, scope: MutableMapping[str, Any], status: Callable[[], int]) -> Iterator[None]:
        headers = {name: value.decode("latin-1") for name, value in _of_trace(scope)}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._tracer.start_as_current_span(
            method,
            _PROPAGATOR.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
            record_exception=False,  # its message is for the log of the server
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status())
                if status() >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    def parent(self) -> str | None:
        return _traceparent(trace.get_current_span())

    def job(self, record: JobRecord) -> JobTrace:
        return SpansOfJob(self._tracer, record)

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)


class SpansOfJob(JobTrace):
    """`job` with `queue` and `batch` below it, and below that `prepare`, `denoise` and `decode`.

    They are told apart by what the server hears: the encoders and the first step are `prepare`.
    """

    def __init__(self, tracer: trace.Tracer, record: JobRecord) -> None:
        self._tracer, self._record = tracer, record
        carrier = {} if record.trace is None else {_TRACEPARENT: record.trace}
        request = record.request
        width, height = request.get("size") or (0, 0)
        given = {
            "imageprompt.job": record.id,
            "imageprompt.pictures": request.get("num_images") or 1,
            "imageprompt.references": len(request.get("references") or ()),
            _STEPS: request.get("steps") or 0,
            "imageprompt.width": width,
            "imageprompt.height": height,
        }
        self._job = tracer.start_span(
            "job",
            _PROPAGATOR.extract(carrier, Context()),
            start_time=int(record.created * 1e9),
            attributes={name: value for name, value in given.items() if value != 0},
        )
        self._queue: Span | None = None
        self._batch: Span | None = None
        self._phase: Span | None = None
        self._phase_name, self._pictured = "", 0

    def waits(self) -> None:
        self._end_batch("crashed")
        self._queue = self._below(self._job, "queue")

    def started(self, jobs: int, pictures: int) -> None:
        self._end_queue()
        self._batch = self._below(self._job, "batch")
        self._batch.set_attribute("imageprompt.jobs", jobs)
        self._batch.set_attribute("imageprompt.pictures", pictures)
        self._enter("prepare")

    def stepped(self, step: int, total: int) -> None:
        if self._phase_name != "denoise":
            self._enter("denoise")
        if self._phase is not None:
            self._phase.set_attribute(_STEPS, step)
        if step == total:
            self._enter("decode")

    def pictured(self) -> None:
        self._pictured = time.time_ns()

    def ended(self, state: str, problem: Problem | None = None) -> None:
        self._end_queue()
        self._end_batch()
        self._job.set_attribute("imageprompt.state", state)
        self._job.set_attribute("imageprompt.attempt", self._record.attempt)
        if problem is not None:
            self._job.set_attribute("error.type", problem.type)
            self._job.set_status(Status(StatusCode.ERROR))
        self._job.end()

    # ── parts ───────────────────────────────────────────────────────────────────────────────────

    def _below(self, parent: Span, name: str) -> Span:
        return self._tracer.start_span(name, trace.set_span_in_context(parent, Context()))

    def _enter(self, name: str) -> None:
        self._leave()
        if self._batch is not None:
            self._phase, self._phase_name = self._below(self._batch, name), name

    def _leave(self) -> None:
        """End a phase; the last one ends with its last picture."""
        if self._phase is not None:
            self._phase.end(self._pictured or None if self._phase_name == "decode" else None)
        self._phase, self._phase_name, self._pictured = None, "", 0

    def _end_queue(self) -> None:
        if self._queue is not None:
            self._queue.end()
        self._queue = None

    def _end_batch(self, error: str | None = None) -> None:
        self._leave()
        if self._batch is not None:
            if error is not None:
                self._batch.set_attribute("error.type", error)
                self._batch.set_status(Status(StatusCode.ERROR))
            self._batch.end()
        self._batch = None


def _of_trace(scope: MutableMapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in (_TRACEPARENT, "tracestate"):
            yield name, value


def _traceparent(span: Span) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(_TRACEPARENT)
