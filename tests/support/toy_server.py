"""`imageprompt serve` with a worker that paints instead of denoising: it starts fast, for faults.

Everything but the engine is the real thing. Words of the prompt say what the toy worker does:
"slow" takes a second, "very slow" five, "crash" ends it, "crash once" ends it at the first
attempt, "hang" stops it after the first step until it is killed, "refuse" is a typed error.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """The server."""
    from imageprompt import cli
    from imageprompt.serve.worker import supervisor

    supervisor.COMMAND = (sys.executable, __file__, "worker")  # type: ignore[assignment]
    return cli.main(["serve", *sys.argv[2:]])


# ── the worker ──────────────────────────────────────────────────────────────────────────────────


def worker() -> None:
    from imageprompt.serve.worker.process import Channel, _beat
    from imageprompt.serve.worker.protocol import Message, read

    channel = Channel(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    stdin = sys.stdin.buffer
    first = read(stdin)
    assert first is not None
    marks = Path(first.data["settings"]["data"]) / "attempts"
    marks.mkdir(exist_ok=True)
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    base = {"name": "toy", "default": True, "family": None, "width": 64, "height": 64}
    base |= {"multiple": 8, "steps": 4, "guidance_scale": None, "batch": 8, "hash": "0" * 16}
    channel.tell(Message("ready", {"base": base, "adapters": []}))
    cancelled: set[str] = set()
    waiting: list[Any] = []
    wake = threading.Condition()

    def listen() -> None:
        while (message := read(stdin)) is not None:
            if message.kind == "cancel":
                cancelled.add(message.data["job"])
            elif message.kind == "run":
                with wake:
                    waiting.append(message)
                    wake.notify()
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        with wake:
            wake.wait_for(lambda: waiting)
            message = waiting.pop(0)
        for job in message.data["jobs"]:
            _paint(job, channel.tell, cancelled, marks)
        channel.tell(Message("idle"))


def _paint(job: Any, tell: Any, cancelled: set[str], marks: Path) -> None:
    from imageprompt.serve.errors import Problem
    from imageprompt.serve.worker.protocol import Message

    prompt, name = job["request"].get("prompt", ""), job["id"]
    mark = marks / name
    attempt = int(mark.read_text()) + 1 if mark.exists() else 1
    mark.write_text(str(attempt))
    steps, seconds = job["request"].get("steps", 4), 5 if "very slow" in prompt else 1
    for step in range(1, steps + 1):
        if name in cancelled:
            tell(Message("ended", {"job": name, "state": "cancelled"}))
            return
        time.sleep(seconds / steps if "slow" in prompt else 0.002)
        progress = {"job": name, "step": step, "total": steps, "index": 0, "pictures": 1}
        tell(Message("step", progress))
        if "crash" in prompt and ("once" not in prompt or attempt == 1):
            os._exit(9)
        if "hang" in prompt and attempt == 1:
            time.sleep(1000)
    if "refuse" in prompt:
        error = Problem("invalid_option", "no").as_dict()
        tell(Message("ended", {"job": name, "state": "failed", "error": error}))
        return
    for index in range(job["request"].get("num_images", 1)):
        png = picture_of(prompt, job["request"].get("seed", 1), index)
        told = {"job": name, "index": index, "width": 64, "height": 64, "seed": 1 + index}
        tell(Message("image", told, png))
    tell(Message("ended", {"job": name, "state": "done"}))


def picture_of(prompt: str, seed: int, index: int) -> bytes:
    """A plain picture whose colour is a hash of the request, with a recipe."""
    from PIL import Image

    from imageprompt.loading.recipe import AssetRecord, Recipe, picture_bytes

    colour = tuple(hashlib.sha256(f"{prompt}{seed}{index}".encode()).digest()[:3])
    recipe = Recipe(
        prompt=prompt,
        negative_prompt="",
        seed=seed,
        index=index,
        num_images=index + 1,
        batch_size=4,
        steps=4,
        guidance_scale=None,
        width=64,
        height=64,
        dtype="float32",
        device="cpu",
        scheduler={"_class_name": "ToyScheduler"},
        base=AssetRecord(name="toy", hash="0" * 16),
        references=(),
        versions={},
    )
    return picture_bytes(Image.new("RGB", (64, 64), colour), recipe, ())


if __name__ == "__main__":
    sys.exit(worker() if sys.argv[1] == "worker" else main())
