"""Numbers of numpy and torch are numbers, wherever one is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imageprompt.control import Controls
from imageprompt.core.errors import ImagePromptError, OptionError, ScaleError
from imageprompt.core.schema import plain_number, plain_numbers
from imageprompt.encoding.options import EncodeOptions
from imageprompt.generation.request import Request

HALVES = [
    np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), np.array([0.5]),
    torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]], dtype=torch.bfloat16),
    torch.nn.Parameter(torch.tensor(0.5)),
]  # fmt: skip
THREES = [np.int64(3), np.array(3), np.array([3]), torch.tensor(3)]


@pytest.mark.parametrize("half", HALVES)
def test_a_half(half: Any) -> None:
    assert type(plain_number(half)) is float
    assert plain_numbers({"a": [half, (half,)]}) == {"a": [0.5, (0.5,)]}
    controls = Controls(scale=half, lora=half, preset="style and composition", composition=half)
    assert controls == Controls(
        scale=0.5, lora=0.5, preset="style and composition", composition=0.5
    )
    assert Controls.from_dict(controls.as_dict()) == controls
    assert Controls(scale={"down": {"block_1": [half, half]}, "mid": half}).scale == {
        "down": {"block_1": [0.5, 0.5]},
        "mid": 0.5,
    }
    options = EncodeOptions.of(weights=[half, half], noise=half, fusion="average")
    assert options == EncodeOptions.of(weights=[0.5, 0.5], noise=0.5, fusion="average")
    assert type(options.noise.strength) is float
    given = Request.of("a star", "a.png", scale=half, guidance_scale=half, noise=half)
    plain = Request.of("a star", "a.png", scale=0.5, guidance_scale=0.5, noise=0.5)
    given.check()
    assert given == plain
    assert type(given.guidance_scale) is type(given.references[0].scale) is float


@pytest.mark.parametrize("three", THREES)
def test_a_three(three: Any) -> None:
    given = Request.of("a star", "a.png", seed=three, steps=three, num_images=three)
    given.check()
    assert given == Request.of("a star", "a.png", seed=3, steps=3, num_images=3)
    assert EncodeOptions.of(noise=0.5, noise_seed=three).noise_seed == 3


@pytest.mark.parametrize("wrong", [np.array([0.5, 0.6]), torch.tensor([]), np.bool_(True), 1j])
def test_no_number(wrong: Any) -> None:
    assert plain_number(wrong) is wrong or isinstance(wrong, np.bool_)
    with pytest.raises(ScaleError, match="a scale is a number from 0 to 2"):
        Controls(scale=wrong)
    with pytest.raises(ImagePromptError):
        Request.of("a star", "a.png", guidance_scale=wrong).check()


def test_lists_as_arrays() -> None:
    weights: Any
    for weights in (np.array([0.25, 0.75]), torch.tensor([0.25, 0.75])):
        assert EncodeOptions.of(weights=weights).weights == ((0.25, 0.75),)
        assert (
            Controls.of(None, schedule=weights).schedule
            == Controls.of(None, schedule=[0.25, 0.75]).schedule
        )
        Request.of("a star", ["a.png", "b.png"], weights=weights).check()
    with pytest.raises(OptionError, match="not a list of finite numbers"):
        EncodeOptions.of(weights=np.array([np.nan, 1]))
