"""Engine.generate_many: batches across requests, and what keeps requests apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import bits, picture

import imageprompt as ip
from imageprompt.core import errors
from imageprompt.generation import many

QUICK: dict[str, Any] = {"steps": 2, "progress": False}
LEFT = np.zeros((24, 24), "float32")
LEFT[:, :12] = 1


def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are denoised together."""
    sizes: list[int] = []
    real = many._denoise

    def counted(batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        return real(batch, *rest)

    monkeypatch.setattr(many, "_denoise", counted)
    return sizes


def assert_equal(alone: ip.GenerationResult, together: ip.GenerationResult) -> None:
    """The same pictures, in every value, and the same recipes."""
    assert len(alone) == len(together)
    for a, b in zip(alone.images, together.images, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(alone.recipes, together.recipes, strict=True):
        assert a == b


def test_random_requests_equal_those_alone(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    draw = random.Random(5)
    requests = [
        {
            "prompt": draw.choice(["", "a star", "a large green circle on the left"]),
            "negative_prompt": draw.choice(["", "blue"]),
            "reference": picture(draw.randrange(3)),
            "seed": draw.randrange(1000),
            "num_images": draw.choice([1, 1, 2]),
            "scale": draw.choice([0.8, 0.8, 0.3]),
            "mask": draw.choice([None, LEFT, 1 - LEFT]),
            **QUICK,
        }
        for _ in range(16 if whole else 12)
    ]
    sizes = batches(monkeypatch)
    engine = ip.Engine()
    together = engine.generate_many(requests, progress=False)
    assert len(sizes) < sum(sizes) / 2
    alone = [engine.generate(**request) for request in requests]
    for request, one, other in zip(requests, alone, together, strict=True):
        assert_equal(one, other)
        assert other.recipe.seed == request["seed"]


def test_what_differs_per_call_is_kept_apart(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = batches(monkeypatch)
    base = {"prompt": "a star", "reference": picture(1), **QUICK}
    other = [
        {"scale": 0.2}, {"guidance_scale": 3.0}, {"steps": 3}, {"size": (32, 16)},
        {"adapter": "base"}, {"preset": "style"}, {"schedule": "0-0.5"}, {"negative_prompt": "x"},
        {"mask": LEFT}, {"guidance": ["negative", "positive"]},
    ]  # fmt: skip
    ip.Engine().generate_many([base, base, *(base | one for one in other)], progress=False)
    assert sorted(sizes) == [1] * len(other) + [2]


def test_requests_mappings_and_start_images(tiny_bundled: Path) -> None:
    engine = ip.Engine()
    requests: list[Any] = [
        ip.Request.of("a star", picture(1), seed=3, steps=2),
        {"prompt": "a star", "init_image": picture(3).resize((16, 16)), "scale": 0, **QUICK},
        {"prompt": "a star", "scale": 0, "num_images": 2, **QUICK},
    ]
    made = engine.generate_many(requests, batch_size=2, progress=False)
    assert [len(one) for one in made] == [1, 1, 2]
    assert [one.request for one in made] == [0, 1, 2]
    assert bits(made[1]) == bits(engine.generate(**requests[1]))
    assert_equal(engine.generate(**requests[2]), made[2])
    assert_equal(engine.generate("a star", picture(1), seed=3, **QUICK), made[0])
    assert engine.generate_many([]) == []


def test_a_bad_request_is_named_before_anything_runs(tiny_bundled: Path, tmp_path: Path) -> None:
    engine, seen = ip.Engine(), list[object]()
    good = {"prompt": "a star", "scale": 0, **QUICK}
    for bad in (
        {"steps": 0},
        {"size": (17, 17)},
        {"stepz": 3},
        {"reference": tmp_path / "none.png"},
        {"reference": picture(1), "adapter": "none"},
        {"reference": picture(1), "scale": {"no_such_block": 1}},
        {"base": "bundled"},
    ):
        with pytest.raises(errors.ImagePromptError, match="request 1"):
            engine.generate_many([good, good | bad], on_image=seen.append, progress=False)
    assert seen == []


def test_memory_that_runs_out_halves_the_batch(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = many._denoise, list[int]()

    def tight(batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(batch, *rest)

    requests = [{"prompt": "a star", "scale": 0, "seed": seed, **QUICK} for seed in range(5)]
    engine = ip.Engine()
    expected = engine.generate_many(requests, batch_size=2, progress=False)
    monkeypatch.setattr(many, "_denoise", tight)
    made = engine.generate_many(requests, progress=False)
    assert sizes == [5, 2, 2, 1]
    assert [bits(one) for one in made] == [bits(one) for one in expected]


def test_cancel_ends_one_request_only(tiny_bundled: Path) -> None:
    engine = ip.Engine()
    delivered: list[int] = []

    def stop(progress: ip.Progress) -> None:
        assert progress.request.seed == progress.index
        if progress.index == 1:
            progress.cancel()

    requests = [{"prompt": "a star", "scale": 0, "seed": seed, **QUICK} for seed in range(3)]
    made = engine.generate_many(
        requests, on_step=stop, on_image=lambda one: delivered.append(one.request), progress=False
    )
    assert [one.cancelled for one in made] == [False, True, False]
    assert [len(one) for one in made] == [1, 0, 1]
    assert delivered == [0, 2]
    for index in (0, 2):
        assert_equal(engine.generate(**requests[index]), made[index])


def test_a_picture_of_a_batch_repeats(tiny_bundled: Path, tmp_path: Path) -> None:
    engine = ip.Engine()
    requests = [{"prompt": "a star", "reference": picture(i), "seed": i, **QUICK} for i in range(3)]
    made = engine.generate_many(requests, progress=False)
    path = made[2].save(tmp_path)[0]
    assert_equal(engine.repeat(path, progress=False), made[2])
