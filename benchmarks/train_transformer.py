"""A training step of a Plus adapter on a transformer, beside a plain loop with the same maths.

Random weights, batch 1, 256 x 256 pixels: an SD3.5 of 6 blocks 1024 wide, a FLUX of 2 double and 4
single blocks 1024 wide. The plain loop is what single-model scripts do: everything is encoded in
every step (SD's autoencoder, CLIP L, ViT-H), the frozen transformer is float32 under bfloat16
autocast, the adapter's term is added by processors or hooks of plain modules, AdamW is torch's
default. Ours is the package's objective on a frozen bfloat16 base: without a cache with the same
encoders in every step, and with cached features. Candidates run in processes of their own, which
take turns; CPU time of a step (median), and the peak of the whole process (VmHWM).

    python benchmarks/train_transformer.py [--host sd3|flux] [--steps 3] [--turns 2] [--size large]
                                           [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timing import conditions
from train_memory import peak
from training_parts import PARTS, EncoderSizes, FeatureExtractors, Parts
from transformer_bases import SIZES, Size, at, build, inputs

DTYPE = torch.bfloat16
TOKENS, DEPTH = 16, 4
SHIFT = 3.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What one process trains."""

    ours: bool
    cached: bool = False
    checkpointing: bool = False
    int8: bool = False


CANDIDATES = {
    "plain loop": Candidate(ours=False),
    "ours, no cache": Candidate(ours=True),
    "ours, cached": Candidate(ours=True, cached=True),
    "ours, checkpointing": Candidate(ours=True, cached=True, checkpointing=True),
    "ours, checkpointing, int8": Candidate(ours=True, cached=True, checkpointing=True, int8=True),
}


class Encoded:
    """One captioned picture: encoded in every step, or once and then without the encoders."""

    def __init__(self, parts: Parts, side: int, *, cached: bool) -> None:
        extractors = FeatureExtractors(parts, "plus", side)
        self._once = extractors() if cached else None
        self._extractors = None if cached else extractors

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, text states and patch features."""
        if self._extractors is not None:
            return self._extractors()
        assert self._once is not None
        return self._once


class Sample:
    """Random states and latents in the transformer's widths; the encoders only take their time."""

    def __init__(self, host: str, size: Size, encoded: Encoded) -> None:
        self.encoded, self.call = encoded, inputs(host, size, 1, dtype=torch.float32)
        channels = 16
        self.latents = torch.randn(1, channels, 2 * size.side, 2 * size.side)

    def features(self) -> Tensor:
        """[1, L, F], after everything was encoded that the step needs."""
        return self.encoded()[2]


