"""What fewer bits cost and bring on the bundled stack: size, speed of a call, attributes.

Exports the bundled base, quantises it, and generates with held-out references at every precision,
with the same noise. Speed is CPU time of a call of two rows with an image prompt in use, one
thread, in turns with eager PyTorch.

    python benchmarks/quantize.py [--count 240] [--to int8 w8a8 int4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import imageprompt as ip
from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.demo import judge, scenes
from imageprompt.deploy.export import export
from imageprompt.deploy.quantize.run import Work, quantize
from imageprompt.evaluation.metrics.psnr import psnr
from imageprompt.generation.exported.manifest import Manifest
from imageprompt.generation.exported.open import Exported
from timing import conditions

GOALS = {"int8": 0.01, "w8a8": 0.02}
"""Precision -> the most that any attribute may lose."""
TURNS = 9


def measure(to: list[str], count: int) -> list[dict[str, Any]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        full = folder / "full"
        export(bundled.NAME, bundled.DEFAULT_ADAPTER, to="openvino", output=full, parts=())
        found = {
            one: quantize(folder / "full", to=one, output=folder / one, pictures=0) for one in to
        }
        work = Work(Exported.of(None, folder / "full"), None, None, None)
        graphs: dict[str, Any] = {"float32": work.before}
        for one in to:
            graphs[one] = work._open(folder / one, Manifest.read(folder / one))
        times = speeds(graphs, work)
        drawn = list(islice(scenes.stream("test", seed=80_000), count))
        shown = [scenes.draw(scene) for scene in drawn]
        rows: list[dict[str, Any]] = []
        whole = None
        for one, graph in graphs.items():
            made = work.pictures(graph, shown)
            stacked = np.stack([np.asarray(picture) for picture in made])
            whole = stacked if whole is None else whole
            match = judge.shares(made, drawn)
            row = {
                "precision": one,
                "megabytes": (found[one].bytes if one in found else found[to[0]].bytes_before)
                / 1e6,
                "error": found[one].error if one in found else None,
                "psnr": psnr(stacked, whole) if one in found else None,
                "match": match,
                "speed": {eager: times[eager] / times[one] for eager in ("eager float32",)},
            }
            row["most lost"] = max(rows[0]["match"][a] - match[a] for a in match) if rows else 0.0
            rows.append(row)
            print(markdown([row], count).splitlines()[-1], flush=True)
        return rows


def speeds(graphs: dict[str, Any], work: Work) -> dict[str, float]:
    """The least CPU time of a call, by graph and of eager PyTorch."""
    references = [scenes.draw(scene) for scene in islice(scenes.stream("test", seed=90_000), 8)]
    tensors = work.calls(references, lambda: None)[-1]
    calls: dict[str, Callable[[], object]] = {
        name: lambda graph=graph: graph(tensors) for name, graph in graphs.items()
    }
    base = loading.load_base(bundled.NAME, bundled.folder(), dtype=None, device="cpu", bars=False)
    unet = base.pipe.unet
    located = loading.find_adapter(bundled.DEFAULT_ADAPTER, bundled.folder(), cached_only=True)
    adapter = ip.Adapter.load(located.path, dtype=torch.float32).attach(
        base.pipe, encoder=base.pipe.image_encoder
    )
    prompt = adapter.encode(references[:1])
    plain = {name: tensors[name] for name in ("sample", "timestep", "encoder_hidden_states")}

    @torch.no_grad()
    def eager() -> None:
        with adapter.use(prompt, guidance="negative-positive"):
            unet(**plain)

    calls["eager float32"] = eager
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                times[name].append(time.process_time() - start)
    adapter.detach()
    return {name: min(found) for name, found in times.items()}


def markdown(rows: list[dict[str, Any]], count: int) -> str:
    names = [*scenes.ATTRIBUTES, "all five"]
    head = ["MB", "rms", "PSNR dB", "faster than eager", *names, "most lost"]
    lines = [f"| {count} references | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        error, distance = row["error"], row["psnr"]
        cells = [
            f"{row['megabytes']:.1f}",
            "" if error is None else f"{error:.1%}",
            "" if distance is None else f"{distance:.1f}",
            f"{row['speed']['eager float32']:.2f}",
            *(f"{row['match'][name]:.3f}" for name in names),
            f"{row['most lost']:.3f}",
        ]
        lines.append(f"| {row['precision']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--to", nargs="*", default=["int8", "w8a8", "int4"])
    parser.add_argument("--count", type=int, default=240, help="references that the judge reads")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.to, options.count)
    print(markdown(rows, options.count))
    for row in rows:
        most = GOALS.get(row["precision"])
        if most is not None:
            met = "met" if row["most lost"] <= most else "not met"
            print(f"{row['precision']}: at most {most} lost: {met}")
    print(f"\n{conditions()}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
