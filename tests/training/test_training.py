"""The trainer: exact resume, only the adapter learns, and what is reported."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from bundled_stack.checkpoints import load_state, save_atomic
from imageprompt.core.errors import OptionError
from imageprompt.training.loop.logging import (
    LossWindow,
    format_duration,
    progress_line,
    usable_trackers,
)
from imageprompt.training.loop.training_state import Ema, decay_groups
from toy_training import denoiser, same, trainer, weights


def test_resume_is_exact_to_the_bit(tmp_path: Path) -> None:
    uninterrupted = trainer(tmp_path / "uninterrupted")
    uninterrupted.run()

    first = trainer(tmp_path / "halves")
    first.run(until=3)
    second = trainer(tmp_path / "halves")
    assert second.step == 3
    second.run()

    assert same(uninterrupted, second)


def test_only_the_adapter_learns_and_the_loss_falls(tmp_path: Path) -> None:
    before = denoiser().state_dict()
    run = trainer(tmp_path, steps=60, batch_size=12, learning_rate=5e-3, log_every=10)
    start = weights(run)
    run.run()
    run.adapter.detach()
    after = run.denoiser.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(not torch.equal(value, start[name]) for name, value in weights(run).items())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(until=1)
    with pytest.raises(OptionError, match="rate"):
        trainer(tmp_path, learning_rate=2e-3)


def test_norms_biases_and_latents_do_not_decay() -> None:
    module = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 3), "norm": torch.nn.LayerNorm(3)})
    module.register_parameter("latents", torch.nn.Parameter(torch.zeros(1, 4, 3)))
    decayed, not_decayed = decay_groups(module.named_parameters(), 0.1)
    assert [tuple(value.shape) for value in decayed["params"]] == [(3, 2)]
    assert len(not_decayed["params"]) == 4
    assert not_decayed["weight_decay"] == 0


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    save_atomic({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"step": lambda: None}, path)
    assert load_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.ckpt"]


def test_the_average_starts_close_and_then_lags() -> None:
    value = {"w": torch.zeros(1)}
    ema = Ema(value, 0.9)
    ema.update({"w": torch.ones(1)})
    assert float(ema.average["w"]) == pytest.approx(1 - 2 / 11)


def test_a_progress_line_has_step_loss_speed_and_time_left() -> None:
    figures = {"loss": 0.25, "loss_t0-250": 0.5, "pictures_per_second": 41.23, "eta_seconds": 130.4}
    line = "step 300/3000  loss 0.2500  t0-250 0.5000  41.2 pictures/s  2 min 10 s left"
    assert progress_line(300, 3000, figures) == line
    assert [format_duration(seconds) for seconds in (0.4, 59.4, 60, 3725)] == [
        *("0 s", "59 s", "1 min 0 s", "1 h 2 min")
    ]


def test_losses_are_reported_by_part_of_the_timesteps() -> None:
    window = LossWindow(1000)
    window.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 249]))
    window.add(torch.tensor([6.0]), torch.tensor([999]))
    assert window.means(window.sums) == {"loss": 3.0, "loss_t0-250": 1.5, "loss_t750-1000": 6.0}


class Terminal(io.StringIO):
    """A stderr that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_below_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path).run(until=3)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    trainer(tmp_path, log_every=4, more={"progress": True}).run()
    shown = terminal.getvalue()
    assert "step 3 of 8 |" in shown
    assert "step 8 of 8 |" in shown
    lines = [line.split("\r")[-1] for line in shown.split("\n")]
    assert sum(line.startswith(("step 4/8  loss ", "step 8/8  loss ")) for line in lines) == 2


def test_without_a_terminal_there_are_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, log_every=4, more={"progress": True}).run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 4/8", "step 8/8"]


def test_a_tracker_that_is_not_installed_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_trackers(("tensorboard", "comet_ml")) == ["tensorboard"]
    assert "comet_ml not installed" in capsys.readouterr().err
