"""Second-stage training of a style adapter on one domain, on the bundled stack.

    python benchmarks/style.py [--pictures 600] [--steps 500] [--references 64]

The domain is what stage one has never seen: the eight pairs of shape and colour that are held out
of its training. The bundled base adapter is trained further on drawn scenes of these pairs (with
`adapter:` and a smaller learning rate, as in the example style-stage2). The judge then reads what
is transferred, before and after, from other references of the domain and from references of all
kinds. Text empty or "a shape", scale 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import fidelity
import imageprompt as ip
import learning
from imageprompt.core import bundled
from imageprompt.demo import scenes


def drawn(split: str, count: int, seed: int, *, domain: bool) -> list[scenes.Scene]:
    """Scenes of the domain, or of all kinds."""

    def inside(scene: scenes.Scene) -> bool:
        return (scene.shape, scene.colour) in scenes.HELD_OUT_PAIRS

    stream = scenes.stream(split, seed=seed)
    return list(islice((scene for scene in stream if inside(scene) or not domain), count))


def draw(folder: Path, chosen: list[scenes.Scene]) -> Path:
    """Write pictures with caption files."""
    folder.mkdir(parents=True)
    for index, scene in enumerate(chosen):
        scenes.draw(scene).save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(scenes.caption(scene))
    return folder


def bench_of(chosen: list[scenes.Scene]) -> fidelity.Bench:
    """A bench of fidelity.py with these references."""
    argv, sys.argv = sys.argv, ["fidelity", "--count", str(len(chosen))]
    bench = fidelity.Bench(fidelity.arguments(), lambda count: None)
    sys.argv = argv
    bench.scenes = chosen
    bench.references = [scenes.draw(scene) for scene in chosen]
    bench.words = [scene.words() for scene in chosen]
    return bench


def train(folder: Path, data: Path, steps: int, rate: float) -> Path:
    """Train stage two, starting from the bundled base adapter."""
    config: dict[str, Any] = {
        "base": bundled.NAME,
        "variant": "base",
        "adapter": str(bundled.adapter("base")),
        "data": str(data),
        "cache": str(folder / "cache"),
        "output": str(folder / "run"),
        "resolution": 64,
        "steps": steps,
        "batch_size": 32,
        "learning_rate": rate,
        "schedule": "cosine",
        "ema": 0.99,
        "betas": [0.9, 0.99],
        "drop": {"image": 0.05, "text": 0.6, "both": 0.05},
        "timesteps": {"uniform": 0.35, "mean": 1.6, "std": 1.2},
        "checkpoint_every": 0,
    }
    adapter = ip.train(config, progress=False).adapter
    assert adapter is not None
    return adapter


def main() -> None:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--references", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = options.references
    benches = {
        "references of the domain": bench_of(drawn("test", count, 7, domain=True)),
        "references of all kinds": bench_of(drawn("test", count, 8, domain=False)),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = drawn("validation", options.pictures, 9, domain=True)
        data = draw(folder / "data", pictures)
        started = time.monotonic()
        after = train(folder, data, options.steps, options.rate)
        seconds = time.monotonic() - started
        adapters = {"before": Path(bundled.adapter("base")), "after": after}
        rows = {
            f"{what}, {when}": learning.matches(bench, path)
            for what, bench in benches.items()
            for when, path in adapters.items()
        }
    columns = [*scenes.ATTRIBUTES, "all"]
    print(f"{options.steps} steps on {options.pictures} pictures in {seconds:.0f} s")
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for title, shares in rows.items():
        print(f"| {title} | {' | '.join(f'{shares[c]:.2f}' for c in columns)} |")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
