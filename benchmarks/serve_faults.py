"""Kills the worker or the server of `imageprompt serve` at many moments: is anything lost?

    python benchmarks/serve_faults.py                # 30 moments, the bundled stack in 3 steps
    python benchmarks/serve_faults.py --toy          # a worker that paints: faster, more moments
    python benchmarks/serve_faults.py --moments 100 --seed 2

In each round some requests are sent, and one process is killed (kill -9) after a random time; the
server is started again. Every job has to end as done, once, with as many pictures as it asked for,
each that of its own request: the same request afterwards, undisturbed, gives the same pixels, up to
a rounding by 1. A client whose POST was cut off sends it again with the same Idempotency-Key.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from served import API, Served, alike, drawn, form

COLOURS = ("red", "green", "blue", "navy", "orange")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=5, help="requests in each round")
    parser.add_argument("--toy", action="store_true", help="a worker that paints")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    numbers = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Served(Path(folder), toy=options.toy)
        try:
            for moment in range(options.moments):
                server = kill_once(server, options, numbers, moment)
            check_all(server, options)
        finally:
            server.close()


def kill_once(server: Served, options: Any, numbers: random.Random, moment: int) -> Served:
    """One round; returns the server that runs afterwards."""
    whom = numbers.choice(("worker", "server"))
    pause = numbers.uniform(0, 1.2)
    keys = [f"{moment}-{number}" for number in range(options.jobs)]
    wanted = {key: request_of(numbers, options.toy) for key in keys}
    ids: dict[str, str] = {}
    sender = threading.Thread(target=send_all, args=(server, wanted, ids))
    sender.start()
    time.sleep(pause)
    if whom == "worker":
        os.kill(server.worker(), signal.SIGKILL)
    else:
        server.process.kill()
    sender.join()
    if whom == "server":
        server.close()
        server = Served(server.folder, toy=options.toy)
    taken = len(ids)
    send_all(server, wanted, ids)  # with the same keys: those that were taken are not doubled
    states = [server.ended({"id": name}) for name in ids.values()]
    wrong = [job for job in states if job["state"] != "done"]
    attempts = sum(job["attempt"] - 1 for job in states)
    print(
        f"{moment + 1:3d}  {whom:6}  after {pause:.2f} s: {taken} of {options.jobs} taken before, "
        f"{attempts} started again, {len(wrong)} not done",
        flush=True,
    )
    if wrong:
        raise SystemExit(f"lost: {wrong}")
    return server


def request_of(numbers: random.Random, toy: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt": numbers.choice(("a star", "slow", "two circles")),
        "seed": numbers.randrange(10**6),
        "num_images": numbers.choice((1, 1, 2)),
        "steps": 3,
    }
    if not toy and numbers.random() < 0.7:
        colour = numbers.choice(COLOURS)
        found["references"] = [{"reference": f"part:{colour}", "scale": numbers.uniform(0.3, 1)}]
    return found


def send_all(server: Served, wanted: dict[str, Any], ids: dict[str, str]) -> None:
    """Send what has not been taken yet; a server that is killed meanwhile ends it."""
    for key, request in wanted.items():
        parts = {one["reference"][5:]: 0 for one in request.get("references", ())}
        body = form(request, {colour: drawn(colour) for colour in parts})
        try:
            answer = httpx2.post(
                f"{server.address}{API}/jobs",
                files=body,
                headers={"Idempotency-Key": key},
                timeout=120,
                trust_env=False,
            )
        except httpx2.TransportError:
            return
        if answer.status_code != 202:
            raise SystemExit(answer.text)
        ids[key] = answer.json()["id"]


def check_all(server: Served, options: Any) -> None:
    """Every job once, with its own pictures."""
    jobs: list[Any] = []
    before = None
    while True:
        query = {"limit": 200} | ({} if before is None else {"before": before})
        page = server.get("/jobs", params=query).json()
        jobs, before = jobs + page["jobs"], page["next"]
        if before is None:
            break
    expected = options.moments * options.jobs
    if len({job["id"] for job in jobs}) != expected or len(jobs) != expected:
        raise SystemExit(f"{len(jobs)} jobs for {expected} requests")
    for job in jobs:
        wanted = job["request"].get("num_images", 1)
        if [image["index"] for image in job["images"]] != list(range(wanted)):
            raise SystemExit(f"job {job['id']} has {len(job['images'])} of {wanted} pictures")
    different = sum(not same_again(server, job) for job in jobs)
    left = [path for path in server.data.rglob("*") if ".tmp" in path.name]
    print(
        f"{expected} requests, {options.moments} kills: {expected} jobs, each once; "
        f"{different} with another picture than undisturbed; {len(left)} temporary files left"
    )
    if different or left:
        raise SystemExit(1)


def same_again(server: Served, job: Any) -> bool:
    again = server.ended(server.submit(job["request"]))
    return all(
        alike(server.picture(job, image["index"]), server.picture(again, image["index"]))
        for image in job["images"]
    )


if __name__ == "__main__":
    main()
