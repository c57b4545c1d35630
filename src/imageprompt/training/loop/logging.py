"""What a run reports: losses summed over a window, metrics.jsonl, trackers, and console lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imageprompt.core.atomic_files import append_line, write_atomically
from imageprompt.core.console import note
from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import open_regular, parse_json

_MAX_LINE = 2**16  # bytes; a line has a few hundred
BUCKETS = 4
"""Equal parts of the timestep range whose losses are reported separately."""


class LossWindow:
    """Sums of losses since the last line: [2, BUCKETS], sum and count for each part of t.

    Stored in checkpoints, so that a resumed run writes the same lines as one that never stopped.
    """

    def __init__(self, total_timesteps: int) -> None:
        self.total = total_timesteps
        self.sums = torch.zeros(2, BUCKETS, dtype=torch.float64)

    def add(self, losses: Tensor, times: Tensor) -> None:
        """Add the losses [b] of samples at timesteps [b]."""
        part = (times.detach().cpu().double() * BUCKETS / self.total).long().clamp(0, BUCKETS - 1)
        values = losses.detach().cpu().double()
        self.sums[0].index_add_(0, part, values)
        self.sums[1].index_add_(0, part, torch.ones_like(values))

    def means(self, sums: Tensor) -> dict[str, float]:
        """Mean loss of all samples in `sums`, and of each part that has any."""
        total, count = sums.tolist()
        means = {"loss": sum(total) / max(sum(count), 1)}
        edges = [self.total * part // BUCKETS for part in range(BUCKETS + 1)]
        for part in range(BUCKETS):
            if count[part]:
                means[f"loss_t{edges[part]}-{edges[part + 1]}"] = total[part] / count[part]
        return means


class Metrics:
    """Writes `metrics.jsonl`, one line a window, and sends the same values to trackers."""

    def __init__(self, path: Path, accelerator: Any, trackers: Sequence[str] = ()) -> None:
        self.path, self.accelerator = path, accelerator
        self.tracked = bool(trackers)
        if trackers:
            accelerator.log_with = usable_trackers(trackers)
            accelerator.project_configuration.set_directories(str(path.parent))
            self.tracked = bool(accelerator.log_with)

    def start(self, step: int, config: Mapping[str, Any]) -> None:
        """Remove lines of steps after `step`, which this run will write again."""
        if os.path.lexists(self.path):
            with write_atomically(self.path) as temporary, temporary.open("w") as stream:
                stream.writelines(json.dumps(one) + "\n" for one in self._lines(step))
        if self.tracked:
            plain = {key: v for key, v in config.items() if isinstance(v, int | float | str)}
            options = {"tensorboard": {"purge_step": step + 1}}
            # tensorboard uses the name for a folder, the other trackers for a project
            name = "tensorboard" if self.accelerator.log_with == ["tensorboard"] else "imageprompt"
            self.accelerator.init_trackers(name, config=plain, init_kwargs=options)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        line = {"step": step} | {name: _rounded(value) for name, value in metrics.items()}
        append_line(self.path, json.dumps(line))
        if self.tracked:
            self.accelerator.log(dict(metrics), step=step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Send an RGB picture to the trackers that can show pictures."""
        for tracker in self.accelerator.trackers if self.tracked else ():
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, **options)

    def close(self) -> None:
        for tracker in self.accelerator.trackers if self.tracked else ():
            tracker.finish()  # accelerate's end_training would end the process group as well

    def _lines(self, last: int) -> Iterator[dict[str, Any]]:
        """Complete lines up to step `last`; a kill may have truncated the last one.

        Raises OptionError if a pipe, device or link stands in the file's place.
        """
        try:
            with open_regular(self.path, inside=self.path.parent) as stream:
                while text := stream.readline(_MAX_LINE):
                    if (line := _parsed(text)) is not None and line["step"] <= last:
                        yield line
        except OSError as error:
            raise OptionError(
                f"metrics {str(self.path)!r}",
                reason=f"cannot be read ({error.strerror})",
                hint="Delete it; a run begins a new one.",
            ) from error


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line that `write` could have written."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    plain = isinstance(line, dict) and type(line.get("step")) is int
    return line if plain and all(type(one) in (int, float) for one in line.values()) else None


def usable_trackers(requested: Sequence[str]) -> list[str]:
    """The requested trackers that are installed; logs once which are not."""
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in requested if name not in available]
    if missing:
        log(
            f"{', '.join(missing)} not installed; metrics go to metrics.jsonl only"
            " (pip install 'imageprompt[train]' installs tensorboard)"
        )
    return [name for name in requested if name in available]


class Throughput:
    """Pictures per second and the time left, from the steps since this process started."""

    def __init__(self, step: int, pictures_per_step: int) -> None:
        self.first, self.pictures_per_step = step, pictures_per_step
        self.started = time.monotonic()

    def at(self, step: int, last: int) -> dict[str, float]:
        """The rates after `step` of `last` steps."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps_per_second = (step - self.first) / seconds
        left = (last - step) / steps_per_second if steps_per_second else 0.0
        pictures_per_second = steps_per_second * self.pictures_per_step
        return {"pictures_per_second": pictures_per_second, "eta_seconds": left}


# ── console ─────────────────────────────────────────────────────────────────────────────────────

log = note
"""Where a run prints its lines: stderr, above a progress bar if there is one."""


def progress_line(step: int, last: int, metrics: Mapping[str, float]) -> str:
    """For example "step 300/3000  loss 0.1234  41.2 pictures/s  2 min 10 s left"."""
    parts = [f"step {step}/{last}"]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    parts += [
        f"{name.removeprefix('loss_')} {value:.4f}"
        for name, value in metrics.items()
        if name.startswith("loss_t")
    ]
    parts.append(f"{metrics['pictures_per_second']:.3g} pictures/s")
    parts.append(f"{format_duration(metrics['eta_seconds'])} left")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """ "3 h 20 min", "2 min 5 s", "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