class Terms(nn.Module):
    """K' and V' of every block, as plain modules that hooks call."""

    def __init__(self, names: list[str], width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.k = nn.ModuleList(nn.Linear(token_width, width, bias=False) for _ in names)
        self.v = nn.ModuleList(nn.Linear(token_width, width, bias=False) for _ in names)
        self.heads, self.tokens = heads, torch.empty(0)
        for layer in self.v:
            nn.init.zeros_(layer.weight)

    def term(self, number: int, q: Tensor) -> Tensor:
        """q [1, H, S, D] -> [1, S, H D]."""
        k, v = (
            one[number](self.tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.k, self.v)
        )
        k = F.rms_norm(k, k.shape[-1:], eps=1e-6)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PlainLoop:
    """What scripts for one model do."""

    def __init__(self, host: str, size: Size, parts: Parts) -> None:
        from diffusers.models.embeddings import IPAdapterPlusImageProjection

        self.host = host
        self.model: Any = build(host, size, dtype=torch.float32)
        self.sample = Sample(host, size, Encoded(parts, 16 * size.side, cached=False))
        token_width = size.width if host == "sd3" else size.token_width
        self.projector = IPAdapterPlusImageProjection(
            embed_dims=parts.vision["hidden_size"],
            output_dims=token_width,
            hidden_dims=token_width,
            depth=DEPTH,
            heads=12,
            num_queries=TOKENS,
        )
        names = [name for name, one in self.model.named_modules() if hasattr(one, "norm_added_k")]
        names = [name for name in names if name.endswith(".attn")]
        self.terms = Terms(names, size.width, token_width, size.heads)
        for number, name in enumerate(names):
            self._hook(number, self.model.get_submodule(name), host)
        self.parameters = [*self.projector.parameters(), *self.terms.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01)

    def _hook(self, number: int, layer: Any, host: str) -> None:
        seen: list[Tensor] = []

        def hear(_: Any, __: Any, q: Tensor) -> None:
            seen[:] = [q if host == "sd3" else q.transpose(1, 2)]

        def add(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] + self.terms.term(number, seen[0]).to(args[0].dtype), *args[1:])

        layer.norm_q.register_forward_hook(hear)
        if getattr(layer, "to_out", None) is not None:
            layer.to_out[0].register_forward_pre_hook(add)
        else:  # FLUX's single blocks: the rows of the picture after those of the text
            text = self.sample.call["encoder_hidden_states"].shape[1]

            def after(_: Any, __: Any, out: Tensor) -> Tensor:
                term = self.terms.term(number, seen[0][:, :, text:])
                return torch.cat((out[:, :text], out[:, text:] + term.to(out.dtype)), 1)

            layer.register_forward_hook(after)

    def step(self) -> float:
        features = self.sample.features()
        clean = self.sample.latents
        noise = torch.randn_like(clean)
        uniform = torch.randn(1).sigmoid()
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noisy, target = (1 - sigma) * clean + sigma * noise, noise - clean
        if self.host == "flux":
            noisy, target = _packed(noisy), _packed(target)
        with torch.autocast("cpu", DTYPE):
            self.terms.tokens = self.projector(features)
            call = at(self.host, {**self.sample.call, "hidden_states": noisy}, 1000 * sigma)
            prediction = self.model(**call, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


def _packed(latents: Tensor) -> Tensor:
    _, c, h, w = latents.shape
    parts = latents.reshape(1, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(1, h * w // 4, 4 * c)


class Ours:
    """The package's training step."""

    def __init__(self, host: str, size: Size, parts: Parts, candidate: Candidate) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        import imageprompt as ip
        from imageprompt.training.data.dataset import Batch
        from imageprompt.training.loop.objective import NullConditions, Objective
        from imageprompt.training.loop.training_state import decay_groups

        self.model: Any = build(host, size, dtype=DTYPE)
        if candidate.int8:
            from imageprompt.training.memory.int8 import store_as_int8

            store_as_int8(self.model)
        if candidate.checkpointing:
            self.model.enable_gradient_checkpointing()
        encoded = Encoded(parts, 16 * size.side, cached=candidate.cached)
        self.sample, kind = Sample(host, size, encoded), EncoderSizes(parts)
        self.adapter = ip.Adapter.create(
            "plus", denoiser=self.model, encoder=kind, num_tokens=TOKENS, depth=DEPTH
        ).attach(self.model)
        named = list(self.adapter.module.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self.optimiser = torch.optim.AdamW(decay_groups(named, 0.01), lr=1e-4, fused=True)
        text = self.sample.call["encoder_hidden_states"]
        self.added = {"pooled_projections": self.sample.call["pooled_projections"]}
        nulls = {name: 0 * value for name, value in self.added.items()}
        self.nulls = NullConditions(0 * text, 0 * self.sample.features(), nulls)
        self.batch = lambda: Batch(self.sample.latents, text, self.sample.features(), self.added)
        self.objective, self.turn = Objective(shift=SHIFT), 0
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def step(self) -> float:
        from imageprompt.training.data.dataset import RandomStreams

        self.turn += 1
        loss = self.objective.loss(
            self.adapter,
            self.model,
            self.scheduler,
            self.batch(),
            self.nulls,
            RandomStreams([self.turn], self.turn),
        )
        with loss as (losses, _):
            losses.mean().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(losses.detach().mean())


def work(host: str, size: Size, parts: Parts, name: str, steps: int) -> Row:
    """Train `steps` steps in this process, after one that is not timed."""
    candidate = CANDIDATES[name]
    if candidate.ours:
        runner: Any = Ours(host, size, parts, candidate)
    else:
        runner = PlainLoop(host, size, parts)
    seconds, losses = [], []
    for _ in range(steps + 1):
        start = time.process_time()
        losses.append(runner.step())
        seconds.append(time.process_time() - start)
    return {"peak": peak(), "cpu": statistics.median(seconds[1:]), "losses": losses}


def run_process(args: argparse.Namespace, name: str) -> Row:
    """The row of one candidate, measured in its own process."""
    command = [sys.executable, __file__, "--worker", name, "--host", args.host]
    command += ["--steps", str(args.steps), "--threads", str(args.threads), "--size", args.size]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {"what": name, **row}


def main() -> None:
    """Print one line per candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", choices=tuple(SIZES), default="sd3")
    parser.add_argument("--size", choices=("tiny", "large"), default="large")
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        size = SIZES[args.host][args.size]
        print(json.dumps(work(args.host, size, PARTS["sd15"], args.worker, args.steps)))
        return
    before = conditions()
    rows = [run_process(args, name) for _ in range(args.turns) for name in CANDIDATES]
    print(f"{args.host}, Plus, batch 1; {before}")
    print(f"{'':28}{'CPU s a step':>14}{'faster':>8}{'peak GB':>9}{'of plain':>10}")
    found = {name: [row for row in rows if row["what"] == name] for name in CANDIDATES}
    plain_cpu, plain_peak = _summary(found["plain loop"])
    for name, measured in found.items():
        cpu, highest = _summary(measured)
        print(
            f"{name:28}{cpu:>14.2f}{plain_cpu / cpu:>8.2f}{highest:>9.2f}"
            f"{highest / plain_peak:>10.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"conditions": before, "rows": rows}, indent=1) + "\n")


def _summary(rows: list[Row]) -> tuple[float, float]:
    return statistics.median(row["cpu"] for row in rows), max(row["peak"] for row in rows)


if __name__ == "__main__":
    main()
