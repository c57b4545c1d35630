"""CPU time of a denoise step with an image prompt, relative to a text-only step.

Three denoisers with the same random weights (shared, not copied) run the same denoise loop in
lockstep: text only, diffusers' own IP-Adapter, and ours. They take turns step by step, in
alternating order, so that other load on the machine affects all of them alike. Process CPU time, by
default on one thread. Reported: the steady step (all but the first of a loop) as the median ratio
to the text-only step at the same timestep, and the whole loop including what it needs once
(encoding, projector, K' and V', caches). "same, scale 0" is our denoiser without image attention:
the floor, where only the cached K and V of the text save time. Guidance batch of two, 77 text
tokens, bfloat16.

    python benchmarks/step_time.py [--base sd15|sdxl] [--variant base|plus] [--rounds 7]
                                   [--steps 10] [--latent N] [--threads 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bases import BASES, Base, random_unet
from peer import (
    diffusers_embeds,
    diffusers_load,
    flat,
    published_adapter,
    published_features,
)
from timing import conditions, cpu_seconds

Row = dict[str, Any]
PUBLISHED = {("sd15", "base"): ("<= 0.95", 1.05), ("sdxl", "plus"): ("<= 0.92", 1.08)}


def shared_copy(unet: nn.Module) -> nn.Module:
    """Another denoiser with the same weights, so that three use the memory of one."""
    shared = {id(t): t for t in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


@dataclass
class Candidate:
    """One denoiser: what it does before a loop, and in a step."""

    prepare: Callable[[], object]
    step: Callable[[Tensor], object]


@contextlib.contextmanager
def candidates(base: Base, variant: str, latent: int) -> Iterator[dict[str, Candidate]]:
    """Text only, diffusers and ours, with the same weights."""
    import imageprompt as ip

    dtype = torch.bfloat16
    plain = random_unet(base, dtype)
    theirs, mine = shared_copy(plain), shared_copy(plain)
    inputs = base.inputs(2, latent=latent, dtype=dtype)
    state = published_adapter(plain, variant, base.config["cross_attention_dim"], dtype=dtype)
    features = published_features(variant, dtype)
    null = torch.zeros_like(features)
    diffusers_load(theirs, state)
    embeds = [diffusers_embeds([features], null)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file({k: v.contiguous() for k, v in flat(state).items()}, path)
        adapter = ip.Adapter.load(path, dtype=dtype).attach(mine)

    def step(unet: nn.Module, extra: dict[str, list[Tensor]]) -> Callable[[Tensor], object]:
        added = {**inputs.get("added_cond_kwargs", {}), **extra}
        return lambda t: unet(**{**inputs, "timestep": t, "added_cond_kwargs": added})

    with contextlib.ExitStack() as active:
        handle: list[Any] = []

        def use_a_new_prompt() -> None:
            active.close()
            prompt = adapter.encode(features=features, null_features=null)
            handle[:] = [active.enter_context(adapter.use(prompt))]

        def without_image(t: Tensor) -> None:
            handle[0].scale = 0.0
            step(mine, {})(t)
            handle[0].scale = 1.0

        yield {
            "text only": Candidate(lambda: None, step(plain, {})),
            "diffusers": Candidate(lambda: None, step(theirs, {"image_embeds": embeds})),
            "imageprompt": Candidate(use_a_new_prompt, step(mine, {})),
            "same, scale 0": Candidate(lambda: None, without_image),
        }


def race(racers: dict[str, Candidate], steps: int, turn: int) -> dict[str, list[float]]:
    """CPU seconds of the preparation and of every step in lockstep, by candidate."""
    seconds = {name: [cpu_seconds(racer.prepare)] for name, racer in racers.items()}
    for i, t in enumerate(torch.arange(981, 0, -20)[:steps]):
        names = list(racers) if (turn + i) % 2 == 0 else list(reversed(racers))
        for name in names:
            seconds[name].append(cpu_seconds(partial(racers[name].step, t)))
    return seconds


def measure(base: Base, variant: str, *, latent: int, steps: int, rounds: int) -> list[Row]:
    """One row for each candidate; a first loop warms up and is not counted."""
    with torch.no_grad(), candidates(base, variant, latent) as racers:
        race(racers, 2, 0)
        loops = [race(racers, steps, turn) for turn in range(rounds)]
    rows = []
    for name in racers:
        steady = [seconds for loop in loops for seconds in loop[name][2:]]
        plain = [seconds for loop in loops for seconds in loop["text only"][2:]]
        ratios = [a / b for a, b in zip(steady, plain, strict=True)]
        whole = [sum(loop[name]) / sum(loop["text only"]) for loop in loops]
        rows.append(
            {
                "what": name,
                "ms": 1e3 * statistics.median(steady),
                "ratio": statistics.median(ratios),
                "ratio_of_minima": min(steady) / min(plain),
                "whole_loop": statistics.median(whole),
                "ratios": ratios,
            }
        )
    return rows


def main() -> None:
    """Print one line for each candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=sorted(BASES), default="sd15")
    parser.add_argument("--variant", choices=("base", "plus"))
    parser.add_argument("--latent", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="3 loops of 4 steps")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = BASES[args.base]
    variant = args.variant or ("base" if base.name == "sd15" else "plus")
    latent = args.latent or base.latent
    rounds, steps = (3, 4) if args.quick else (args.rounds, args.steps)
    before = conditions()
    rows = measure(base, variant, latent=latent, steps=steps, rounds=rounds)

    print(f"{base.name} {variant}, {latent}x{latent} latents, bfloat16, guidance batch 2")
    print(f"{rounds} loops of {steps} steps; {before}")
    goal, peer = PUBLISHED.get((base.name, variant), ("-", 0.0))
    print(f"{'':14}{'ms a step':>11}{'ratio':>8}{'of minima':>11}{'whole loop':>12}")
    for row in rows:
        print(
            f"{row['what']:14}{row['ms']:>11.1f}{row['ratio']:>8.3f}"
            f"{row['ratio_of_minima']:>11.3f}{row['whole_loop']:>12.3f}"
        )
    print(f"goal {goal}; diffusers was at {peer}")
    if args.json:
        args.json.write_text(
            json.dumps({"conditions": before, "steps": steps, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
