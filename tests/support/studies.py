"""Studies as `imageprompt evaluate` leaves them, made of numbers: nothing is generated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imageprompt.evaluation.study.results import PLAN, RESULTS, STUDY

Line = dict[str, Any]
EXTRACTORS = {
    "dino": {"name": "own encoder", "fingerprint": "d1n0", "preprocessing": "64 px, bicubic"},
    "clip": {"name": "own encoder", "fingerprint": "c11p", "preprocessing": "64 px, bicubic"},
}


def line(
    adapter: str | None = "plus",
    scale: float | None = 0.5,
    *,
    prompt: str | None = "a star",
    reference: str = "references/0.png",
    seed: int | None = 1,
    row: str = "adapter",
    picture: str = "",
    **metrics: float | None,
) -> Line:
    """One line; metrics with "_" for "-" in their names."""
    return {
        "row": row,
        "prompt": prompt,
        "reference": reference,
        "seed": seed,
        "scale": scale,
        "adapter": adapter,
        "base": "bundled",
        "picture": picture or f"pictures/{row}-{adapter}-{scale}-{seed}.png",
        "metrics": {name.replace("_", "-"): value for name, value in metrics.items()},
        "hashes": {"adapter": f"hash of {adapter}", "base": "b" * 8, "reference": reference},
        "extractors": {role: one["fingerprint"] for role, one in EXTRACTORS.items()},
    }


def sweep(
    adapters: Mapping[str, float] = {"base": 0.0, "plus": 0.04},
    scales: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    *,
    prompts: int = 8,
    seeds: int = 2,
    noise: float = 0.02,
) -> Iterator[Line]:
    """Likeness rises with the scale and text following falls; each adapter adds to its likeness.

    Text following bends at scale 0.5. Noise belongs to prompt and seed: all settings share it.
    """
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, noise, (prompts, seeds, 2))

    def at(scale: float, more: float, prompt: int, seed: int) -> dict[str, float]:
        one, other = drawn[prompt, seed]
        text = 0.9 - 0.1 * scale - 0.8 * max(0.0, scale - 0.5)
        values = {"dino": 0.2 + 0.5 * scale + more + one, "clip-t": text + other}
        return {name.replace("-", "_"): round(float(value), 6) for name, value in values.items()}

    cases = [(prompt, seed) for prompt in range(prompts) for seed in range(seeds)]
    for prompt, seed in cases:
        yield _case("control", None, 0.0, prompt, seed, at(0, 0, prompt, seed))
    for adapter, more in adapters.items():
        for scale in scales:
            for prompt, seed in cases:
                yield _case("adapter", adapter, scale, prompt, seed, at(scale, more, prompt, seed))
    for prompt in range(prompts):
        reference = f"references/{prompt}.png"
        picture = f"pictures/ceiling-{prompt}.png"
        yield line(
            None,
            None,
            prompt=None,
            seed=None,
            row="ceiling",
            reference=reference,
            picture=picture,
            dino=0.95,
        )


def _case(
    row: str, adapter: str | None, scale: float, prompt: int, seed: int, metrics: dict[str, float]
) -> Line:
    return line(
        adapter,
        scale,
        prompt=f"prompt {prompt}",
        reference=f"references/{prompt}.png",
        seed=seed,
        row=row,
        picture=f"pictures/{row}-{adapter}-{scale}-{prompt}-{seed}.png",
        **metrics,
    )


def write_study(
    folder: Path, lines: Sequence[Line], *, pictures: int = 0, complete: bool = True
) -> Path:
    """A study folder; with `pictures`, its pictures of that many pixels, each its own."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / RESULTS).write_text(text, encoding="utf-8")
    stated = {
        "config": {"base": "bundled", "seeds": 2},
        "extractors": EXTRACTORS,
        "environment": {"torch": "2.13.0", "device": "cpu"},
        "root": ".",
    }
    (folder / (STUDY if complete else PLAN)).write_text(json.dumps(stated), encoding="utf-8")
    if pictures:
        names = {one["picture"] for one in lines} | {one["reference"] for one in lines}
        for number, name in enumerate(sorted(names)):
            draw(folder / name, number, pictures)
    return folder


def draw(path: Path, number: int, side: int) -> None:
    """A smooth picture with some grain: it compresses as a photograph does."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 6, smooth.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)
