"""Are pictures of concurrent requests those of the same requests alone? Nobody gets another's?

    python benchmarks/serve_equal.py                     # 300 random requests, the bundled stack
    python benchmarks/serve_equal.py --requests 60 --steps 4

Requests differ in text, seed, reference, adapter, scale, preset, schedule, mask, guidance and
number of pictures. Eight clients send them at once to `imageprompt serve`; afterwards one client
sends each again and waits for it. Pictures are compared value by value; two that belong to two
requests differ by far more than rounding, which is checked too.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from served import API, Served, drawn, form, served

CLIENTS = 8
COLOURS = ("red", "green", "blue", "navy", "orange", "white", "black", "gold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    numbers = random.Random(options.seed)
    wanted = [request_of(numbers, options.steps) for _ in range(options.requests)]
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
        together = send_together(server, wanted)
        sizes = re.findall(r"batch_pictures_(sum|count) (\S+)", server.client.get("/metrics").text)
        alone = [pictures(server, server.submit(one, **parts_of(one))) for one in wanted]
        print(f"batches of {float(sizes[1][1]) / float(sizes[0][1]):.1f} pictures on average")
    report(together, alone)


def request_of(numbers: random.Random, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt": numbers.choice(("", "a star", "two circles", "a red square")),
        "seed": numbers.randrange(10**6),
        "num_images": numbers.choice((1, 1, 1, 2)),
        "steps": steps,
    }
    if numbers.random() < 0.2:
        found["guidance_scale"] = 3
    references = numbers.choice((0, 1, 1, 1, 2))
    found["references"] = [reference_of(numbers) for _ in range(references)]
    return found


def reference_of(numbers: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"reference": f"part:{numbers.choice(COLOURS)}"}
    found["scale"] = numbers.choice((0.5, 0.8, 1.0))
    for name, values in (
        ("adapter", ("base", "plus")),
        ("schedule", ("0-0.5", "0.2-1")),
        ("preset", ("weak input", "ease in")),
        ("mask", ("part:white", "part:half")),
    ):
        if numbers.random() < 0.25:
            found[name] = numbers.choice(values)
    return found


def parts_of(request: dict[str, Any]) -> dict[str, bytes]:
    names = {
        value[5:]
        for reference in request["references"]
        for value in reference.values()
        if isinstance(value, str) and value.startswith("part:")
    }
    return {name: half() if name == "half" else drawn(name) for name in names}


def half() -> bytes:
    image = Image.new("L", (64, 64))
    image.paste(255, (0, 0, 32, 64))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def send_together(server: Served, wanted: list[dict[str, Any]]) -> list[list[bytes]]:
    jobs: list[Any] = [None] * len(wanted)
    turns = iter(range(len(wanted)))

    def post(client: httpx2.Client, one: dict[str, Any]) -> httpx2.Response:
        return client.post(f"{API}/jobs", files=form(one, parts_of(one)))

    def send() -> None:
        with httpx2.Client(base_url=server.address, timeout=600, trust_env=False) as client:
            for turn in turns:
                one = wanted[turn]
                while (
                    answer := post(client, one)
                ).status_code == 429:  # the queue of a key is full
                    time.sleep(int(answer.headers["retry-after"]))
                jobs[turn] = answer.raise_for_status().json()

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [pictures(server, job) for job in jobs]


def pictures(server: Served, job: Any) -> list[bytes]:
    found = server.ended(job)
    if found["state"] != "done":
        raise SystemExit(found)
    return [server.picture(job, image["index"]) for image in found["images"]]


def report(together: list[list[bytes]], alone: list[list[bytes]]) -> None:
    pairs = [
        (values(a), values(b))
        for x, y in zip(together, alone, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    largest = [int(np.abs(a - b).max()) for a, b in pairs]
    changed = sum(int((a != b).sum()) for a, b in pairs)
    total = sum(a.size for a, _ in pairs)
    others = min(int(np.abs(a - b).max()) for (a, _), (b, _) in itertools.combinations(pairs, 2))
    equal = sum(one == 0 for one in largest)
    print(
        f"{len(together)} requests, {len(pairs)} pictures: {equal} equal in every value, "
        f"{len(pairs) - equal} differ, by at most {max(largest)} of 255 "
        f"({changed} of {total} values); pictures of two requests differ by {others} at least"
    )
    if max(largest) > 0:
        raise SystemExit(1)


def values(png: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)


if __name__ == "__main__":
    main()
