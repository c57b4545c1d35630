"""The training loop of an adapter: frozen base, gradient accumulation, EMA, exact resume."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.console import Bars
from imageprompt.core.errors import OptionError
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Dataset, RandomStreams, mix_seeds
from imageprompt.training.loop import checkpoints
from imageprompt.training.loop.checkpoints import RunIdentity
from imageprompt.training.loop.distributed import AdapterLoss, Processes, StopRequest
from imageprompt.training.loop.logging import LossWindow, Metrics, Throughput, log, progress_line
from imageprompt.training.loop.objective import NullConditions, Objective
from imageprompt.training.loop.training_state import (
    Ema,
    TrainingState,
    copy_into,
    decay_groups,
    ema_weights,
)

BEST = "best.safetensors"
MIN_LOSS_SCALE = 1.0

Validate = Callable[["Trainer"], Mapping[str, float]]
"""Makes pictures and returns metrics; a higher "score" means a better adapter."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: after its last step, or by a signal."""

    step: int
    finished: bool
    signal: int | None = None


class Trainer:
    """One run of one adapter on one frozen denoiser, in one folder.

    `adapter` is attached to `denoiser`; `scheduler` is the base's own. `folder` receives
    `metrics.jsonl` and checkpoints, from which a run resumes as if it had never stopped. A new
    Trainer continues from the newest intact checkpoint in `folder` if it has the same `identity`;
    otherwise it raises OptionError.
    """

    def __init__(
        self,
        adapter: Any,
        denoiser: nn.Module,
        scheduler: Any,
        samples: Dataset,
        config: TrainingConfig,
        folder: Path,
        *,
        objective: Objective | None = None,
        identity: RunIdentity | None = None,
        processes: Processes | None = None,
        trackers: tuple[str, ...] = (),
        validate: Validate | None = None,
        progress: bool = False,
    ) -> None:
        self.adapter, self.denoiser, self.scheduler = adapter, denoiser, scheduler
        self.samples, self.config, self.folder = samples, config, folder
        self.processes = processes or Processes(str(next(adapter.parameters()).device))
        self.identity = identity or RunIdentity(config.identity())
        self.objective = objective or Objective.of(config)
        self.validate, self.progress = validate, progress and self.processes.main
        denoiser.requires_grad_(False)
        adapter.module.requires_grad_(True)
        self.named: dict[str, nn.Parameter] = dict(adapter.module.named_parameters())
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.named.items(), config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        device = self.processes.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.loss_scaling)
        self.ema = Ema(self.named, config.ema) if config.ema else None
        self.window = LossWindow(scheduler.config.num_train_timesteps)
        self.step, self.position, self.best = 0, 0, -math.inf
        self.root = folder / "checkpoints"
        self.metrics = Metrics(folder / "metrics.jsonl", self.processes.accelerator, trackers)
        self.processes.on_main(lambda: check_folder(folder).mkdir(parents=True, exist_ok=True))
        self._saved: int | None = None
        self._waited = 0  # validations since the best score
        self._resume()
        self.model = self.processes.wrap(self._loss())
        if self.processes.count > 1:
            self._fix_bucket_order()

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    def run(self, until: int | None = None) -> RunResult:
        """Train up to step `until` (default: the end) and save; SIGTERM ends it after a step.

        Raises OptionError when the loss is not finite, the disk is full, or another process has
        died; only the steps since the last checkpoint are lost then.
        """
        last = self.config.steps if until is None else min(until, self.config.steps)
        with (
            StopRequest() as stop_request,
            self.processes.distributed_errors(self._resume_hint),
            Bars(self.progress and sys.stderr.isatty()) as bars,
        ):
            self.processes.on_main(lambda: self.metrics.start(self.step, self.identity.config))
            throughput = Throughput(self.step, self.config.batch_size * self.config.accumulate)
            stop = False
            steps = self.config.steps
            while self.step < last and not stop and not self._out_of_patience:
                bars.update(f"step {self.step} of {steps}", self.step, steps)
                stop = self._train_step(stop_request)
                self._after_step(throughput)
            bars.update(f"step {self.step} of {steps}", self.step, steps)
            self.save()
            self.processes.on_main(self.metrics.close)
        finished = self.step >= self.config.steps or self._out_of_patience
        return RunResult(self.step, finished, stop_request.signal)

    @property
    def _out_of_patience(self) -> bool:
        """Have so many validations in a row brought no better score?"""
        return 0 < self.config.patience <= self._waited

    def _train_step(self, stop_request: StopRequest) -> bool:
        """One optimiser step; True if any process was asked to stop."""
        config = self.config
        for part in range(config.accumulate):
            self._accumulate(last=part == config.accumulate - 1)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.clip or math.inf)
        usable = math.isfinite(float(norm)) or self._may_skip_step()
        stop, broken = self.processes.any_rank(stop_request.signal is not None, not usable)
        if broken:
            raise OptionError(
                f"training step {self.step}",
                reason="the loss or its gradient is not a finite number",
                hint=f"Lower learning_rate and start again; {self._resume_hint()}",
            )
        self.grad_norm = float(norm)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate_at(self.step)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update(self.named)
        return stop

    def _accumulate(self, last: bool) -> None:
        """Add the gradients of this process's part of one global batch."""
        config, processes = self.config, self.processes
        global_batch = config.batch_size * processes.count
        number, start = self.position // global_batch, processes.rank * config.batch_size
        indices = self.samples.indices(number, global_batch, config.seed)
        indices = indices[start : start + config.batch_size]
        streams = RandomStreams.at(config.seed, self.position + start, config.batch_size, self.step)
        torch.manual_seed(mix_seeds(config.seed, 3, number, processes.rank))
        batch = self.samples.batch(indices, streams)
        with ExitStack() as until, processes.sync_gradients(self.model, last):
            losses, times = self.model(batch, streams, until)
            self.scaler.scale(losses.mean() / config.accumulate).backward()
        self.window.add(losses, times)
        self.position += global_batch

    def _fix_bucket_order(self) -> None:
        """Run a first pass and discard its gradients.

        DDP rearranges its buckets after the first pass. With three or more processes other buckets
        mean another order of additions, which would make a resumed run differ.
        """
        position, sums = self.position, self.window.sums.clone()
        self._accumulate(last=True)
        self.optimiser.zero_grad(set_to_none=True)
        self.position, self.window.sums = position, sums

    def _may_skip_step(self) -> bool:
        """Whether the loss scale can still be halved and the step skipped."""
        return self.config.loss_scaling and self.scaler.get_scale() > MIN_LOSS_SCALE

    def _after_step(self, throughput: Throughput) -> None:
        config = self.config
        if self.step % config.log_every == 0:
            self._log_metrics(throughput)
        if config.validate_every and self.step % config.validate_every == 0:
            self._validate()
        if config.checkpoint_every and self.step % config.checkpoint_every == 0:
            self.save()

    def _log_metrics(self, throughput: Throughput) -> None:
        metrics = self.window.means(self.processes.all_reduce_sum(self.window.sums))
        self.window.sums.zero_()
        metrics |= {"rate": self.config.rate_at(self.step - 1), "grad_norm": self.grad_norm}
        speed = throughput.at(self.step, self.config.steps)
        speed["pictures_per_second"] *= self.processes.count
        epoch = {"epoch": self.position / len(self.samples)}
        line = metrics | epoch | speed
        self.processes.on_main(lambda: self.metrics.write(self.step, line))
        if self.progress:
            log(progress_line(self.step, self.config.steps, metrics | speed))

    def _validate(self) -> None:
        """Validate the EMA weights in the first process; the best ones are saved as a file."""

        def validate() -> bool:
            if self.validate is None:
                return True
            with self.ema_weights():
                metrics = dict(self.validate(self))
                better = metrics.get("score", -math.inf) > self.best
                if better:
                    self.best = metrics["score"]
                    self.adapter.save(self.folder / BEST)
            self.metrics.write(self.step, metrics)
            return better or "score" not in metrics

        self._waited = 0 if self.processes.on_main(validate) else self._waited + 1

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write a checkpoint, unless this step has one already. Raises OptionError."""
        if self._saved == self.step:
            return
        sums = self.processes.all_reduce_sum(self.window.sums)
        metadata = self.identity.metadata(self.processes.count) | {
            "position": self.position,
            "ema_updates": self.ema.updates if self.ema else 0,
            "window": sums.tolist(),
            "best": self.best if math.isfinite(self.best) else None,
            "loss_scale": self.scaler.state_dict(),
        }

        def write() -> None:
            checkpoints.write(self.root, self.step, self._state(), metadata, self.config.keep)

        self.processes.on_main(write)
        self._saved = self.step

    def _resume(self) -> None:
        """Continue from the newest intact checkpoint, the same one in all processes."""
        found, damaged = self.processes.on_main(lambda: checkpoints.newest(self.root))
        if self.processes.main:
            for line in damaged:
                log(line)
        if found is None:
            return
        self.identity.check(found, self.processes.count, self.folder)
        metadata = found.metadata
        self._state().restore(found.folder, found.step, metadata["ema_updates"])
        self.step, self.position, self._saved = found.step, metadata["position"], found.step
        self.best = -math.inf if metadata["best"] is None else metadata["best"]
        if self.config.loss_scaling and metadata["loss_scale"]:
            self.scaler.load_state_dict(metadata["loss_scale"])
        if self.processes.main:
            self.window.sums.copy_(torch.tensor(metadata["window"], dtype=torch.float64))

    def _state(self) -> TrainingState:
        return TrainingState(self.adapter, self.named, self.optimiser, self.ema)

    def _loss(self) -> AdapterLoss:
        frozen = (self.adapter, self.denoiser, self.scheduler)
        return AdapterLoss(self.objective, frozen, NullConditions.of(self.samples))

    def _resume_hint(self) -> str:
        if self._saved is None:
            return "there is no checkpoint yet."
        return f"--resume continues from the checkpoint of step {self._saved}."

    # ── running averages ────────────────────────────────────────────────────────────────────────

    def ema_weights(self) -> AbstractContextManager[None]:
        """Context manager inside which the adapter holds its running averages."""
        return ema_weights(self.named, self.ema)

    def use_ema_weights(self) -> None:
        """Copy the running averages into the adapter for good, once training is over."""
        if self.ema:
            copy_into(self.named, self.ema.average)
