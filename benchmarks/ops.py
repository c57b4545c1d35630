"""Operations dispatched in one denoise step, relative to the text-only denoiser.

An operation is one call that reaches the dispatcher below autograd (what a `TorchDispatchMode`
sees) and computes or copies numbers. Not counted: views (an operator that the schema marks as a
view, and `_unsafe_view`), `detach`, and allocations (`empty*`). A fused attention is one operation,
and so is a matrix product with or without bias.

The third step of a denoise loop is counted (one text, timesteps from a scheduler); all steps but
the first are like it. The first one, which fills the caches, is listed as well. Guidance batch of
two. Counted like this, diffusers' own IP-Adapter adds 82 (base), 144 (Plus) and 288 (two Plus)
operations to the SD1.5 denoiser.

Projector calls are those of a generation of five steps, per adapter. Ours are counted for a second
prompt: the first also projects the null image, whose tokens are cached.

    python benchmarks/ops.py [--base sd15|sdxl] [--latent 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bases import BASES, Base, random_unet
from peer import (
    diffusers_embeds,
    diffusers_load,
    diffusers_unload,
    flat,
    published_adapter,
    published_features,
)

GOALS = {"base": -16, "plus": -16, "two plus": 16}
CONTROLS: dict[str, dict[str, Any]] = {
    "down blocks at scale 0": {"scale": {"down_blocks": 0.0, "mid_block": 1.0, "up_blocks": 1.0}},
    "scale 0 everywhere": {"scale": 0.0},
    "style transfer": {"preset": "style transfer"},
    "style transfer precise": {"preset": "style transfer precise"},
    "composition": {"preset": "composition"},
    "schedule, where it is on": {"schedule": "0-0.4"},
    "schedule linear-out": {"schedule": "linear-out"},
    "schedule, where it is off": {"schedule": "0.4-1"},
    "a mask": {"mask": torch.ones(64, 64)},
    "scaling K+V": {"scaling": "K+V"},
}
"""Controls of a base adapter other than a plain scale."""
PEER = {"base": 82, "plus": 144, "two plus": 288}


class OpCounter(TorchDispatchMode):
    """Counts the operations that compute; `.names` counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        ignored = func.is_view or name in ("_unsafe_view", "detach") or name.startswith("empty")
        if not ignored:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """How many operations ran."""
        return sum(self.names.values())


def count(call: Callable[[], object]) -> Counter[str]:
    """The operations of one call, by name."""
    with torch.no_grad(), OpCounter() as counter:
        call()
    return counter.names


def timesteps() -> Tensor:
    """Fifty timesteps in one tensor, in sampling order."""
    return torch.arange(981, 0, -20)


def first_and_later(step: Callable[[Tensor], object]) -> tuple[Counter[str], Counter[str]]:
    """The operations of the first step of a loop and of a later one (the third)."""
    first, second, third = timesteps()[:3]
    filling_step = count(lambda: step(first))
    with torch.no_grad():
        step(second)
    return filling_step, count(lambda: step(third))


@contextlib.contextmanager
def projector_calls(modules: list[nn.Module]) -> Iterator[list[int]]:
    """Yields a list that grows by one entry with every forward call of a projector."""
    calls: list[int] = []
    handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class FakeEncoder:
    """An image encoder whose features are random numbers, not computed from pictures."""

    image_size = 224
    fingerprint = "random"

    def __init__(self, variant: str, dtype: torch.dtype) -> None:
        self.features = published_features(variant, dtype)

    def width(self, feature: str) -> int:
        """Width of the published encoder's features."""
        return self.features.shape[-1]

    def encode(self, pictures: Any, feature: str) -> Tensor:
        """The same random features for any picture."""
        return self.features.expand(len(pictures), *self.features.shape[1:])

    def encode_null(self, feature: str) -> Tensor:
        """Zeros for the null picture."""
        return torch.zeros_like(self.features)


