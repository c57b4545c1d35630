"""Memory and CPU time of a region mask at every attention layer, compared with diffusers.

Memory is counted, not sampled: the bytes that the operations in an attention layer write into new
tensors with a mask, minus those without; the largest difference of all layers, in the first step of
a loop (where the mask is resized) and in a later one. CPU time is measured twice: for whole steps,
with and without a mask in turns (median of ratios), and for the two operations that a mask changes,
alone, in the shape of every layer, relative to the step. The second has less noise.

SD1.5 config, random weights, guidance batch of two, bfloat16.

    python benchmarks/masks.py [--latent 64] [--rounds 3] [--steps 4] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bases import BASES, Base, random_unet
from imageprompt.attention.state import _in_use
from peer import diffusers_embeds, diffusers_load, flat, published_adapter, published_features
from step_time import shared_copy
from timing import conditions, cpu_seconds

Step = Callable[[Tensor], object]
DTYPE = torch.bfloat16
GOAL = {"MiB": 0.1, "CPU": 0.02}


class WrittenBytes(TorchDispatchMode):
    """Counts the bytes that operations write into new tensors, for each attention layer."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)
        self.queries: dict[str, tuple[int, ...]] = {}
        self._layer = ""
        self._handles: list[Any] = []
        for name, layer in unet.named_modules():
            if name.endswith("attn2"):
                self._handles.append(layer.register_forward_pre_hook(self._enter_hook(name)))
                self._handles.append(layer.register_forward_hook(lambda *_: self._leave()))

    def _enter_hook(self, name: str) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._layer = name
            self.queries[name] = tuple(args[0].shape)

        return enter

    def _leave(self) -> None:
        self._layer = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._layer and not func.is_view and isinstance(out, Tensor):
            self.bytes[self._layer] += out.numel() * out.element_size()
        return out

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for handle in self._handles:
            handle.remove()


def written_bytes(unet: nn.Module, step: Step, t: Tensor) -> WrittenBytes:
    """What one step writes."""
    with torch.no_grad(), WrittenBytes(unet) as counted:
        step(t)
    return counted


@contextlib.contextmanager
def steps_of(base: Base, latent: int) -> Iterator[dict[str, tuple[nn.Module, Step]]]:
    """Denoiser and step of ours and of diffusers, without and with a mask."""
    import imageprompt as ip

    mine = random_unet(base, DTYPE)
    theirs = shared_copy(mine)
    inputs = base.inputs(2, latent=latent, dtype=DTYPE)
    state = published_adapter(mine, "base", base.config["cross_attention_dim"], dtype=DTYPE)
    features = published_features("base", DTYPE)
    diffusers_load(theirs, state)
    embeds = [diffusers_embeds([features], torch.zeros_like(features))]
    mask = torch.zeros(8 * latent, 8 * latent)
    mask[:, : 4 * latent] = 1
    added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": embeds}

    def peer(masks: list[Tensor] | None) -> Step:
        more = {} if masks is None else {"cross_attention_kwargs": {"ip_adapter_masks": masks}}
        return lambda t: theirs(**{**inputs, "timestep": t, "added_cond_kwargs": added}, **more)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file({k: v.contiguous() for k, v in flat(state).items()}, path)
        adapter = ip.Adapter.load(path, dtype=DTYPE).attach(mine)
    prompt = adapter.encode(features=features, null_features=torch.zeros_like(features))

    def ours(handle: Any) -> Step:
        def step(t: Tensor) -> object:
            _in_use.set((handle,))  # both keep their rows while they take turns
            return mine(**{**inputs, "timestep": t})

        return step

    with adapter.use(prompt) as plain, adapter.use(prompt, mask=mask) as masked:
        yield {
            "imageprompt": (mine, ours(plain)),
            "imageprompt, mask": (mine, ours(masked)),
            "diffusers": (theirs, peer(None)),
            "diffusers, mask": (theirs, peer([mask[None, None]])),
        }


def measure(base: Base, *, latent: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row for each side."""
    # a repeated timestep would start a new loop and fill the caches again
    timesteps = iter(torch.arange(999, 0, -1))
    with torch.no_grad(), steps_of(base, latent) as racers:
        rows = []
        for side in ("imageprompt", "diffusers"):
            (unet, plain), (_, masked) = racers[side], racers[f"{side}, mask"]
            plain(next(timesteps))  # fills the text cache
            first = _largest_difference(
                *(written_bytes(unet, step, next(timesteps)) for step in (masked, plain))
            )
            with_mask, without = (written_bytes(unet, s, next(timesteps)) for s in (masked, plain))
            later = _largest_difference(with_mask, without)
            ratios, seconds = _race(plain, masked, timesteps, rounds * steps)
            row = {"what": side, "first": first, "later": later, "ratio": ratios, "step": seconds}
            if side == "imageprompt":
                row["alone"] = _mask_seconds(with_mask.queries, base) / seconds
            rows.append(row)
    return rows


def _largest_difference(masked: WrittenBytes, plain: WrittenBytes) -> float:
    """The largest difference of any layer, in MiB."""
    return max(masked.bytes[name] - plain.bytes[name] for name in plain.bytes) / 2**20


def _race(
    plain: Step, masked: Step, timesteps: Iterator[Tensor], pairs: int
) -> tuple[float, float]:
    """Median ratio of masked to plain steps in turns, and the CPU seconds of a plain step."""
    ratios, seconds = [], []
    for i in range(pairs):
        order = (plain, masked) if i % 2 == 0 else (masked, plain)
        cpu = {step: cpu_seconds(lambda step=step: step(next(timesteps))) for step in order}
        ratios.append(cpu[masked] / cpu[plain])
        seconds.append(cpu[plain])
    return statistics.median(ratios), statistics.median(seconds)


def _mask_seconds(shapes: dict[str, tuple[int, ...]], base: Base) -> float:
    """Additional seconds a step of one weight per query (scale x mask) over one scalar scale."""
    heads = int(base.config["attention_head_dim"])
    scale, total = torch.tensor(0.7), 0.0
    for batch, queries, width in shapes.values():
        z, image = (torch.randn(batch, heads, queries, width // heads).to(DTYPE) for _ in range(2))
        mask = torch.rand(1, 1, queries, 1).to(DTYPE)
        total += _fastest(lambda z=z, a=image, m=mask: torch.addcmul(z, a, scale * m))
        total -= _fastest(lambda z=z, a=image: torch.addcmul(z, a, scale))
    return total


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of twenty calls, on one thread."""
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print one line for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one pair of steps at 16x16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    latent, rounds, steps = (16, 1, 1) if args.quick else (args.latent, args.rounds, args.steps)
    before = conditions()
    rows = measure(BASES["sd15"], latent=latent, rounds=rounds, steps=steps)
    print(f"sd15, {latent}x{latent} latents, bfloat16, guidance batch 2; {before}")
    print(f"{'a mask adds':18}{'MiB, first':>12}{'MiB, later':>12}{'CPU':>9}{'alone':>9}")
    for row in rows:
        alone = f"{row['alone']:+.2%}" if "alone" in row else ""
        print(
            f"{row['what']:18}{row['first']:>12.3f}{row['later']:>12.3f}"
            f"{row['ratio'] - 1:>+9.1%}{alone:>9}"
        )
    print(f"goal <= {GOAL['MiB']} MiB a layer and <= {GOAL['CPU']:.0%} of CPU time")
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
