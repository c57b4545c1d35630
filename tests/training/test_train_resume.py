"""Resuming: the result is equal to the bit, or the run is refused with a message that says why."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.loop import checkpoints
from imageprompt.training.loop.checkpoints import RunIdentity
from imageprompt.training.loop.distributed import Processes, run_lock
from imageprompt.training.loop.trainer import Trainer
from toy_training import Toy, metrics, same, trainer, weights

EVERY_TWO = {"checkpoint_every": 2, "log_every": 3}


class Eventful(Toy):
    """Calls `event` when the batch with this number is read."""

    def __init__(self, number: int, event: Any) -> None:
        super().__init__()
        self.left, self.event = number, event

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        batch = super().batch(indices, streams)
        self.left -= 1
        if self.left == 0:
            self.event(batch)
        return batch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The run that was never stopped."""
    run = trainer(tmp_path_factory.mktemp("uninterrupted"), **EVERY_TWO)
    run.run()
    return run


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_holds_a_standard_file_and_is_pruned(uninterrupted: Trainer) -> None:
    assert checkpoint_names(uninterrupted.folder) == ["step-6", "step-8"]
    inside = uninterrupted.folder / "checkpoints" / "step-8"
    assert {path.name for path in inside.iterdir()} == {
        *("adapter.safetensors", "state.safetensors", "manifest.json")
    }
    file = load_file(inside / "adapter.safetensors")
    assert all(torch.equal(file[name], value) for name, value in weights(uninterrupted).items())


def test_lines_of_a_resumed_run_are_those_of_one_that_never_stopped(
    uninterrupted: Trainer, tmp_path: Path
) -> None:
    trainer(tmp_path, **EVERY_TWO).run(until=5)
    # lines that a killed process wrote after its last checkpoint, the last one cut off
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "loss": 1}\n{"step": 9, "lo')
    resumed = trainer(tmp_path, **EVERY_TWO)
    assert resumed.step == 5
    resumed.run()
    assert same(resumed, uninterrupted)
    assert metrics(tmp_path) == metrics(uninterrupted.folder)
    assert [line["step"] for line in metrics(tmp_path)] == [3, 6]
    names = metrics(tmp_path)[0].keys()
    assert {"loss", "rate", "grad_norm", "epoch"} < names
    assert any(name.startswith("loss_t") for name in names)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "adapter.safetensors"),
        lambda folder: flip(folder / "state.safetensors"),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
    ids=["weights", "state", "empty", "no state", "no manifest", "truncated manifest", "list"],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    damage: Any, uninterrupted: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, **EVERY_TWO).run(until=6)
    damage(tmp_path / "checkpoints" / "step-6")
    resumed = trainer(tmp_path, **EVERY_TWO, keep=1)
    assert resumed.step == 4
    assert "step-6" in capsys.readouterr().err
    resumed.run()
    assert same(resumed, uninterrupted)
    assert checkpoint_names(tmp_path) == ["step-8"]


def test_leftovers_of_a_killed_save_are_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".step-7.0a1b2c3d.tmp", ".step-1.ffffffff.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "adapter.safetensors").write_text("half")
    run = trainer(tmp_path)
    assert run.step == 0
    run.run(until=1)
    assert checkpoint_names(tmp_path) == ["step-1"]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def of(data: str, allow: bool = False, **config: Any) -> dict[str, Any]:
    return {"identity": RunIdentity(config, data, allow)}


def test_other_data_or_settings_are_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trainer(tmp_path, more=of("abc", rate=1, drops=(1, 2)))
    first.run(until=2)
    assert trainer(tmp_path, more=of("abc", rate=1, drops=(1, 2))).step == 2
    with pytest.raises(OptionError, match=r"\(the data\).*--allow-changes"):
        trainer(tmp_path, more=of("xyz", rate=1, drops=(1, 2)))
    with pytest.raises(OptionError, match=r"\(drops: \[1, 2\] became \[1, 3\], rate: 1 became 2\)"):
        trainer(tmp_path, more=of("abc", rate=2, drops=(1, 3)))
    resumed = trainer(tmp_path, more=of("xyz", True, rate=2, drops=(1, 2)))
    assert resumed.step == 2
    assert "with changes: rate: 1 became 2, the data" in capsys.readouterr().err


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=2)
    found, _ = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    identity = RunIdentity(found.metadata["config"])
    identity.check(found, 1, tmp_path)
    with pytest.raises(OptionError, match="1 processes became 2"):
        identity.check(found, 2, tmp_path)


