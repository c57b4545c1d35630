"""The trainer: drops, targets, exact resume, nothing but the adapter learns."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

import imageprompt as ip
from imageprompt.errors import OptionError
from imageprompt.training.data import Batch, indices_at
from imageprompt.training.loop import TrainConfig, Trainer
from imageprompt.training.objective import Drops, Timesteps, target_of
from imageprompt.training.state import Ema, decay_groups, load_state, save_atomic

TEXT, WIDTH = 16, 24


class Toy:
    """Random latents, texts and features; a feature tells the mean of its latent."""

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        level = indices.float() / 6 - 1
        jitter = torch.randn(len(indices), 4, 8, 8, generator=generator)
        features = torch.zeros(len(indices), WIDTH)
        features[:, 0] = level
        return Batch(
            level.reshape(-1, 1, 1, 1) + 0.1 * jitter, torch.zeros(len(indices), 3, TEXT), features
        )

    def null_text(self) -> Tensor:
        return torch.zeros(1, 3, TEXT)

    def null_features(self) -> Tensor:
        return torch.zeros(1, WIDTH)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT,
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def vision() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=WIDTH,
        )
    )


def trainer(unet: Any, vision: Any, folder: Path, **settings: Any) -> Trainer:
    torch.manual_seed(2)
    unet = copy.deepcopy(unet)
    adapter = ip.Adapter.create("base", denoiser=unet, encoder=vision, num_tokens=2)
    adapter.attach(unet)
    config = TrainConfig(**{"steps": 8, "batch": 5, "rate": 1e-3, "warmup": 2} | settings)
    return Trainer(adapter, unet, DDIMScheduler(), Toy(), config, folder)


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.named.items()}


def test_resume_is_exact_to_the_bit(unet: Any, vision: Any, tmp_path: Path) -> None:
    through = trainer(unet, vision, tmp_path / "through")
    through.run()

    first = trainer(unet, vision, tmp_path / "halves")
    first.run(until=3)
    second = trainer(unet, vision, tmp_path / "halves")
    assert second.step == 3
    second.run()

    for name, value in weights(through).items():
        assert torch.equal(value, second.named[name]), name
        assert torch.equal(through.ema.average[name], second.ema.average[name]), name


def test_only_the_adapter_learns_and_the_loss_falls(unet: Any, vision: Any, tmp_path: Path) -> None:
    before = unet.state_dict()
    run = trainer(unet, vision, tmp_path, steps=60, batch=12, rate=5e-3, log_every=10)
    start = weights(run)
    run.run()
    run.adapter.detach()
    after = run.denoiser.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(not torch.equal(value, start[name]) for name, value in weights(run).items())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_folder_of_another_run_is_refused(unet: Any, vision: Any, tmp_path: Path) -> None:
    run = trainer(unet, vision, tmp_path)
    run.run(until=1)
    with pytest.raises(OptionError, match="rate"):
        trainer(unet, vision, tmp_path, rate=2e-3)


def test_drop_events_exclude_one_another_and_keep_their_rates() -> None:
    image, text = Drops(0.1, 0.2, 0.3).draw(50_000, torch.Generator().manual_seed(0))
    both = image & text
    assert abs(float(both.float().mean()) - 0.3) < 0.01
    assert abs(float((image & ~both).float().mean()) - 0.1) < 0.01
    assert abs(float((text & ~both).float().mean()) - 0.2) < 0.01


def test_timesteps_stay_in_range_and_mix_two_laws() -> None:
    times = Timesteps(0.3, 3.0, 0.1).draw(20_000, 1000, torch.Generator().manual_seed(0))
    assert int(times.min()) >= 0
    assert int(times.max()) <= 999
    high = float((times > 900).float().mean())
    assert 0.7 < high < 0.76  # .7 of the bell, .1 of the uniform third


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_base_predicts(kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    times = torch.tensor([10, 800])
    noisy = scheduler.add_noise(clean, noise, times)
    guess = target_of(scheduler, clean, noise, times)
    for row in range(2):  # a perfect guess makes the scheduler find the clean latent
        found = scheduler.step(guess[row : row + 1], int(times[row]), noisy[row : row + 1])
        original = found.pred_original_sample
        torch.testing.assert_close(original, clean[row : row + 1], atol=1e-4, rtol=1e-4)


def test_every_epoch_is_its_own_permutation() -> None:
    steps = [indices_at(step, 4, 10, seed=3) for step in range(5)]
    drawn = torch.cat(steps).tolist()
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert drawn[:10] != drawn[10:]


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
