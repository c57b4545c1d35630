"""From a config to a standard adapter file: open everything, run the loop, validate the file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.atomic_files import check_folder, sweep
from imageprompt.core.console import Bars
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.training.cache.open import open_dataset
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.feature_extractors import FeatureExtractors, feature_to_read
from imageprompt.training.data.views import PictureOptions
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.init import caption_warm_start, fit_layers_to_captions, init_trained
from imageprompt.training.loop import checkpoints
from imageprompt.training.loop.checkpoints import RunIdentity
from imageprompt.training.loop.distributed import Processes, run_lock
from imageprompt.training.loop.logging import format_duration, log
from imageprompt.training.loop.objective import objective_of
from imageprompt.training.loop.trainer import BEST, RunResult, Trainer
from imageprompt.variants import VARIANTS

if TYPE_CHECKING:
    from imageprompt.training.loop.validation import Validation

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run has produced. `adapter` is None if it was interrupted; it can be resumed."""

    adapter: Path | None
    best: Path | None
    """The adapter with the highest validation score; None without validation."""
    metrics: Path
    sheets: tuple[Path, ...]
    step: int
    signal: int | None
    """The signal that ended the run early."""
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

    `resume` continues from the newest intact checkpoint, or starts if there is none. A longer run
    (more `steps`) with a constant learning rate may be resumed as it is; `allow_changes` is needed
    for any other config, other data or another number of processes. `overrides` are "key=value"
    strings for a config given as a file or a mapping.

    Raises OptionError, NotFoundError, WrongBaseError, EncoderError, PictureError, AdapterFileError;
    only the steps since the last checkpoint are lost then.
    """
    if not isinstance(config, TrainingConfig):
        config = TrainingConfig.load(config, overrides)
    elif overrides:
        raise OptionError(
            "overrides",
            reason="only apply to a config given as a file or a mapping",
            hint="Use dataclasses.replace.",
        )
    started = time.monotonic()
    processes = Processes(config.device)
    processes.assert_same("the config", config.identity())
    hint = "Start it again; --resume continues from the newest checkpoint."
    with (
        processes.distributed_errors(lambda: hint),
        _locked_output(config, processes, resume),
    ):
        trainer, validation = _open_run(config, processes, allow_changes, progress)
        ending = trainer.run()
        adapter = _write_adapter(config, trainer, processes) if ending.finished else None
        trainer.adapter.detach()
    result = _result(config, trainer, ending, adapter, validation, time.monotonic() - started)
    if progress and processes.main:
        _log_summary(result, config)
    return result


@contextmanager
def _locked_output(config: TrainingConfig, processes: Processes, resume: bool) -> Iterator[None]:
    """Hold the output folder. Raises OptionError if it has a run that is not to be resumed."""
    folder = config.folder

    def open_folder() -> None:
        check_folder(folder).mkdir(parents=True, exist_ok=True)
        locks.enter_context(run_lock(folder))
        for place in (folder, folder / "validation"):
            if place == folder or not place.is_symlink():
                sweep(place)
        steps = checkpoints.steps_in(folder / "checkpoints")
        if steps and not resume:
            raise OptionError(
                f"output folder {str(folder)!r}",
                reason=f"already contains a run (step {steps[0]})",
                hint="Continue with --resume (resume=True), or choose another output.",
            )

    with ExitStack() as locks:
        processes.on_main(open_folder)
        yield


def _open_run(
    config: TrainingConfig, processes: Processes, allow_changes: bool, progress: bool
) -> tuple[Trainer, Validation | None]:
    """Load everything, attach the adapter, and restore a checkpoint if there is one."""
    check_validation(config)
    variant, visible = VARIANTS[config.variant], progress and processes.main
    log_line: Callable[[str], None] = log if visible else lambda line: None
    device = None if processes.count == 1 else str(processes.device)
    base = FrozenPipeline.load(
        config.base,
        config.encoder,
        precision=config.mixed_precision,
        device=config.device or device,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=config.max_sequence_length,
        int8=config.quantize == "int8",
    )
    base.check_guidance_scale(config.guidance_scale)
    encoders = FeatureExtractors(base, variant, feature_to_read(config), latents=config.latents)
    with Bars(visible and sys.stderr.isatty()) as bars:
        samples = open_dataset(
            config.data,
            config.cache,
            encoders,
            PictureOptions.of(config),
            online=config.online,
            pairs=config.pairs,
            log=log_line,
            on_progress=bars.update,
        )
    torch.manual_seed(config.seed)
    adapter, objective = init_trained(config, base), objective_of(config)
    adapter.attach(base.pipe, encoder=base.encoder if encoders.reads_pictures else None)
    fresh = not checkpoints.steps_in(config.folder / "checkpoints")
    warm_start = fresh and config.warm_start == "captions"
    if warm_start:
        with Bars(visible and sys.stderr.isatty()) as bars:
            parts: list[tuple[Adapter, int | None]]
            if isinstance(adapter, Adapter):
                parts = [(adapter, None)]
            else:
                parts = [(adapter.content, 0), (adapter.style, 1)]
            differ = [
                caption_warm_start(
                    config,
                    one,
                    samples,
                    base.as_tokens,
                    part=part,
                    log=log_line,
                    on_progress=bars.update,
                )
                for one, part in parts
            ]
            new = config.adapter is None and config.init == "copy"
            if isinstance(adapter, Adapter) and new and all(differ):
                fit_layers_to_captions(
                    config, adapter, base, samples, objective, on_progress=bars.update
                )
    if config.cache is not None:  # only validation needs the rest, and moves it there and back
        base.park(encoder=not config.online and config.pairs == "none")
    validations: list[Validation] = []

    def open_validation() -> None:
        if config.validate_every:
            from imageprompt.training.loop.validation import Validation

            sheets = config.folder / "validation"
            options = (config.validation, config.resolution, sheets)
            validations.append(Validation(base, encoders, *options, log=log_line))

    processes.on_main(open_validation)
    validation = validations[0] if validations else None
    trainer = Trainer(
        adapter,
        base.denoiser,
        base.scheduler,
        samples,
        config,
        config.folder,
        objective=objective,
        identity=RunIdentity(config.identity(), samples.fingerprint(), allow_changes),
        processes=processes,
        trackers=config.trackers,
        validate=validation,
        progress=progress,
    )
    if warm_start:
        trainer.save()  # the warm start took minutes
    return trainer, validation


def check_validation(config: TrainingConfig) -> None:
    """Raises OptionError if validation has no references; runs before anything is loaded."""
    if config.validate_every:
        from imageprompt.training.loop.validation import check_references

        check_references(config.validation, VARIANTS[config.variant].feature.reads_faces)


def _write_adapter(config: TrainingConfig, trainer: Trainer, processes: Processes) -> Path:
    """Write the final file, then validate it like any other. Raises AdapterFileError."""
    path = config.folder / ADAPTER

    def write() -> None:
        from imageprompt.checkpoint.validate import validate

        with trainer.ema_weights():
            trainer.adapter.save(path)
        for file in (path, config.folder / BEST):
            if file.exists() and not (report := validate(file)).ok:
                raise AdapterFileError(
                    str(file),
                    reason="; ".join(finding.message for finding in report.findings),
                    hint="The checkpoints are kept; `imageprompt validate` shows the details.",
                )

    processes.on_main(write)
    return path


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


def _log_summary(result: TrainResult, config: TrainingConfig) -> None:
    if result.quarantined:
        log(f"{len(result.quarantined)} samples could not be read and were skipped:")
        for line in result.quarantined:
            log(f"  {line}")
    if result.adapter is None:
        log(f"stopped at step {result.step} of {config.steps}; continue with --resume")
    else:
        log(f"{result.step} steps in {format_duration(result.seconds)}")
