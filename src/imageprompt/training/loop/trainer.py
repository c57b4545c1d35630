"""The training loop of an adapter: frozen base, accumulation, averages, exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import OptionError
from imageprompt.training.config.loop_config import TrainConfig
from imageprompt.training.data.dataset import Samples
from imageprompt.training.data.random_streams import RandomStreams, mix_seeds
from imageprompt.training.loop import checkpoint_state, checkpoints
from imageprompt.training.loop.distributed import AdapterLoss, Processes
from imageprompt.training.loop.ema import Ema, averaged, decay_groups, put
from imageprompt.training.loop.logging import Metrics, Pace, Window, line_of, log
from imageprompt.training.loop.objective import NullConditions, Objective
from imageprompt.training.loop.run_control import Stopping
from imageprompt.training.loop.run_identity import Identity

BEST = "best.safetensors"
SMALLEST_LOSS_SCALE = 1.0

Validate = Callable[["Trainer"], Mapping[str, float]]
"""Makes pictures; returns figures, of which a higher "score" is a better adapter."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: at its last step, or by a signal."""

    step: int
    finished: bool
    signal: int | None = None


class Trainer:
    """One run of one adapter on one frozen denoiser, in one folder.

    `adapter` is attached to `denoiser`; `scheduler` is the base's own. `folder` gets checkpoints
    (everything needed to go on as if nothing had happened) and `metrics.jsonl`; a run that finds
    checkpoints there goes on from the newest whole one, if it is of the same `identity`.
    """

    def __init__(
        self,
        adapter: Any,
        denoiser: nn.Module,
        scheduler: Any,
        samples: Samples,
        config: TrainConfig,
        folder: Path,
        *,
        objective: Objective | None = None,
        identity: Identity | None = None,
        processes: Processes | None = None,
        trackers: tuple[str, ...] = (),
        validate: Validate | None = None,
        progress: bool = False,
    ) -> None:
        self.adapter, self.denoiser, self.scheduler = adapter, denoiser, scheduler
        self.samples, self.config, self.folder = samples, config, folder
        self.processes = processes or Processes(str(next(adapter.parameters()).device))
        self.identity = identity or Identity(config.identity())
        self.objective = objective or Objective(
            drops=config.drops,
            timesteps=config.timesteps,
            scales=config.scales,
            autocast=config.autocast,
        )
        self.validate, self.progress = validate, progress
        denoiser.requires_grad_(False)
        adapter.module.requires_grad_(True)
        self.named: dict[str, nn.Parameter] = dict(adapter.module.named_parameters())
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.named.items(), config.weight_decay),
            lr=config.rate,
            betas=config.betas,
            fused=True,
        )
        device = self.processes.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.loss_scaling)
        self.ema = Ema(self.named, config.ema) if config.ema else None
        self.window = Window(scheduler.config.num_train_timesteps)
        self.step, self.position, self.best = 0, 0, -math.inf
        self.root = folder / "checkpoints"
        self.metrics = Metrics(folder / "metrics.jsonl", self.processes.accelerator, trackers)
        self.processes.on_main(lambda: check_folder(folder).mkdir(parents=True, exist_ok=True))
        self._saved: int | None = None
        self._resume()
        self.model = self.processes.wrap(self._loss())
        if self.processes.count > 1:
            self._settle()

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    def run(self, until: int | None = None) -> RunResult:
        """Train up to step `until` (default: the end) and save; SIGTERM ends it after a step.

        Raises OptionError when the loss is no number, the disk is full, or a process has died;
        then nothing is lost but the steps since the last checkpoint.
        """
        last = self.config.steps if until is None else min(until, self.config.steps)
        if self.processes.main:
            self.metrics.start(self.step, self.identity.config)
        with Stopping() as stopping, self.processes.distributed_errors(self._hint):
            pace = Pace(self.step, self.config.batch * self.config.accumulate)
            stop = False
            while self.step < last and not stop:
                stop = self._one_step(stopping)
                self._after_step(pace)
            self.save()
        if self.processes.main:
            self.metrics.close()
        return RunResult(self.step, self.step >= self.config.steps, stopping.asked)

    def _one_step(self, stopping: Stopping) -> bool:
        """One step of the optimiser; True if any process was asked to stop."""
        config = self.config
        for part in range(config.accumulate):
            self._accumulate(last=part == config.accumulate - 1)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.clip or math.inf)
        finite = math.isfinite(float(norm)) or self._may_skip()
        stop, broken = self.processes.any_rank(stopping.asked is not None, not finite)
        if broken:
            raise OptionError(
                f"training step {self.step}",
                reason="the loss or its gradient is not a finite number",
                hint=f"Lower learning_rate and start again; {self._hint()}",
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
        config, here = self.config, self.processes
        together = config.batch * here.count
        number, mine = self.position // together, here.rank * config.batch
        indices = self.samples.indices(number, together, config.seed)[mine : mine + config.batch]
        chance = RandomStreams.at(config.seed, self.position + mine, config.batch, self.step)
        torch.manual_seed(mix_seeds(config.seed, 3, number, here.rank))
        batch = self.samples.batch(indices, chance)
        with ExitStack() as until, here.sync_gradients(self.model, last):
            losses, times = self.model(batch, chance, until)
            self.scaler.scale(losses.mean() / config.accumulate).backward()
        self.window.add(losses, times)
        self.position += together

    def _settle(self) -> None:
        """A first pass that is thrown away.

        After it DDP lays its buckets out anew, and in other buckets the gradients of three or more
        processes are added in another order: that must not come between a run and its resumption.
        """
        position, sums = self.position, self.window.sums.clone()
        self._accumulate(last=True)
        self.optimiser.zero_grad(set_to_none=True)
        self.position, self.window.sums = position, sums

    def _may_skip(self) -> bool:
        """A loss scale that was too high is halved, and the step left out."""
        return self.config.loss_scaling and self.scaler.get_scale() > SMALLEST_LOSS_SCALE

    def _after_step(self, pace: Pace) -> None:
        config = self.config
        if self.step % config.log_every == 0:
            self._log(pace)
        if config.validate_every and self.step % config.validate_every == 0:
            self._validate()
        if config.save_every and self.step % config.save_every == 0:
            self.save()

    def _log(self, pace: Pace) -> None:
        figures = self.window.figures(self.processes.all_reduce_sum(self.window.sums))
        self.window.sums.zero_()
        figures |= {"rate": self.config.rate_at(self.step - 1), "grad_norm": self.grad_norm}
        speed = pace.figures(self.step, self.config.steps)
        speed["pictures_per_second"] *= self.processes.count
        if self.processes.main:
            epoch = {"epoch": self.position / len(self.samples)}
            self.metrics.write(self.step, figures | epoch | speed)
            if self.progress:
                log(line_of(self.step, self.config.steps, figures | speed))

    def _validate(self) -> None:
        """Figures of the running average, by the first process; the best one is kept as a file."""
        if self.validate is not None and self.processes.main:
            with self.averaged():
                figures = dict(self.validate(self))
                if figures.get("score", -math.inf) > self.best:
                    self.best = figures["score"]
                    self.adapter.save(self.folder / BEST)
            self.metrics.write(self.step, figures)
        self.processes.accelerator.wait_for_everyone()

    # ── state ───────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Checkpoint now, unless this very step is saved already. Raises OptionError."""
        if self._saved == self.step:
            return
        sums = self.processes.all_reduce_sum(self.window.sums)
        writers = checkpoint_state.writers(self.adapter, self.named, self.optimiser, self.ema)
        facts = self.identity.facts(self.processes.count) | {
            "position": self.position,
            "ema_updates": self.ema.updates if self.ema else 0,
            "window": sums.tolist(),
            "best": self.best if math.isfinite(self.best) else None,
            "loss_scale": self.scaler.state_dict(),
        }

        def write() -> None:
            checkpoints.write(self.root, self.step, writers, facts, self.config.keep)

        self.processes.on_main(write)
        self._saved = self.step

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint; all processes from the same one."""
        found, damaged = self.processes.on_main(lambda: checkpoints.newest(self.root))
        if self.processes.main:
            for line in damaged:
                log(line)
        if found is None:
            return
        self.identity.check(found, self.processes.count, self.folder)
        facts = found.facts
        checkpoint_state.restore(
            found.folder, self.named, self.optimiser, self.ema, facts["ema_updates"]
        )
        self.step, self.position, self._saved = found.step, facts["position"], found.step
        self.best = -math.inf if facts["best"] is None else facts["best"]
        if self.config.loss_scaling and facts["loss_scale"]:
            self.scaler.load_state_dict(facts["loss_scale"])
        if self.processes.main:
            self.window.sums.copy_(torch.tensor(facts["window"], dtype=torch.float64))

    def _loss(self) -> AdapterLoss:
        frozen = (self.adapter, self.denoiser, self.scheduler)
        return AdapterLoss(self.objective, frozen, NullConditions.of(self.samples))

    def _hint(self) -> str:
        if self._saved is None:
            return "there is no checkpoint yet."
        return f"--resume goes on from the checkpoint of step {self._saved}."

    # ── averages ────────────────────────────────────────────────────────────────────────────────

    def averaged(self) -> AbstractContextManager[None]:
        """While the block runs, the adapter's weights are their running averages."""
        return averaged(self.named, self.ema)

    def use_average(self) -> None:
        """Put the running averages into the adapter, to save or sample; training is over then."""
        if self.ema:
            put(self.ema.average, self.named)
