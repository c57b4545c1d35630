"""What /metrics tells. Labels are few and fixed: no key, no prompt, no id."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: Any = {"registry": self.registry, "namespace": "imageprompt"}
        self.requests = Counter(
            "http_requests", "Answers by route and status", ["route", "status"], **kept
        )
        self.too_often = Counter(
            "rate_limited", "Requests refused because their key asked too often", **kept
        )
        self.removed = Counter("jobs_removed", "Jobs deleted because they were old", **kept)
        self.jobs = Counter("jobs", "Jobs that have ended, by state", ["state"], **kept)
        self.pictures = Counter("pictures", "Pictures that were made", **kept)
        self.waiting = Gauge("queue_jobs", "Jobs that wait", **kept)
        self.work = Gauge("queue_work", "Pixels x steps of the jobs that wait", **kept)
        self.waited = Histogram(
            "queue_seconds",
            "Time that jobs waited",
            buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800),
            **kept,
        )
        self.batch = Histogram(
            "batch_pictures", "Pictures denoised together", buckets=(1, 2, 4, 8, 16, 32, 64), **kept
        )
        self.step = Histogram(
            "step_seconds",
            "Time of a denoising step",
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            **kept,
        )
        self.worker_starts = Counter("worker_starts", "Starts of the worker", **kept)
        self.out_of_memory = Counter("out_of_memory", "Jobs that did not fit into memory", **kept)
        self.streams = Gauge("event_streams", "Event streams that are open", **kept)

    def text(self) -> bytes:
        return generate_latest(self.registry)
