"""Pictures a second of `imageprompt serve`, beside a loop of `generate` and beside diffusers.

    python benchmarks/serve_throughput.py                       # the bundled stack, 20 steps
    OMP_NUM_THREADS=2 python benchmarks/serve_throughput.py     # every candidate with two threads

Eight clients send requests with references of their own to (a) `imageprompt serve` and (b) a small
FastAPI server around diffusers' pipeline with `load_ip_adapter` and a lock, which is what people
write; (c) is a loop of `imageprompt.generate` in a process that keeps its models. All have the same
weights, adapter (Plus), references, steps and guidance. They take turns, round by round; CPU time
is that of all processes of a candidate, clients excluded.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, Response
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import imageprompt
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.demo.pipeline import load_pipeline
from served import Served, children, environment, served
from timing import conditions

CLIENTS = 8
ADAPTER = "plus"
GUIDANCE = 5.0
GO, DONE = "go", "done"
Send = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32, help="of each candidate, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--process", choices=("peer", "loop"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        {"peer": peer, "loop": loop}[options.process](options)
        return
    print(conditions())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("serve", "loop", "peer")}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        server = opened.enter_context(served(Path(folder)))
        pids = [server.process.pid, *children(server.process.pid)]
        looped = opened.enter_context(started("loop", options))
        other = opened.enter_context(started("peer", options))
        address = said(other)
        assert said(looped) == DONE
        rounds = {
            "serve": (pids, lambda: concurrently(options.requests, ours(server, options.steps))),
            "peer": ([other.pid], lambda: concurrently(options.requests, theirs(address))),
            "loop": ([looped.pid], lambda: once(looped)),
        }
        for _, work in rounds.values():  # the first round loads and warms
            work()
        for _ in range(options.rounds):
            for name, (processes, work) in rounds.items():
                used, began = sum(map(processor_seconds, processes)), time.perf_counter()
                work()
                took = time.perf_counter() - began
                found[name].append((took, sum(map(processor_seconds, processes)) - used))
    report(found, options)


def report(found: dict[str, list[tuple[float, float]]], options: Any) -> None:
    rows = {}
    for name, values in found.items():
        wall, cpu = (statistics.median(one) / options.requests for one in zip(*values, strict=True))
        rows[name] = {"pictures_a_second": 1 / wall, "cpu_seconds_a_picture": cpu}
    for name, row in rows.items():
        pairs = list(zip(found["serve"], found[name], strict=True))
        for index, kind in enumerate(("time", "cpu_time")):
            row[f"{kind}_ratio"] = statistics.median(b[index] / a[index] for a, b in pairs)
        print(
            f"{name:<6} {row['pictures_a_second']:.2f} pictures a second, "
            f"{row['cpu_seconds_a_picture']:.2f} CPU s a picture; serve = 1: time "
            f"{row['time_ratio']:.2f}, CPU time {row['cpu_time_ratio']:.2f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


def reference_of(number: int) -> Image.Image:
    return scenes.draw(next(itertools.islice(scenes.stream("test"), number, None)))


def png_of(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ── the candidates ──────────────────────────────────────────────────────────────────────────────


def ours(server: Served, steps: int) -> Send:
    def send(number: int) -> None:
        reference = {"reference": "part:reference", "adapter": ADAPTER}
        request = {"prompt": "", "seed": number, "steps": steps, "guidance_scale": GUIDANCE}
        request["references"] = [reference]
        job = server.submit(request, reference=png_of(reference_of(number)))
        assert server.events(job)[-1][1] == "done"
        server.picture(job)

    return send


def theirs(address: str) -> Send:
    def send(number: int) -> None:
        picture = base64.b64encode(png_of(reference_of(number))).decode()
        body = {"prompt": "", "seed": number, "reference": picture}
        answer = httpx2.post(f"{address}/generate", json=body, timeout=600, trust_env=False)
        assert answer.status_code == 200, answer.text

    return send


def concurrently(count: int, send: Send) -> None:
    numbers, failed = iter(range(count)), []

    def client() -> None:
        try:
            for number in numbers:
                send(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def started(name: str, options: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--process", name]
    command += ["--steps", str(options.steps), "--requests", str(options.requests)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "the process ended"
    return line


def once(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{GO}\n")
    process.stdin.flush()
    assert said(process) == DONE


def loop(options: Any) -> None:
    """`generate` for each request, after each line that is read."""
    print(DONE, flush=True)
    for _ in sys.stdin:
        for number in range(options.requests):
            made = imageprompt.generate(
                "",
                reference_of(number),
                adapter=ADAPTER,
                steps=options.steps,
                seed=number,
                guidance_scale=GUIDANCE,
                on_step=lambda _: None,  # no progress bar
            )
            png_of(made.images[0])
        print(DONE, flush=True)


def peer(options: Any) -> None:
    """diffusers' own IP-Adapter behind FastAPI; a lock, since its pipeline is not thread-safe."""
    import torch

    pipe = load_pipeline()
    path = bundled.adapter(ADAPTER)
    pipe.load_ip_adapter(
        str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.set_ip_adapter_scale(1.0)
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/generate")
    def generate(body: dict[str, Any]) -> Response:
        picture = Image.open(io.BytesIO(base64.b64decode(body["reference"]))).convert("RGB")
        with lock:
            made = pipe(
                body["prompt"],
                ip_adapter_image=picture,
                num_inference_steps=options.steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(body["seed"]),
            )
        return Response(png_of(made.images[0]), media_type="image/png")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))

    def tell() -> None:
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"http://127.0.0.1:{port}", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
