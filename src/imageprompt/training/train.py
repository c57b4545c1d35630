"""From a config to a standard adapter file: `train` opens everything, runs the loop, checks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.console import Bars
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.init.init_adapter import caption_warm_start, init_adapter
from imageprompt.training.loop import checkpoints
from imageprompt.training.loop.distributed import Processes
from imageprompt.training.loop.logging import in_words, log
from imageprompt.training.loop.objective import Objective
from imageprompt.training.loop.run_control import locked
from imageprompt.training.loop.run_identity import Identity
from imageprompt.training.loop.trainer import BEST, RunResult, Trainer
from imageprompt.training.loop.validation import Validation, check_references
from imageprompt.training.open_dataset import open_dataset
from imageprompt.variants import VARIANTS

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run has made. `adapter` is None for a run that was interrupted: it can be resumed."""

    adapter: Path | None
    best: Path | None
    """The adapter of the highest validation score, where there was validation."""
    metrics: Path
    sheets: tuple[Path, ...]
    step: int
    signal: int | None
    """The signal that ended it early."""
    seconds: float
    quarantined: tuple[str, ...]
    """Samples that could not be read, and why."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: str(value) for name, value in vars(self).items() if isinstance(value, Path)}
        return vars(self) | plain | {"sheets": [str(sheet) for sheet in self.sheets]}


def train(
    config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    allow_changes: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train an adapter as `config` says, and write `OUTPUT/adapter.safetensors`.

    `resume` goes on from the newest whole checkpoint, or begins where there is none;
    `allow_changes` does so with another config, other data or another number of processes. Raises
    typed errors of one line; then nothing is lost but the steps since the last checkpoint.
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig.load(config, overrides)
    elif overrides:
        raise OptionError(
            "overrides", reason="they are for files and mappings", hint="Use dataclasses.replace."
        )
    started = time.monotonic()
    processes = Processes(config.device)
    processes.assert_same("the config", config.identity())
    with _alone(config, processes, resume):
        trainer, validation = _prepared(config, processes, allow_changes, progress)
        ending = trainer.run()
        adapter = _finished(config, trainer, processes) if ending.finished else None
        trainer.adapter.detach()
    result = _result(config, trainer, ending, adapter, validation, time.monotonic() - started)
    if progress and processes.main:
        _tell(result, config)
    return result


@contextmanager
def _alone(config: TrainingConfig, processes: Processes, resume: bool) -> Iterator[None]:
    """Hold the output folder, which is empty or to be gone on with. Raises OptionError."""
    folder = config.folder

    def open_folder() -> None:
        check_folder(folder).mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
        checkpoints.sweep(folder)
        steps = checkpoints.steps_in(folder / "checkpoints")
        if steps and not resume:
            raise OptionError(
                f"output folder {str(folder)!r}",
                reason=f"a run is there already, at step {steps[0]}",
                hint="Go on with it by --resume (resume=True), or choose another output.",
            )

    with ExitStack() as held:
        processes.on_main(open_folder)
        yield


def _prepared(
    config: TrainingConfig, processes: Processes, allow_changes: bool, progress: bool
) -> tuple[Trainer, Validation | None]:
    """Everything opened, and the adapter attached."""
    check_validation(config)
    variant, watched = VARIANTS[config.variant], progress and processes.main
    device = None if processes.count == 1 else str(processes.device)
    base = FrozenPipeline.load(
        config.base,
        config.encoder,
        precision=config.mixed_precision,
        device=config.device or device,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    encoders = FeatureExtractors(base, variant)
    with Bars(watched and sys.stderr.isatty()) as bars:
        samples = open_dataset(
            config.data,
            config.cache,
            encoders,
            pictures_of(config),
            online=config.online,
            log=log if watched else lambda line: None,
            on_progress=bars.update,
        )
    torch.manual_seed(config.seed)
    adapter = init_adapter(config, base)
    adapter.attach(base.pipe, encoder=base.encoder if encoders.reads_pictures else None)
    fresh = not checkpoints.steps_in(config.folder / "checkpoints")
    if fresh and config.warm_start == "captions":
        caption_warm_start(config, adapter, samples, on_progress=watched)
    validation = None
    if config.validate_every and processes.main:
        sheets = config.folder / "validation"
        wishes = config.validation
        validation = Validation(base, encoders, wishes, config.resolution, sheets)
    trainer = Trainer(
        adapter,
        base.denoiser,
        base.scheduler,
        samples,
        config.loop(),
        config.folder,
        objective=objective_of(config),
        identity=Identity(config.identity(), samples.fingerprint(), allow_changes),
        processes=processes,
        trackers=config.trackers,
        validate=validation,
        progress=progress,
    )
    if fresh and config.warm_start == "captions":
        trainer.save()  # what it took minutes to learn
    return trainer, validation


def pictures_of(config: TrainingConfig) -> PictureOptions:
    """How pictures are framed."""
    return PictureOptions(
        resolution=config.resolution,
        crop=config.crop,
        flip=config.flip,
        buckets=config.buckets,
        views=config.views,
    )


def objective_of(config: TrainingConfig) -> Objective:
    """What the adapter is trained on."""
    return Objective(
        drops=config.drop,
        timesteps=config.timesteps,
        scales=config.scales,
        min_snr=config.min_snr or None,
        noise_offset=config.noise_offset,
        identity_only_prob=config.identity_only_prob,
    )


def check_validation(config: TrainingConfig) -> None:
    """Before anything is loaded: can the pictures be made at all? Raises OptionError."""
    if not config.validate_every:
        return
    check_references(config.validation, VARIANTS[config.variant].feature.reads_faces)


def _finished(config: TrainingConfig, trainer: Trainer, processes: Processes) -> Path:
    """Write the final file and check it as anyone would. Raises AdapterFileError."""
    path = config.folder / ADAPTER

    def write() -> None:
        with trainer.averaged():
            trainer.adapter.save(path)
        for one in (path, config.folder / BEST):
            if one.exists():
                _check(one)

    processes.on_main(write)
    return path


def _check(path: Path) -> None:
    from imageprompt.checkpoint.validate import validate

    found = validate(path)
    if not found.ok:
        raise AdapterFileError(
            str(path),
            reason="; ".join(finding.message for finding in found.findings),
            hint="The checkpoints are kept; `imageprompt validate` says more.",
        )


def _result(
    config: TrainingConfig,
    trainer: Trainer,
    ending: RunResult,
    adapter: Path | None,
    validation: Validation | None,
    seconds: float,
) -> TrainResult:
    best = config.folder / BEST
    return TrainResult(
        adapter=adapter,
        best=best if best.exists() else None,
        metrics=trainer.metrics.path,
        sheets=tuple(validation.sheets) if validation else (),
        step=ending.step,
        signal=ending.signal,
        seconds=seconds,
        quarantined=tuple(getattr(trainer.samples, "quarantined", list)()),
    )


def _tell(result: TrainResult, config: TrainingConfig) -> None:
    if result.quarantined:
        log(f"{len(result.quarantined)} samples could not be read and were left out:")
        for line in result.quarantined:
            log(f"  {line}")
    if result.adapter is None:
        log(f"stopped at step {result.step} of {config.steps}; go on with --resume")
    else:
        log(f"{result.step} steps in {in_words(result.seconds)}")
