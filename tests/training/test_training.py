"""The trainer: exact resume, nothing but the adapter learns, what is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bundled_stack.saving import load_state, save_atomic
from imageprompt.core.errors import OptionError
from imageprompt.training.loop.ema import Ema, decay_groups
from imageprompt.training.loop.logging import Window, in_words, line_of, usable_trackers
from toy_training import denoiser, same, trainer, weights


def test_resume_is_exact_to_the_bit(tmp_path: Path) -> None:
    through = trainer(tmp_path / "through")
    through.run()

    first = trainer(tmp_path / "halves")
    first.run(until=3)
    second = trainer(tmp_path / "halves")
    assert second.step == 3
    second.run()

    assert same(through, second)


def test_only_the_adapter_learns_and_the_loss_falls(tmp_path: Path) -> None:
    before = denoiser().state_dict()
    run = trainer(tmp_path, steps=60, batch=12, rate=5e-3, log_every=10)
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
        trainer(tmp_path, rate=2e-3)


def test_decay_spares_norms_biases_and_latents() -> None:
    module = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 3), "norm": torch.nn.LayerNorm(3)})
    module.register_parameter("latents", torch.nn.Parameter(torch.zeros(1, 4, 3)))
    decayed, plain = decay_groups(module.named_parameters(), 0.1)
    assert [tuple(value.shape) for value in decayed["params"]] == [(3, 2)]
    assert len(plain["params"]) == 4
    assert plain["weight_decay"] == 0


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


def test_a_line_tells_where_the_run_is() -> None:
    figures = {"loss": 0.25, "loss_t0-250": 0.5, "pictures_per_second": 41.23, "eta_seconds": 130.4}
    line = "step 300/3000  loss 0.2500  t0-250 0.5000  41.2 pictures/s  2 min 10 s left"
    assert line_of(300, 3000, figures) == line
    assert [in_words(seconds) for seconds in (0.4, 59.4, 60, 3725)] == [
        *("0 s", "59 s", "1 min 0 s", "1 h 2 min")
    ]


def test_losses_are_told_by_part_of_the_timesteps() -> None:
    window = Window(1000)
    window.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 249]))
    window.add(torch.tensor([6.0]), torch.tensor([999]))
    assert window.figures(window.sums) == {"loss": 3.0, "loss_t0-250": 1.5, "loss_t750-1000": 6.0}


def test_a_tracker_that_is_not_installed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_trackers(("tensorboard", "comet_ml")) == ["tensorboard"]
    assert "comet_ml not installed" in capsys.readouterr().err