class Bench:
    """One denoiser, measured without adapters, with diffusers' and with ours."""

    def __init__(self, base: Base, *, latent: int, dtype: torch.dtype, folder: Path) -> None:
        self.base = base
        self.dtype = dtype
        self.folder = folder
        self.unet = random_unet(base, dtype)
        self.inputs = base.inputs(2, latent=latent, dtype=dtype)
        self.files: dict[tuple[str, int], Path] = {}

    def step(self, timestep: Tensor, embeds: list[Tensor] | None = None) -> Tensor:
        """One denoise step."""
        inputs = {**self.inputs, "timestep": timestep}
        if embeds is not None:
            added = inputs.get("added_cond_kwargs", {})
            inputs["added_cond_kwargs"] = {**added, "image_embeds": embeds}
        with torch.no_grad():
            return self.unet(**inputs).sample

    def state(self, variant: str, seed: int) -> dict[str, dict[str, Tensor]]:
        """Random weights of one adapter."""
        return published_adapter(
            self.unet, variant, self.base.config["cross_attention_dim"], seed=seed, dtype=self.dtype
        )

    def file(self, variant: str, seed: int) -> Path:
        """The same weights as a standard file."""
        from safetensors.torch import save_file

        key = (variant, seed)
        if key not in self.files:
            path = self.folder / f"{variant}-{seed}.safetensors"
            save_file({k: v.contiguous() for k, v in flat(self.state(variant, seed)).items()}, path)
            self.files[key] = path
        return self.files[key]

    def peer(self, variants: list[str]) -> dict[str, Any]:
        """With diffusers: operations of a step, and projector calls in a run of five steps."""
        before = self.unet.attn_processors
        diffusers_load(self.unet, *(self.state(v, 4 + i) for i, v in enumerate(variants)))
        embeds = [
            diffusers_embeds([f], torch.zeros_like(f))
            for f in (published_features(v, self.dtype) for v in variants)
        ]
        first, later = first_and_later(lambda t: self.step(t, embeds))
        with projector_calls(list(self.unet.encoder_hid_proj.image_projection_layers)) as calls:
            for t in timesteps()[:5]:
                self.step(t, embeds)
        diffusers_unload(self.unet, before)
        return {"first": first, "later": later, "projector_calls": len(calls) / len(variants)}

    def ours(self, variants: list[str], **use: Any) -> dict[str, Any]:
        """The same with imageprompt, all adapters attached at once."""
        import imageprompt as ip

        adapters = [
            ip.Adapter.load(self.file(v, 4 + i), dtype=self.dtype) for i, v in enumerate(variants)
        ]
        with contextlib.ExitStack() as stack:
            for adapter, variant in zip(adapters, variants, strict=True):
                adapter.attach(self.unet, encoder=FakeEncoder(variant, self.dtype))
                stack.callback(adapter.detach)
                adapter.encode(features=published_features(variant, self.dtype, seed=6))
            calls = stack.enter_context(projector_calls([a.module.image_proj for a in adapters]))
            for adapter, variant in zip(adapters, variants, strict=True):
                prompt = adapter.encode(features=published_features(variant, self.dtype))
                stack.enter_context(adapter.use(prompt, **use))
            first, later = first_and_later(self.step)
            for t in timesteps()[:5]:
                self.step(t)
        return {"first": first, "later": later, "projector_calls": len(calls) / len(variants)}


def measure(bench: Bench, *, peer: bool = True) -> list[dict[str, Any]]:
    """All rows of the table; `added` is relative to the text-only denoiser's later step."""
    plain = sum(first_and_later(bench.step)[1].values())
    rows: list[dict[str, Any]] = [{"what": "text only", "later": plain, "added": 0}]

    def row(what: str, counted: dict[str, Any], goal: int | None) -> None:
        first, later = sum(counted["first"].values()), sum(counted["later"].values())
        rows.append(
            {
                "what": what,
                "first": first,
                "later": later,
                "added": later - plain,
                "goal": goal,
                "projector_calls": counted["projector_calls"],
            }
        )

    sets = {"base": ["base"], "plus": ["plus"], "two plus": ["plus", "plus"]}
    for name, variants in sets.items():
        if peer:
            row(f"diffusers {name}", bench.peer(variants), PEER[name])
        row(f"imageprompt {name}", bench.ours(variants), GOALS[name])
    for name, use in CONTROLS.items():
        row(f"imageprompt base, {name}", bench.ours(["base"], **use), None)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=sorted(BASES), default="sd15")
    parser.add_argument("--latent", type=int, default=8, help="side of the latents")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            BASES[args.base], latent=args.latent, dtype=torch.bfloat16, folder=Path(folder)
        )
        rows = measure(bench)
    print(f"{args.base}, {args.latent}x{args.latent} latents, bfloat16, guidance batch 2")
    print(f"{'':44}{'first':>7}{'later':>7}{'added':>7}{'goal':>8}{'projector calls':>17}")
    for r in rows:
        goal = "" if r.get("goal") is None or args.base != "sd15" else f"{r['goal']:+d}"
        calls = r.get("projector_calls", "")
        print(
            f"{r['what']:44}{r.get('first', ''):>7}{r['later']:>7}{r['added']:>+7}"
            f"{goal:>8}{calls:>17}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
