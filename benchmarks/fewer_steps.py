"""Fewer steps and less work with image prompts in use: time, distance to the full run, attributes.

Every row makes the same pictures on the bundled stack: held-out references, Plus, the same noise.
Time is CPU time of one thread over that of the full run, text encoder and VAE included; rows take
turns in batches.

    python benchmarks/fewer_steps.py [--count 48] [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import imageprompt as ip
from imageprompt.core import bundled
from imageprompt.demo import judge, scenes
from imageprompt.evaluation.metrics.psnr import psnr
from timing import conditions

TOGETHER = 8
Change = Callable[[Any], AbstractContextManager[object]]
"""What is done to the pipeline for a row."""


@contextmanager
def broadcast(pipe: Any) -> Iterator[None]:
    """Cross-attention is computed in every second step between 80 % and 10 % of the noise."""
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks import HookRegistry, apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(100, 800),
        cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    pipe._current_timestep = 999
    apply_pyramid_attention_broadcast(pipe.unet, config)
    before = pipe.scheduler.scale_model_input

    def told(sample: Any, timestep: Any = None) -> Any:
        pipe._current_timestep = int(timestep)
        return before(sample, timestep)

    pipe.scheduler.scale_model_input = told
    try:
        yield
    finally:
        pipe.scheduler.scale_model_input = before
        for module in pipe.unet.modules():
            if "_diffusers_hook" in vars(module):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                registry.remove_hook("pyramid_attention_broadcast", recurse=False)


@contextmanager
def taylor(pipe: Any) -> Iterator[None]:
    """From the fourth step on, attention and feed-forward layers are computed in every third step
    and extrapolated between (order 1)."""
    from diffusers.hooks import HookRegistry, TaylorSeerCacheConfig, apply_taylorseer_cache
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    config = TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r".*\.(attn1|attn2|ff)$"],
    )
    apply_taylorseer_cache(pipe.unet, config)
    _set_cache_context(pipe.unet, CacheContext("loop"))  # as pipelines of transformers do
    try:
        yield
    finally:
        for module in pipe.unet.modules():
            if "_diffusers_hook" in vars(module):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                registry.remove_hook("taylorseer_cache", recurse=False)


@contextmanager
def channels_last(pipe: Any) -> Iterator[None]:
    pipe.unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        pipe.unet.to(memory_format=torch.contiguous_format)


ROWS: dict[str, tuple[dict[str, Any], Change]] = {
    "full run": ({}, nullcontext),
    "guidance until 0.75": ({"guidance_until": 0.75}, nullcontext),
    "guidance until 0.5": ({"guidance_until": 0.5}, nullcontext),
    "guidance until 0.3": ({"guidance_until": 0.3}, nullcontext),
    "no guidance at all": ({"guidance_scale": 1.0}, nullcontext),
    "reference 0-0.75": ({"schedule": "0-0.75"}, nullcontext),
    "reference 0-0.5": ({"schedule": "0-0.5"}, nullcontext),
    "reference 0.25-1": ({"schedule": "0.25-1"}, nullcontext),
    "10 steps": ({"steps": 10}, nullcontext),
    "10 steps, guidance until 0.5": ({"steps": 10, "guidance_until": 0.5}, nullcontext),
    "6 steps": ({"steps": 6}, nullcontext),
    "channels_last": ({}, channels_last),
    "PyramidAttentionBroadcast": ({}, broadcast),
    "TaylorSeer": ({}, taylor),
}


class Row:
    """The pictures of one row, and what they took."""

    def __init__(self, engine: ip.Engine, options: dict[str, Any], change: Change) -> None:
        self._engine, self._change = engine, change
        self._options = {
            "steps": bundled.STEPS,
            "guidance_scale": bundled.GUIDANCE,
            "scale": 1.0,
            **options,
        }
        self.pictures: list[Any] = []
        self.seconds = 0.0

    def make(self, references: list[Any]) -> None:
        first = len(self.pictures)
        requests = [
            {"reference": picture, "seed": first + i, **self._options}
            for i, picture in enumerate(references)
        ]
        with self._change(self._engine.loaded.pipe):
            start = time.process_time()
            made = self._engine.generate_many(requests, batch_size=TOGETHER, progress=False)
            self.seconds += time.process_time() - start
        self.pictures += [one.images[0] for one in made]


def measure(names: list[str], count: int) -> list[dict[str, Any]]:
    engine = ip.Engine()
    drawn = list(islice(scenes.stream("test", seed=70_000), count))
    shown = [scenes.draw(scene) for scene in drawn]
    Row(engine, *ROWS[names[0]]).make(shown[:1])  # the encoders are loaded
    rows = {name: Row(engine, *ROWS[name]) for name in names}
    for start in range(0, count, TOGETHER):
        for row in rows.values():
            row.make(shown[start : start + TOGETHER])
    full = rows[names[0]]
    stacked = np.stack([np.asarray(one) for one in full.pictures])
    found = []
    for name, row in rows.items():
        made = np.stack([np.asarray(one) for one in row.pictures])
        found.append(
            {
                "row": name,
                "time": row.seconds / full.seconds,
                "psnr": None if row is full else psnr(made, stacked),
                "match": judge.shares(row.pictures, drawn),
            }
        )
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    names = [*scenes.ATTRIBUTES, "all five"]
    lines = [f"| | time | PSNR dB | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        cells = [f"{row['match'][name]:.3f}" for name in names]
        distance = "" if row["psnr"] is None else f"{row['psnr']:.1f}"
        lines.append(f"| {row['row']} | {row['time']:.2f} | {distance} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=48, help="references (default 48)")
    parser.add_argument("--only", nargs="*", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(list(options.only), options.count)
    print(markdown(rows))
    print(f"\n{options.count} references, {conditions()}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
