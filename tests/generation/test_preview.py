"""Previews: a linear map from latents to RGB, of what a step predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from conftest import ROOT
from imageprompt.core import errors
from imageprompt.generation.preview import LatentPreview, Observer


def likeness(small: Image.Image, picture: Image.Image) -> float:
    """The share of the picture's variance that the preview explains (R2)."""
    target = np.asarray(picture.resize(small.size, Image.Resampling.BOX), float)
    return float(1 - ((np.asarray(small, float) - target) ** 2).mean() / target.var())


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
        Observer(pipe).predicted(range(1))
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
