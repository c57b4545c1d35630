"""Figures of a run: sums over a window, metrics.jsonl, TensorBoard, and a line that is seen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.atomic_files import write_atomically

BUCKETS = 4
"""Equal parts of the timesteps whose losses are told apart."""


class Window:
    """Sums of losses since the last line: by part of the timesteps, [2, BUCKETS] sum and count.

    Kept in checkpoints, so that a resumed run writes the lines of one that never stopped.
    """

    def __init__(self, total_timesteps: int) -> None:
        self.total = total_timesteps
        self.sums = torch.zeros(2, BUCKETS, dtype=torch.float64)

    def add(self, losses: Tensor, times: Tensor) -> None:
        """The losses [b] of samples at timesteps [b]."""
        part = (times.detach().cpu().double() * BUCKETS / self.total).long().clamp(0, BUCKETS - 1)
        values = losses.detach().cpu().double()
        self.sums[0].index_add_(0, part, values)
        self.sums[1].index_add_(0, part, torch.ones_like(values))

    def figures(self, sums: Tensor) -> dict[str, float]:
        """Mean loss of all samples in `sums` and of each part that has any."""
        total, count = sums.tolist()
        figures = {"loss": sum(total) / max(sum(count), 1)}
        edges = [self.total * part // BUCKETS for part in range(BUCKETS + 1)]
        for part in range(BUCKETS):
            if count[part]:
                figures[f"loss_t{edges[part]}-{edges[part + 1]}"] = total[part] / count[part]
        return figures


class Metrics:
    """Lines of `metrics.jsonl`, one a window, and the same figures to trackers."""

    def __init__(self, path: Path, accelerator: Any, trackers: Sequence[str] = ()) -> None:
        self.path, self.accelerator = path, accelerator
        self.tracked = bool(trackers)
        if trackers:
            accelerator.log_with = usable_trackers(trackers)
            accelerator.project_configuration.set_directories(str(path.parent))
            self.tracked = bool(accelerator.log_with)

    def start(self, step: int, config: Mapping[str, Any]) -> None:
        """Forget lines of steps after `step`: they are about to be made again."""
        if self.path.exists():
            kept = [line for line in self._lines() if line["step"] <= step]
            with write_atomically(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if self.tracked:
            plain = {key: v for key, v in config.items() if isinstance(v, int | float | str)}
            own = {"tensorboard": {"purge_step": step + 1}}
            # tensorboard takes the name for a folder, the others for a project
            name = "tensorboard" if self.accelerator.log_with == ["tensorboard"] else "imageprompt"
            self.accelerator.init_trackers(name, config=plain, init_kwargs=own)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line, whole or not at all for a reader."""
        line = {"step": step} | {name: _short(value) for name, value in figures.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self.tracked:
            self.accelerator.log(dict(figures), step=step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """An RGB picture for the trackers that show pictures."""
        for tracker in self.accelerator.trackers if self.tracked else ():
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, **options)

    def close(self) -> None:
        for tracker in self.accelerator.trackers if self.tracked else ():
            tracker.finish()  # accelerate's own end_training would part the processes as well

    def _lines(self) -> list[dict[str, Any]]:
        """Those that are whole; a kill may have cut the last one."""
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines


def usable_trackers(wanted: Sequence[str]) -> list[str]:
    """Those of the wanted trackers that are installed; says once which are not."""
    from accelerate.tracking import get_available_trackers

    there = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in wanted if name not in there]
    if missing:
        log(
            f"{', '.join(missing)} not installed: figures go to metrics.jsonl"
            " (pip install 'imageprompt[train]' brings tensorboard)"
        )
    return [name for name in wanted if name in there]


class Pace:
    """Pictures a second and the time that is left, from the steps of this process's own run."""

    def __init__(self, step: int, pictures: int) -> None:
        self.first, self.pictures, self.started = step, pictures, time.monotonic()

    def figures(self, step: int, last: int) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        speed = (step - self.first) / seconds
        left = (last - step) / speed if speed else 0.0
        return {"pictures_per_second": speed * self.pictures, "eta_seconds": left}


def line_of(step: int, last: int, figures: Mapping[str, float]) -> str:
    """A line for people: "step 300/3000  loss 0.1234  41.2 pictures/s  2 min 10 s left"."""
    parts = [f"step {step}/{last}"]
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    parts += [
        f"{name.removeprefix('loss_')} {value:.4f}"
        for name, value in figures.items()
        if name.startswith("loss_t")
    ]
    parts.append(f"{figures['pictures_per_second']:.3g} pictures/s")
    parts.append(f"{in_words(figures['eta_seconds'])} left")
    return "  ".join(parts)


def in_words(seconds: float) -> str:
    """ "3 h 20 min", "2 min 5 s", "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def log(text: str) -> None:
    """A line for whoever watches; the figures themselves go to files."""
    print(text, file=sys.stderr, flush=True)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
