"""Noise that steps add: drawn by the seeds, and by `eta` as the equations say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from test_engine import bits

import imageprompt as ip
from imageprompt.core import errors
from imageprompt.demo import pipeline
from imageprompt.generation.step_noise import eta_options, step_noise

QUICK: dict[str, Any] = {"scale": 0, "steps": 3, "progress": False}


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        ),
    ],
)
def test_noise_that_a_scheduler_adds_is_the_seeds(scheduler: Any) -> None:
    pipe = pipeline.load_pipeline(stack="bundled-sd3")
    pipe.scheduler = scheduler
    engine = ip.Engine(pipe)
    requests = [{"prompt": "a star", "seed": seed, **QUICK} for seed in (4, 5)]
    alone = [engine.generate(**request).images[0] for request in requests]
    torch.manual_seed(8)
    again = engine.generate(**requests[0], num_images=2, batch_size=2).images
    torch.manual_seed(9)
    together = [one.images[0] for one in engine.generate_many(requests, progress=False)]
    for first, second, third in zip(alone, again, together, strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
        assert np.array_equal(np.asarray(first), np.asarray(third))
    assert "step" not in vars(scheduler)


# ── eta ─────────────────────────────────────────────────────────────────────────────────────────


def one_step(eta: float, index: int, output: Any, sample: Any, seed: int = 3) -> tuple[Any, Any]:
    """What a step makes of a sample, and the noise levels before and after it."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(8)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(sample))]
    with step_noise(SimpleNamespace(scheduler=scheduler), generators, eta):
        made = scheduler.step(output, scheduler.timesteps[index], sample, return_dict=False)[0]
    return made, scheduler.sigmas[index : index + 2].double()


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_step_equals_the_equations(eta: float, index: int) -> None:
    """Those of k-diffusion's ancestral sampler, as ComfyUI has them for flow matching."""
    torch.manual_seed(1)
    output, sample = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    made, (now, following) = one_step(eta, index, output, sample)
    rows = [torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(3 + n)) for n in (0, 1)]
    down = following * (1 + (following / now - 1) * eta)
    denoised = sample.double() - now * output.double()
    below = down / now * sample.double() + (1 - down / now) * denoised
    shrunk = (1 - following) / (1 - down)
    renoise = (following**2 - down**2 * shrunk**2) ** 0.5
    assert torch.allclose(made.double(), shrunk * below + renoise * torch.stack(rows), atol=1e-6)


@pytest.mark.parametrize("index", [0, 2, 6])
def test_a_step_keeps_the_noise_level(index: int) -> None:
    """From a known picture and exact predictions: the picture's share and the noise's deviation."""
    torch.manual_seed(2)
    clean, noise = torch.full((1, 1, 400, 400), 1.5), torch.randn(1, 1, 400, 400)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(8)
    now = scheduler.sigmas[index]
    made, (_, following) = one_step(1.0, index, noise - clean, (1 - now) * clean + now * noise)
    assert float(made.mean()) == pytest.approx(float((1 - following) * 1.5), abs=0.01)
    assert float(made.std()) == pytest.approx(float(following), rel=0.01)


def test_the_last_step_and_no_eta_add_nothing() -> None:
    torch.manual_seed(3)
    output, sample = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    for eta, index in ((0.0, 3), (1.0, 7)):
        plain, _ = one_step(0.0, index, output, sample, seed=3)
        made, _ = one_step(eta, index, output, sample, seed=4)
        assert torch.equal(made, plain)


def test_pictures_with_eta(tmp_path: Path) -> None:
    engine = ip.Engine("bundled-sd3")
    request: dict[str, Any] = {"prompt": "a star", "seed": 4, **QUICK}
    plain = engine.generate(**request)
    assert bits(engine.generate(**request, eta=0)) == bits(plain)
    made = engine.generate(**request, eta=0.7, num_images=2, batch_size=2)
    assert bits(made)[0] != bits(plain)[0]
    alone = {**request, "seed": 5, "eta": 0.7}
    assert bits(engine.generate(**alone)) == bits(made)[1:]
    several = [request, alone, {**alone, "eta": 0.2}, request | {"eta": 0.7}]
    together = engine.generate_many(several, progress=False)
    assert [bits(one) for one in together] == [bits(engine.generate(**one)) for one in several]
    assert made.recipe.eta == 0.7
    assert bits(ip.repeat(made.save(tmp_path)[1], progress=False)) == bits(made)[1:]


def test_eta_of_ddim_is_the_pipelines_own(tiny_folder: Path, tmp_path: Path) -> None:
    engine = ip.Engine(tiny_folder)
    made = engine.generate("a star", seed=4, eta=1.0, guidance_scale=5.0, **QUICK)
    pipe = engine.loaded.pipe
    assert isinstance(pipe.scheduler, DDIMScheduler)
    expected = pipe(
        "a star",
        num_inference_steps=3,
        guidance_scale=5.0,
        eta=1.0,
        generator=torch.Generator().manual_seed(4),
    ).images[0]
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(expected))
    assert bits(made) != bits(engine.generate("a star", seed=4, guidance_scale=5.0, **QUICK))
    pipe.scheduler = EulerDiscreteScheduler()  # has no eta, but that of the recipe has
    assert bits(ip.repeat(made.save(tmp_path)[0], base=pipe, progress=False)) == bits(made)


def test_other_schedulers_have_no_eta(tiny_folder: Path) -> None:
    for scheduler in (
        EulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ):
        pipe = SimpleNamespace(scheduler=scheduler)
        assert eta_options(0.0, pipe) == eta_options(None, pipe) == {}
        with pytest.raises(errors.OptionError, match=r"eta 0\.5: the steps of a .* draw no such"):
            eta_options(0.5, pipe)
    with pytest.raises(errors.OptionError, match=r"eta 1\.5: not a number from 0 to 1"):
        ip.generate("a star", base=tiny_folder, eta=1.5, **QUICK)


def test_larger_scenes_have_an_eta_of_their_own(tmp_path: Path) -> None:
    made = ip.generate("a star", base="bundled-sd3-128", **QUICK)
    assert made.recipe.eta == ip.bundled.ETA_128
    engine = ip.Engine("bundled-sd3-128")
    none = engine.generate("a star", eta=0, **QUICK)
    assert bits(none) != bits(made)
    engine.loaded.pipe.scheduler.register_to_config(stochastic_sampling=True)  # has no eta
    assert engine.generate("a star", **QUICK).recipe.eta is None
    older = replace(none, recipes=[replace(none.recipe, eta=None)])  # of a version without eta
    assert bits(ip.repeat(older.save(tmp_path)[0], progress=False)) == bits(none)
