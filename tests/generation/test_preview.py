"""Previews: a linear map from latents to RGB, of what a step predicts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from conftest import ROOT
from imageprompt.core import errors
from imageprompt.generation.preview import LatentPreview, Observer, _at, _normalised


def likeness(small: Image.Image, picture: Image.Image) -> float:
    """The share of the picture's variance that the preview explains (R2), a value per latent."""
    cells = (picture.width // 8, picture.height // 8)
    assert small.size == picture.size  # 8 x 8 latents, enlarged 8 times
    found, target = (
        np.asarray(one.resize(cells, Image.Resampling.BOX), float) for one in (small, picture)
    )
    return float(1 - ((found - target) ** 2).mean() / target.var())


@pytest.mark.sample(2)
@pytest.mark.parametrize("number", [1, 2])
def test_previews_come_near_the_picture_and_change_nothing(number: int) -> None:
    engine, shots = ip.Engine(), list[list[Image.Image]]()
    asked: dict[str, Any] = {"steps": 8, "num_images": number, "seed": 3, "progress": False}
    made = engine.generate(
        "a star", ROOT / "docs/reference.png", on_step=lambda p: shots.append(p.preview()), **asked
    )
    plain = engine.generate("a star", ROOT / "docs/reference.png", **asked)
    assert [one.tobytes() for one in made] == [one.tobytes() for one in plain]
    assert [len(one) for one in shots] == [number] * 8
    for row, picture in enumerate(made):
        found = [likeness(one[row], picture) for one in shots]
        assert found[-1] > 0.8
        assert found[4] > 0.6
        assert found[0] < found[-1]


def test_a_preview_in_a_batch_of_requests_is_of_its_own_request() -> None:
    engine, last = ip.Engine(), dict[int, Image.Image]()

    def note(progress: ip.Progress) -> None:
        if progress.step == progress.total:
            (last[progress.index],) = progress.preview()

    requests = [
        {"prompt": f"a {word}", "seed": seed, "scale": 0, "steps": 8}
        for seed, word in enumerate(("red star", "blue circle", "green heart"))
    ]
    made = engine.generate_many(requests, on_step=note, progress=False)
    for index in range(3):
        own = likeness(last[index], made[index][0])
        assert own > 0.5
        assert all(own > likeness(last[index], made[i][0]) for i in range(3) if i != index)


def test_a_map_is_fitted_without_touching_the_global_generator() -> None:
    from imageprompt import loading

    folder = loading.base_folder(None)
    pipe = loading.load_base(None, folder, dtype=None, device="cpu", bars=False).pipe
    before = torch.get_rng_state()
    assert LatentPreview.fit(pipe).r2 > 0.9
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(errors.OptionError, match="a preview"):
        Observer(pipe).predicted(range(1), 1)
    pipe.vae = None
    with pytest.raises(errors.OptionError, match="no VAE"):
        LatentPreview.fit(pipe)


def test_flow_is_known_by_its_prediction_type_too() -> None:
    """Of a scheduler that has DDPM's table beside it."""
    from types import SimpleNamespace

    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    observer = Observer(SimpleNamespace(scheduler=scheduler, unet=None, transformer=None))
    picture, noise = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0)
    found = observer._x0((picture + noise) / 2, noise - picture, 500.0)
    assert torch.allclose(found, picture)


def test_a_call_with_three_branches_has_no_preview() -> None:
    """Perturbed attention with guidance: the first rows would be the negative side."""
    pipe = SimpleNamespace(
        unet=None,
        transformer=None,
        vae=SimpleNamespace(config=SimpleNamespace(latent_channels=4)),
        do_classifier_free_guidance=True,
    )
    observer = Observer(pipe)
    rows = torch.zeros(6, 4, 8, 8)
    observer._call = rows, torch.tensor(5), rows
    with pytest.raises(errors.OptionError, match="6 rows into 2 picture"):
        observer.predicted(range(2), 2)


def test_timesteps_between_two_are_interpolated() -> None:
    values = torch.tensor([1.0, 0.5, 0.25])
    assert [_at(values, place) for place in (-1, 0, 0.5, 1, 1.5, 2, 7)] == [
        *(1.0, 1.0, 0.75, 0.5, 0.375, 0.25, 0.25)
    ]


def test_normalised_latents_decode_as_the_pipelines_do() -> None:
    latents = torch.randn(2, 2, 3, 3)
    stats = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 3.0]}
    config = SimpleNamespace(scaling_factor=0.5, **stats)
    mean, std = (torch.tensor(one).view(1, 2, 1, 1) for one in stats.values())
    decoded = _normalised(latents, config) * std / 0.5 + mean  # diffusers' SDXL
    assert torch.allclose(decoded, latents, atol=1e-6)
    shifted = _normalised(latents, SimpleNamespace(scaling_factor=0.5, shift_factor=0.1))
    assert torch.allclose(shifted / 0.5 + 0.1, latents, atol=1e-6)
