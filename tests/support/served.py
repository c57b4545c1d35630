"""A server of `imageprompt serve` in a process of its own, on a port that is free."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image, ImageChops

import forked

API = "/api/v1"
TOY = Path(__file__).with_name("toy_server.py")
PATIENCE = 120.0
"""Seconds; a machine with other work starts a worker slowly."""


class Served:
    """A running server; requests go through `client`.

    It and its worker are forked from this process; `anew`, they are new interpreters, which import
    everything themselves.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        toy: bool = False,
        ready: bool = True,
        anew: bool = False,
    ) -> None:
        self.folder, self.data = folder, folder / "data"
        self.log = folder / "server.log"
        program = [str(TOY), "server"] if toy else ["-m", "imageprompt", "serve"]
        command = [sys.executable, *program, "--json", "--port", "0"]
        command += ["--data", str(self.data), "--library", str(folder / "library"), *options]
        import_module("imageprompt.serve.server")  # what the forked import, once for all of them
        start = subprocess.Popen if anew else forked.Popen
        with self.log.open("ab") as log:
            self.process = start(command, stdout=subprocess.PIPE, stderr=log, env=environment())
        if ready:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            text = line + self.process.stdout.readline() + self.process.stdout.readline()
            self.address = json.loads(text)["address"]
            self.client = httpx2.Client(base_url=self.address, timeout=PATIENCE, trust_env=False)

    def close(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if hasattr(self, "client"):
            self.client.close()

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self.client.get(f"{API}{path}", **more)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        return self.client.post(f"{API}{path}", **more)

    def submit(self, request: dict[str, Any], headers: Any = None, **pictures: bytes) -> Any:
        """The job of a request, with pictures as parts."""
        if pictures:
            answer = self.post("/jobs", files=form(request, pictures), headers=headers)
        else:
            answer = self.post("/jobs", json=request, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def job(self, job: Any) -> Any:
        return self.get(f"/jobs/{job['id']}").json()

    def ended(self, job: Any) -> Any:
        """The job, when it has ended."""
        return self.until(job, lambda found: found["state"] in ("done", "failed", "cancelled"))

    def until(self, job: Any, wanted: Any) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.job(job)
            if wanted(found):
                return found
            time.sleep(0.03)
        raise AssertionError(f"{found}\n{self.log.read_text()}")

    def picture(self, job: Any, index: int = 0) -> bytes:
        answer = self.get(f"/jobs/{job['id']}/result/{index}.png")
        assert answer.status_code == 200, answer.text
        return answer.content

    def events(self, job: Any, **more: Any) -> list[tuple[str, str, Any]]:
        """Id, kind and data of each event until the last one."""
        with self.client.stream("GET", f"{API}/jobs/{job['id']}/events", **more) as answer:
            return list(read_events(answer.iter_lines()))

    # ── processes ───────────────────────────────────────────────────────────────────────────────

    def worker(self) -> int:
        """The id of the worker process."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = children(self.process.pid)
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError("no worker")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.client.get("/readyz").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


def environment() -> dict[str, str]:
    """Of processes: offline, with one thread unless told."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"}


@contextmanager
def served(folder: Path, *options: str, toy: bool = False, anew: bool = False) -> Iterator[Served]:
    server = Served(folder, *options, toy=toy, anew=anew)
    try:
        yield server
    finally:
        server.close()


def children(pid: int) -> Sequence[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(word) for word in path.read_text().split()]
    except FileNotFoundError:
        return []


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    event: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event["id"], event["event"], json.loads(event["data"])
            event = {}


def form(request: Any, pictures: dict[str, bytes]) -> list[tuple[str, Any]]:
    """The parts of a multipart body; file names say nothing."""
    text = request if isinstance(request, str) else json.dumps(request)
    parts: list[tuple[str, Any]] = [("request", (None, text, "application/json"))]
    return parts + [(name, ("upload", data)) for name, data in pictures.items()]


@cache
def drawn(colour: str = "red", size: tuple[int, int] = (40, 40), format: str = "PNG") -> bytes:
    """The file of a plain picture."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format=format)
    return stream.getvalue()


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def alike(a: bytes, b: bytes) -> bool:
    """Are two pictures equal up to rounding? In batches of other sizes some values differ by 1."""
    first, second = (Image.open(io.BytesIO(one)).convert("RGB") for one in (a, b))
    if first.size != second.size:
        return False
    difference = ImageChops.difference(first, second)
    return all(high <= 1 for _, high in difference.getextrema())
