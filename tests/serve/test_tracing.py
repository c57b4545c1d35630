"""Spans of requests and jobs, with a toy worker and a collector in this process."""

from __future__ import annotations

import asyncio
import http.server
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from imageprompt.serve import tracing
from imageprompt.serve.app import make_app
from imageprompt.serve.open_telemetry import OpenTelemetry, exporting, resource
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Settings
from imageprompt.serve.store import JobRecord, Store
from imageprompt.serve.worker import supervisor
from served import API, TOY

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OURS = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
PATIENCE = 120.0


class Traced:
    """A service whose spans are kept, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.kept = InMemorySpanExporter()
        provider = TracerProvider(resource=resource())
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        settings = Settings(data=str(folder), library=str(folder / "library"))
        self.service = Service(settings, tracing=OpenTelemetry(provider))
        transport = httpx2.ASGITransport(app=make_app(self.service))  # type: ignore[arg-type]
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://localhost")

    async def __aenter__(self) -> Traced:
        await self.service.start()
        await self.service.first_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.service.stop()

    async def submit(self, request: dict[str, Any], headers: Any = None) -> Any:
        answer = await self.client.post(f"{API}/jobs", json=request, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def until(self, job: Any, *states: str) -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while loop.time() < end:
            found = (await self.client.get(f"{API}/jobs/{job['id']}")).json()
            if found["state"] in states:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(found)

    def spans(self, trace: str) -> list[ReadableSpan]:
        return [one for one in self.kept.get_finished_spans() if trace_of(one) == trace]


def trace_of(span: ReadableSpan) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def tree(spans: list[ReadableSpan]) -> list[tuple[str, str]]:
    """Each span's name with that of its parent, in the order of their beginnings."""
    names = {span.get_span_context().span_id: span.name for span in spans}
    names[int(SPAN, 16)] = "ours"
    found = sorted(spans, key=lambda span: span.start_time or 0)
    return [(span.name, names[span.parent.span_id] if span.parent else "") for span in found]


def test_from_the_request_to_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, str(TOY), "worker"))
    caplog.set_level(logging.INFO, "imageprompt.serve")
    request = {"prompt": "secret", "num_images": 2, "size": [64, 64], "steps": 3}

    async def check() -> None:
        async with Traced(tmp_path) as first:
            job = await first.submit(request, OURS)
            assert job["trace"] == TRACE
            await first.until(job, "done")
            again = await first.submit({"prompt": "crash once"})
            assert again["trace"] not in (TRACE, None)
            refused = await first.submit({"prompt": "refuse"})
            for one in (again, refused):
                await first.until(one, "done", "failed")
            assert (await first.client.get("/healthz", headers=OURS)).status_code == 200
            held = await first.submit({"prompt": "hang"})
            await first.until(held, "running")

        spans = first.spans(TRACE)
        assert tree(spans) == [
            ("POST /jobs", "ours"),
            ("job", "POST /jobs"),
            ("queue", "job"),
            ("batch", "job"),
            ("prepare", "batch"),
            ("denoise", "batch"),
            ("decode", "batch"),
        ]
        found = {span.name: span.attributes or {} for span in spans}
        assert found["POST /jobs"]["http.response.status_code"] == 202
        assert found["job"]["imageprompt.job"] == job["id"]
        assert found["job"]["imageprompt.state"] == "done"
        assert found["batch"]["imageprompt.pictures"] == 2
        assert found["denoise"]["imageprompt.steps"] == 3
        text = " ".join(span.to_json() for span in first.kept.get_finished_spans())
        assert "secret" not in text
        assert "local" not in text.replace("localhost", "")  # the owner
        assert '"service.name": "imageprompt"' in text

        batches = [one for one in first.spans(again["trace"]) if one.name == "batch"]
        assert [(one.attributes or {}).get("error.type") for one in batches] == ["crashed", None]
        assert [one.name for one in first.spans(again["trace"])].count("queue") == 2
        (ended,) = (one for one in first.spans(refused["trace"]) if one.name == "job")
        assert (ended.attributes or {})["error.type"] == "invalid_option"
        assert not ended.status.is_ok
        for span in first.kept.get_finished_spans():
            assert span.start_time is not None
            assert span.end_time is not None
            assert span.start_time <= span.end_time

        async with Traced(tmp_path) as second:  # goes on with what the first one left
            done = await second.until(held, "done")
            assert done["trace"] == held["trace"]
        left, right = (
            [(one.attributes or {})["imageprompt.state"] for one in spans if one.name == "job"]
            for spans in (first.spans(held["trace"]), second.spans(held["trace"]))
        )
        assert (left, right) == (["kept"], ["done"])

        lines = [record.getMessage() for record in caplog.records]
        assert any("POST /jobs 202" in one and one.endswith(TRACE) for one in lines)
        assert any(job["id"] in one and one.endswith(TRACE) for one in lines)
        assert not any("secret" in one for one in lines)

    asyncio.run(check())


# ── the collector ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An address, and what was sent there."""
    got: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_a_collector_gets_the_spans(
    collector: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("NO_PROXY", "*")
    traces = OpenTelemetry(exporting())
    scope = {"method": "GET", "headers": [(b"traceparent", OURS["traceparent"].encode())]}
    with traces.request(scope, lambda: 503):
        assert traces.parent() != OURS["traceparent"]
        assert tracing.trace_id(traces.parent()) == TRACE
    traces.close()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert bytes.fromhex(TRACE) in body
    assert b"imageprompt.serve" in body


@pytest.mark.parametrize("sent", ["", "x", "00-0-0-0", "00-" + "0" * 32 + "-" + SPAN + "-01"])
def test_a_wrong_traceparent_begins_a_trace_of_its_own(sent: str) -> None:
    traces = OpenTelemetry(TracerProvider())
    scope = {"method": "A\nB", "headers": [(b"traceparent", sent.encode())]}
    with traces.request(scope, lambda: 400):
        found = tracing.trace_id(traces.parent())
    assert found is not None
    assert len(found) == 32
    assert int(found, 16) != 0


def test_nothing_is_loaded_unless_the_environment_names_a_collector(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import sys, imageprompt.serve.app, imageprompt.serve.tracing as tracing;"
        "assert type(tracing.tracing_of_environment()) is tracing.Tracing;"
        "print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(tracing, "_NEEDED", ("opentelemetry_of_nobody.sdk",))
    assert type(tracing.tracing_of_environment()) is tracing.Tracing
    assert "pip install imageprompt[otel]" in caplog.text


def test_jobs_of_before_there_were_traces_are_read(tmp_path: Path) -> None:
    """A store of format 1 gets the column that it lacks."""
    path = tmp_path / "jobs.sqlite"
    store = Store(path)
    store.add(JobRecord(id="0" * 32, owner="a", request={}, trace="x"))
    store.close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE jobs DROP COLUMN trace")
        old.execute("PRAGMA user_version=1")
    old.close()
    for _ in range(2):
        store = Store(path)
        (found,) = store.unfinished()
        assert (found.id, found.trace) == ("0" * 32, None)
        store.close()
