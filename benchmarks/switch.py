"""Time to switch to another saved image prompt, until it is ready to sample.

Ours: a saved ImagePrompt is read from disk and used. Once `use` has been entered, K' and V' of
every site exist in the denoiser's dtype: read from the file if `Adapter.precompute_kv` stored them
there, computed otherwise. Also timed: the same with the prompt in memory, and a prompt that was
used before. diffusers saves image embeddings, not tokens: its equivalent is to load the embeddings;
projector and K', V' then run in every step, and their time in one step is listed as well. Wall
time, since a person waits for it, and process CPU time; medians over the prompts.

With `--library` the prompts are styles of a library, opened by name: found in a folder of that
many, description and tokens checked, K' and V' read from the file beside it and checked.

    python benchmarks/switch.py [--base sd15|sdxl] [--variant base|plus] [--prompts 15]
                                [--library] [--threads N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bases import BASES, Base, random_unet
from peer import (
    diffusers_embeds,
    diffusers_load,
    flat,
    published_adapter,
    published_features,
)
from timing import conditions

GOALS = {("sd15", "base"): 10.0, ("sd15", "plus"): 10.0, ("sdxl", "plus"): 40.0}
Row = dict[str, Any]


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def summary(what: str, pairs: list[tuple[float, float]]) -> Row:
    """Median times and the longest wall time."""
    wall, cpu = zip(*pairs, strict=True)
    return {
        "what": what,
        "wall": statistics.median(wall),
        "cpu": statistics.median(cpu),
        "worst_wall": max(wall),
    }


def ours(unet: nn.Module, state: Any, variant: str, count: int, folder: Path) -> list[Row]:
    """Switching with imageprompt."""
    from safetensors.torch import save_file

    import imageprompt as ip

    path = folder / "adapter.safetensors"
    save_file({k: v.contiguous() for k, v in flat(state).items()}, path)
    adapter = ip.Adapter.load(path, dtype=torch.bfloat16).attach(unet)
    files, precomputed = [], []
    for i in range(count + 1):
        features = published_features(variant, torch.bfloat16, seed=100 + i)
        prompt = adapter.encode(features=features, null_features=torch.zeros_like(features))
        files.append(folder / f"{i}.safetensors")
        prompt.save(files[-1])
        precomputed.append(folder / f"{i}-kv.safetensors")
        adapter.precompute_kv(prompt).save(precomputed[-1])

    def use(prompt: Any) -> None:
        with torch.no_grad(), adapter.use(prompt) as handle:
            handle.called = True  # only the switch is timed

    use(ip.ImagePrompt.load(files[-1]))  # the prompt before the first switch
    rows = [
        summary(what, [timed(lambda f=f: use(ip.ImagePrompt.load(f))) for f in saved[:-1]])
        for what, saved in (
            ("imageprompt, saved with K' V'", precomputed),
            ("imageprompt, saved", files),
        )
    ]
    loaded = [ip.ImagePrompt.load(f) for f in files[:-1]]
    rows.append(summary("imageprompt, in memory", [timed(lambda p=p: use(p)) for p in loaded]))
    rows.append(summary("imageprompt, used before", [timed(lambda p=p: use(p)) for p in loaded]))
    adapter.detach()
    return rows


def library(unet: nn.Module, state: Any, variant: str, count: int, folder: Path) -> list[Row]:
    """Switching between the styles of a library."""
    from safetensors.torch import save_file

    import imageprompt as ip
    from imageprompt.library import Library

    path = folder / "adapter.safetensors"
    save_file({k: v.contiguous() for k, v in flat(state).items()}, path)
    adapter = ip.Adapter.load(path, dtype=torch.bfloat16).attach(unet)
    styles = Library(folder / "library")
    for i in range(count + 1):
        features = published_features(variant, torch.bfloat16, seed=100 + i)
        null = torch.zeros_like(features)
        styles.add(f"style {i}", adapter, features=features, null_features=null)

    def use(name: str) -> None:
        with torch.no_grad(), adapter.use(styles.open(name, adapter)) as handle:
            handle.called = True

    *names, last = styles.names()
    use(last)  # the prompt before the first switch
    rows = [
        summary(what, [timed(lambda n=n: use(n)) for n in names])
        for what in ("imageprompt library, first use", "imageprompt library")
    ]
    adapter.detach()
    return rows


def theirs(unet: nn.Module, state: Any, variant: str, count: int, folder: Path) -> list[Row]:
    """Switching with diffusers: saved embeddings, and what it computes from them in every step."""
    diffusers_load(unet, state)
    files = []
    for i in range(count):
        features = published_features(variant, torch.bfloat16, seed=100 + i)
        files.append(folder / f"{i}.pt")
        torch.save(diffusers_embeds([features], torch.zeros_like(features)), files[-1])
    sites = [p for p in unet.attn_processors.values() if hasattr(p, "to_k_ip")]

    def project(path: Path) -> None:
        embeds = torch.load(path, weights_only=True)
        with torch.no_grad():
            (tokens,) = unet.encoder_hid_proj([embeds])
            for site in sites:
                site.to_k_ip[0](tokens)
                site.to_v_ip[0](tokens)

    project(files[0])
    return [
        summary(
            "diffusers, load embeddings",
            [timed(lambda f=f: torch.load(f, weights_only=True)) for f in files],
        ),
        summary("diffusers, K' V' (every step)", [timed(lambda f=f: project(f)) for f in files]),
    ]


def measure(base: Base, variant: str, count: int, *, styles: bool = False) -> list[Row]:
    """All rows, in milliseconds; with `styles` only those of a library."""
    unet = random_unet(base, torch.bfloat16)
    width = base.config["cross_attention_dim"]
    state = published_adapter(unet, variant, width, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        if styles:
            return library(unet, state, variant, count, Path(folder))
        rows = ours(unet, state, variant, count, Path(folder))
        return rows + theirs(unet, state, variant, count, Path(folder))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=sorted(BASES), default="sd15")
    parser.add_argument("--variant", choices=("base", "plus"))
    parser.add_argument("--prompts", type=int, default=15)
    parser.add_argument("--library", action="store_true", help="open styles of a library by name")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="5 prompts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    base = BASES[args.base]
    variant = args.variant or ("base" if base.name == "sd15" else "plus")
    before = conditions()
    rows = measure(base, variant, 5 if args.quick else args.prompts, styles=args.library)
    goal = GOALS.get((base.name, variant))
    print(f"{base.name} {variant}, bfloat16, ready to sample; goal <= {goal} ms; {before}")
    print(f"{'milliseconds':34}{'wall':>9}{'CPU':>9}{'worst wall':>12}")
    for row in rows:
        print(f"{row['what']:34}{row['wall']:>9.2f}{row['cpu']:>9.2f}{row['worst_wall']:>12.2f}")
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