def test_an_adapter_of_other_shapes_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(until=1)
    run.named.popitem()
    with pytest.raises(OptionError, match="its tensors are not those of the adapter"):
        run._resume()


def test_resuming_with_an_ema_needs_one_in_the_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, ema=0.0, more=of("")).run(until=1)
    assert trainer(tmp_path, ema=0.0, more=of("")).step == 1
    with pytest.raises(OptionError, match="no running average"):
        trainer(tmp_path, ema=0.9, more=of(""))


def test_one_run_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(OptionError, match="another run is training there")
    with run_lock(tmp_path), refused, run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_a_longer_run_with_a_constant_rate_resumes_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --allow-changes: no step depends on how many follow."""
    constant = EVERY_TWO | {"schedule": "constant"}
    trainer(tmp_path / "extended", steps=5, **constant).run()
    extended = trainer(tmp_path / "extended", steps=8, **constant)
    assert extended.step == 5
    assert extended.run().finished
    whole = trainer(tmp_path / "whole", steps=8, **constant)
    whole.run()
    assert same(extended, whole)
    assert metrics(extended.folder) == metrics(whole.folder)
    with pytest.raises(OptionError, match=r"steps: 8 became 7, but 8 are done\).*--allow-changes"):
        trainer(tmp_path / "extended", steps=7, **constant)
    assert "with changes" not in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_longer_run_with_a_falling_rate_needs_allow_changes(
    schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, steps=5, schedule=schedule).run()
    words = rf"steps: 5 became 8, which the {schedule} learning rate depends on\).*--allow-changes"
    with pytest.raises(OptionError, match=words):
        trainer(tmp_path, steps=8, schedule=schedule)
    config = TrainingConfig(
        data="toy", output=str(tmp_path), steps=8, schedule=schedule, batch_size=5
    )
    identity = RunIdentity(config.identity(), allow_changes=True)
    resumed = trainer(tmp_path, steps=8, schedule=schedule, more={"identity": identity})
    assert resumed.run().step == 8
    assert "steps: 5 became 8" in capsys.readouterr().err


# ── faults ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    number: signal.Signals, uninterrupted: Trainer, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    samples = Eventful(3, lambda batch: os.kill(os.getpid(), number))
    ending = trainer(tmp_path, samples=samples, **EVERY_TWO).run()
    assert (ending.step, ending.finished, ending.signal) == (3, False, number)
    assert checkpoint_names(tmp_path) == ["step-2", "step-3"]
    assert signal.getsignal(number) == before
    resumed = trainer(tmp_path, **EVERY_TWO)
    ending = resumed.run()
    assert (ending.step, ending.finished, ending.signal) == (8, True, None)
    assert same(resumed, uninterrupted)


def test_a_second_control_c_ends_it_at_once(tmp_path: Path) -> None:
    def twice(batch: Batch) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, samples=Eventful(3, twice), **EVERY_TWO).run()
    assert checkpoint_names(tmp_path) == ["step-2"]


def test_a_loss_that_is_not_finite_ends_the_run_and_damages_nothing(
    uninterrupted: Trainer, tmp_path: Path
) -> None:
    samples = Eventful(4, lambda batch: batch.latents.fill_(float("nan")))
    with pytest.raises(OptionError, match=r"step 3: .* not a finite .* checkpoint of step 2"):
        trainer(tmp_path, samples=samples, **EVERY_TWO).run()
    assert checkpoint_names(tmp_path) == ["step-2"]
    resumed = trainer(tmp_path, **EVERY_TWO)
    resumed.run()
    assert same(resumed, uninterrupted)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Writing more than `size` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_is_a_one_line_error_and_nothing_is_lost(
    size: int, uninterrupted: Trainer, tmp_path: Path
) -> None:
    run = trainer(tmp_path, **EVERY_TWO)
    run.run(until=2)
    run.step = 3  # a step without a checkpoint
    with files_at_most(size), pytest.raises(OptionError) as refused:
        run.save()
    message = str(refused.value)
    assert "step 3" in message
    assert "the newest is step 2" in message
    assert "Free some space" in message
    assert os.strerror(errno.EFBIG) in message
    assert checkpoint_names(tmp_path) == ["step-2"]
    resumed = trainer(tmp_path, **EVERY_TWO)
    resumed.run()
    assert same(resumed, uninterrupted)


# ── ways to compute ─────────────────────────────────────────────────────────────────────────────


def test_two_accumulated_batches_equal_one_of_twice_the_size(tmp_path: Path) -> None:
    once = trainer(tmp_path / "once", batch_size=4)
    twice = trainer(tmp_path / "twice", batch_size=2, accumulate=2)
    for run in (once, twice):
        run.run(until=3)
    for name, value in weights(once).items():
        torch.testing.assert_close(twice.named[name], value, rtol=1e-4, atol=1e-6)
    resumed = trainer(tmp_path / "twice", batch_size=2, accumulate=2)
    assert resumed.position == 12
    resumed.run(until=5)
    twice.run(until=5)
    assert same(twice, resumed)


def test_loss_scaling_resumes_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mixed_precision": "fp16", "checkpoint_every": 3}
    uninterrupted = trainer(tmp_path / "uninterrupted", **options)
    uninterrupted.run()
    trainer(tmp_path / "halves", **options).run(until=3)
    resumed = trainer(tmp_path / "halves", **options)
    assert resumed.scaler.state_dict()["_growth_tracker"] == 3
    resumed.run()
    assert same(uninterrupted, resumed)


def test_with_loss_scaling_a_step_without_a_finite_gradient_is_skipped(tmp_path: Path) -> None:
    def make_nan(batch: Batch) -> None:
        batch.latents.fill_(float("nan"))

    run = trainer(tmp_path, mixed_precision="fp16", samples=Eventful(1, make_nan))
    before, scale = weights(run), run.scaler.get_scale()
    run.run(until=1)
    assert run.scaler.get_scale() == scale / 2
    assert all(torch.equal(run.named[name], value) for name, value in before.items())
    run.run(until=2)
    assert not all(torch.equal(run.named[name], value) for name, value in before.items())
    run.samples = Eventful(1, make_nan)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 1.0})
    with pytest.raises(OptionError, match="not a finite number"):
        run.run(until=3)


def test_the_best_adapter_has_the_ema_weights_of_the_highest_score(tmp_path: Path) -> None:
    scores = iter((0.1, 0.3, 0.2, 0.25))
    seen: list[dict[str, Tensor]] = []

    def validate(run: Trainer) -> dict[str, float]:
        seen.append(weights(run))
        return {"score": next(scores)}

    options: dict[str, Any] = {
        "validate_every": 2,
        "checkpoint_every": 4,
        "more": {"validate": validate},
    }
    run = trainer(tmp_path, **options)
    run.run(until=4)
    run = trainer(tmp_path, **options)
    assert run.best == 0.3
    run.run()
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in seen[1].items())
    assert any(not torch.equal(best[name], value) for name, value in seen[2].items())
    lines = [line for line in metrics(tmp_path) if "score" in line]
    assert [(line["step"], line["score"]) for line in lines] == [
        *((2, 0.1), (4, 0.3), (6, 0.2), (8, 0.25))
    ]


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    more = {"trackers": ("tensorboard",), "processes": Processes("cpu")}
    trainer(tmp_path, log_every=2, more=more).run()
    events = (tmp_path / "tensorboard").rglob("events.out.tfevents.*")
    assert any(b"pictures_per_second" in file.read_bytes() for file in events)
