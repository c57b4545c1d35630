"""What an image prompt costs on a transformer, beside diffusers' own adapters for FLUX and SD3.5.

Three transformers with the same random weights (shared, not copied): text only, diffusers' and
ours. XLabs' adapter on FLUX (one row, no negative side) and InstantX's on SD3.5 (one row, and both
sides of guidance). InstantX's adapter for FLUX is ours alone, since diffusers cannot load it.

- operations: of the third step of a loop, more than text alone (counted as in `ops.py`)
- CPU: process CPU time of steady steps relative to text alone, in turns; median of the ratios
- projector: runs in a generation of five steps
- MiB kept: tensors that live on between steps, beside the adapter's weights
- MiB peak: the highest number of bytes that a steady step allocates at once, more than text alone

    python benchmarks/transformer_cost.py [--size tiny|large] [--host flux|sd3] [--rounds 5]
                                          [--steps 4] [--threads 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ops import first_and_later, projector_calls
from peer import flat
from step_time import shared_copy
from timing import conditions, cpu_seconds
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

Row = dict[str, Any]
Step = Callable[[Tensor], object]
CASES = (
    ("flux", "xlabs", 1),
    ("flux", "instantx", 1),
    ("sd3", "instantx-sd3", 1),
    ("sd3", "instantx-sd3", 2),
)
"""Host, adapter, and rows of a call: two with both sides of guidance."""
TIMES = torch.arange(1000.0, 0, -20)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that tensors made during a call have at one time."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = highest = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest


@dataclass
class Candidate:
    """One transformer: a step of it, its projectors, and what it keeps."""

    step: Step
    projectors: list[nn.Module] = field(default_factory=list)
    ran: int = 0
    """Runs of the projector before the first step."""
    handle: Any = None
    """The image prompt in use, if it is ours."""

    def kept(self) -> int:
        """Bytes that live on between steps, beside the weights."""
        if self.handle is None:
            return 0
        batch = self.handle._batch
        tensors = (x for pair in (*batch.rows, *batch._key_values) for x in pair)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        return sum(storages.values())


@contextlib.contextmanager
def candidates(
    host: str, kind: str, rows: int, size: Size, dtype: torch.dtype
) -> Iterator[dict[str, Candidate]]:
    """Text only, diffusers (where it can) and ours."""
    import imageprompt as ip

    plain = build(host, size, dtype=dtype)
    mine = shared_copy(plain)
    call = inputs(host, size, rows, dtype=dtype)
    state, found = adapter(kind, size, dtype=dtype), features(size, dtype=dtype)

    def step(model: nn.Module, more: dict[str, Any]) -> Step:
        return lambda time: model(**at(host, call, time), **more)

    made = {"text only": Candidate(step(plain, {}))}
    if (host, kind) != ("flux", "instantx"):
        theirs: Any = shared_copy(plain)
        load_peer(theirs, state)
        embeds = peer_embeds(host, found, guided=rows == 2)
        kwargs = {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds}}
        projection = theirs.encoder_hid_proj if host == "flux" else theirs.image_proj
        parts = list(getattr(projection, "image_projection_layers", [projection]))
        made["diffusers"] = Candidate(step(theirs, kwargs), parts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file({name: x.contiguous() for name, x in flat(state).items()}, path)
        ours = ip.Adapter.load(path, dtype=dtype).attach(mine)
    with projector_calls([ours.module.image_proj]) as calls:
        prompt = ours.encode(features=found, null_features=torch.zeros_like(found))
    guidance = "negative-positive" if rows == 2 else "none"
    with ours.use(prompt, scale=1.0, guidance=guidance) as handle:
        projectors = [ours.module.image_proj]
        made["imageprompt"] = Candidate(step(mine, {}), projectors, len(calls), handle)
        yield made
    ours.detach()


def measure(
    host: str, kind: str, rows: int, size: Size, *, dtype: torch.dtype, rounds: int, steps: int
) -> list[Row]:
    """One row for each candidate."""
    with torch.no_grad(), candidates(host, kind, rows, size, dtype) as racers:
        table: list[Row] = []
        for name, racer in racers.items():
            later = sum(first_and_later(lambda t, run=racer.step: run(t.float()))[1].values())
            with projector_calls(racer.projectors) as calls:
                for time in TIMES[:5]:
                    racer.step(time)
            table.append(
                {
                    "what": name,
                    "operations": later,
                    "projector": racer.ran + len(calls),
                    "kept": racer.kept() / 2**20,
                    "peak": peak_bytes(partial(racer.step, TIMES[5])) / 2**20,
                    "seconds": [],
                }
            )
        for turn in range(rounds):
            for number, time in enumerate(TIMES[:steps]):
                order = table if (turn + number) % 2 == 0 else table[::-1]
                for row in order:
                    step = partial(racers[row["what"]].step, time)
                    row["seconds"].append(cpu_seconds(step))
    text = table[0]
    baseline = text["seconds"]
    for row in table:
        row |= {"host": host, "adapter": kind, "rows": rows}
        row["added"] = row["operations"] - text["operations"]
        row["peak_added"] = row["peak"] - text["peak"]
        ratios = [a / b for a, b in zip(row["seconds"], baseline, strict=True)]
        row["ratio"] = statistics.median(ratios)
        row["ms"] = 1e3 * statistics.median(row.pop("seconds"))
    return table


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "large"), default="tiny")
    parser.add_argument("--host", choices=("flux", "sd3"), help="one of the two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of two steps")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    torch.set_num_threads(args.threads)
    rounds, steps = (1, 2) if args.quick else (args.rounds, args.steps)
    before, table = conditions(), []
    print(f"{args.size} random transformers, float32; {rounds} rounds of {steps} steps; {before}")
    print(f"{'':38}{'added':>7}{'ms':>9}{'CPU':>7}{'projector':>11}{'kept':>8}{'peak':>8}")
    for host, kind, rows in (case for case in CASES if args.host in (None, case[0])):
        size = SIZES[host][args.size]
        found = measure(host, kind, rows, size, dtype=torch.float32, rounds=rounds, steps=steps)
        table += found
        for row in found:
            name = f"{host} {kind}, {rows} row(s), {row['what']}"
            print(
                f"{name:38}{row['added']:>+7}{row['ms']:>9.1f}{row['ratio']:>7.3f}"
                f"{row['projector']:>11}{row['kept']:>8.2f}{row['peak_added']:>+8.2f}"
            )
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
