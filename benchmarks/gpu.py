"""Cost of an image prompt on FLUX on a GPU: time of a step, and memory.

FLUX.1-dev's size with random bfloat16 weights (`--size dev`: 24 GB, and 2 to 5 GB for an adapter),
or smaller. Text alone, XLabs' adapter by diffusers and by us, and InstantX's by us (diffusers
cannot load it) take turns step by step, so that clocks and temperature affect all alike. Reported:
median time of a step and its ratio to text alone, the most memory that a step allocates beyond
what is there before it, and the bytes that an adapter keeps: weights, and K', V' for ours.

    python benchmarks/gpu.py [--size dev|large|tiny] [--device cuda] [--steps 20] [--warmup 3]
                             [--compile] [--json FILE]

Runs on the CPU too (`--size tiny --device cpu`), where memory is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from peer import flat
from step_time import shared_copy
from transformer_bases import (
    SIZES,
    Size,
    adapter,
    at,
    build,
    features,
    inputs,
    load_peer,
    peer_embeds,
)

Step = Callable[[Tensor], object]
TIMES = torch.arange(1000.0, 0, -20)


@dataclass
class Candidate:
    """A step, and the bytes that the adapter of it keeps."""

    step: Step
    bytes: int = 0


def _bytes(tensors: Iterator[Tensor]) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


@contextlib.contextmanager
def candidates(
    size: Size, *, dtype: torch.dtype, device: str, compiled: bool
) -> Iterator[dict[str, Candidate]]:
    """All of them with the same weights of the base, which are shared."""
    import imageprompt as ip

    plain = build("flux", size, dtype=dtype, device=device)
    call = inputs("flux", size, 1, dtype=dtype, device=device)
    found = features(size, dtype=dtype, device=device)

    def step(model: nn.Module, **more: Any) -> Step:
        if compiled:
            model.compile_repeated_blocks(fullgraph=True)
        return lambda now: model(**at("flux", call, now.to(device)), **more)

    made = {"text only": Candidate(step(plain))}
    state = adapter("xlabs", size, dtype=dtype)
    theirs: Any = shared_copy(plain)
    before = _bytes(theirs.parameters())
    load_peer(theirs, state)
    theirs.to(device)
    kwargs = {"ip_adapter_image_embeds": peer_embeds("flux", found, guided=False)}
    made["XLabs, diffusers"] = Candidate(
        step(theirs, joint_attention_kwargs=kwargs), _bytes(theirs.parameters()) - before
    )
    with contextlib.ExitStack() as stack:
        for name, kind in (("XLabs, imageprompt", "xlabs"), ("InstantX, imageprompt", "instantx")):
            mine = shared_copy(plain)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "adapter.safetensors"
            weights = state if kind == "xlabs" else adapter(kind, size, dtype=dtype)
            save_file({key: x.contiguous() for key, x in flat(weights).items()}, path)
            ours = ip.Adapter.load(path, device=device, dtype=dtype).attach(mine)
            stack.callback(ours.detach)
            prompt = ours.encode(features=found, null_features=torch.zeros_like(found))
            handle = stack.enter_context(ours.use(prompt, scale=1.0, guidance="none"))
            one = Candidate(step(mine))
            one.step(TIMES[0])  # binds K', V' to the batch
            kept = (x for pair in handle._batch.rows for x in pair)
            one.bytes = _bytes(ours.parameters()) + _bytes(kept)
            made[name] = one
        yield made


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall time of a call; on a GPU, until it has finished there."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(call: Callable[[], object], device: str) -> int:
    """The most bytes that a call allocates beyond what was there; 0 on the CPU."""
    if device == "cpu":
        call()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    size: Size, *, dtype: torch.dtype, device: str, steps: int, warmup: int, compiled: bool = False
) -> list[dict[str, Any]]:
    """One row for each candidate."""
    with (
        torch.no_grad(),
        candidates(size, dtype=dtype, device=device, compiled=compiled) as racers,
    ):
        taken: dict[str, list[float]] = {name: [] for name in racers}
        for number in range(warmup + steps):
            order = list(racers) if number % 2 == 0 else list(reversed(racers))
            for name in order:
                call = partial(racers[name].step, TIMES[number % len(TIMES)])
                taken[name].append(seconds(call, device))
        peaks = {name: peak(partial(one.step, TIMES[1]), device) for name, one in racers.items()}
    text = taken["text only"][warmup:]
    rows = []
    for name, one in racers.items():
        own = taken[name][warmup:]
        rows.append(
            {
                "what": name,
                "ms": 1e3 * statistics.median(own),
                "ratio": statistics.median(a / b for a, b in zip(own, text, strict=True)),
                "peak": peaks[name] / 2**20,
                "kept": one.bytes / 2**20,
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES["flux"]), default="dev")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="regional compilation of the base")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is there. Use --size tiny --device cpu.")
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    rows = measure(
        SIZES["flux"][args.size],
        dtype=dtype,
        device=args.device,
        steps=args.steps,
        warmup=args.warmup,
        compiled=args.compile,
    )
    where = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"FLUX, {args.size}, {dtype}, {where}, torch {torch.__version__}, {args.steps} steps")
    print(f"{'':24}{'ms a step':>11}{'ratio':>8}{'peak MiB':>11}{'kept MiB':>11}")
    for row in rows:
        print(
            f"{row['what']:24}{row['ms']:>11.2f}{row['ratio']:>8.3f}"
            f"{row['peak']:>11.1f}{row['kept']:>11.1f}"
        )
    if args.json:
        conditions = {"where": where, "torch": torch.__version__, "steps": args.steps}
        args.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
