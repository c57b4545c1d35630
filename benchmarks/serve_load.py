"""What the API of `imageprompt serve` adds to a picture, and what it does under overload.

    python benchmarks/serve_load.py --overhead     # the API around a worker that does nothing
    python benchmarks/serve_load.py --overload     # 1,000 requests at four times the capacity
    python benchmarks/serve_load.py --memory 5000  # memory of the server over many requests

The worker paints plain pictures (tests/support/toy_server.py), so what is measured is the API:
HTTP, checks, queue, store and files. `--overload` ends with every request answered: taken ones are
done and have their own picture, the others were told when to come again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from served import API, Served, pixels, served
from toy_server import picture_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--memory", type=int, metavar="REQUESTS")
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue = "50" if options.overload else "500"
        with served(Path(folder), "--queue", queue, toy=True) as server:
            if options.overhead:
                overhead(server)
            if options.overload:
                overload(server, options.requests)
            if options.memory:
                memory(server, options.memory)


def overhead(server: Served, count: int = 200) -> None:
    """From POST to the event that ends the stream, less what the worker does itself."""
    times, posts, floor = [], [], []
    for _ in range(count):
        began = time.perf_counter()
        assert server.client.get("/healthz").status_code == 200
        floor.append(time.perf_counter() - began)
    used = processor_seconds(server.process.pid)
    for seed in range(count):
        began = time.perf_counter()
        job = server.submit({"prompt": "", "seed": seed, "steps": 1})
        posts.append(time.perf_counter() - began)
        assert server.events(job)[-1][1] == "done"
        times.append(time.perf_counter() - began)
    used = 1000 * (processor_seconds(server.process.pid) - used) / count
    print(f"CPU time of the server: {used:.1f} ms for POST, events, and the end")
    for name, values in (("GET /healthz", floor), ("POST", posts), ("POST to done", times)):
        ordered = sorted(1000 * one for one in values)
        middle, late = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
        print(f"{name}: p50 {middle:.1f} ms, p95 {late:.1f} ms ({count} requests)")


def overload(server: Served, count: int) -> None:
    """Several clients send faster than the worker works, and do not come again."""
    answers: list[tuple[int, Any, int]] = []
    lock = threading.Lock()
    numbers = iter(range(count))

    def send() -> None:
        with httpx2.Client(base_url=server.address, timeout=300, trust_env=False) as client:
            for seed in numbers:
                body = {"prompt": "", "seed": seed, "steps": 12}
                answer = client.post(f"{API}/jobs", json=body)
                with lock:
                    after = int(answer.headers.get("retry-after", "0"))
                    answers.append((answer.status_code, answer.json(), after))

    began = time.perf_counter()
    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = time.perf_counter() - began
    taken = [body for status, body, _ in answers if status == 202]
    wrong = 0
    for job in taken:
        found = server.ended(job)
        expected = pixels(picture_of("", found["request"]["seed"], 0))
        wrong += found["state"] != "done" or pixels(server.picture(found)) != expected
    afters = [after for status, _, after in answers if status == 429]
    print(
        f"{count} requests in {sent:.1f} s: {dict(Counter(status for status, _, _ in answers))}; "
        f"lost or wrong: {wrong}; Retry-After {min(afters, default=0)}..{max(afters, default=0)} s"
    )
    if wrong or not all(1 <= after <= 120 for after in afters):
        raise SystemExit(1)


def memory(server: Served, count: int) -> None:
    for done in range(count + 1):
        if done % (count // 5) == 0:
            print(f"{done} requests: {resident(server.process.pid):.1f} MB", flush=True)
        job = server.submit({"prompt": "", "seed": done, "steps": 1})
        assert server.events(job)[-1][1] == "done"


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
