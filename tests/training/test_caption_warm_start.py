"""The warm start: the projector learns the text states of the captions, if they differ."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor

from imageprompt.training.init import (
    captions_differ,
    choose_states,
    fit_projector_to_captions,
)
from imageprompt.variants._projectors import LinearProjector, Resampler


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [(12, range(12)), (11, range(11)), (4, [2, 4, 7, 9]), (1, [9]), (9, range(1, 10))],
)
def test_which_states_stand_for_a_caption(tokens: int, positions: list[int]) -> None:
    # start, nine words, end, then padding
    states = torch.arange(24.0).reshape(1, 24, 1).expand(2, -1, 3)
    chosen = choose_states(states, 11, tokens)
    assert chosen[0, :, 0].tolist() == list(positions)
    assert chosen.shape == (2, tokens, 3)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_a_projector_learns_captions(kind: str) -> None:
    torch.manual_seed(0)
    vocabulary = torch.randn(5, 8)

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(5, (16, 2), generator=torch.Generator().manual_seed(step))
        pictures = torch.nn.functional.one_hot(words, 5).float()
        states = torch.nn.functional.layer_norm(vocabulary[words], (8,))
        return (pictures.flatten(1) if kind == "linear" else pictures), states

    projector: torch.nn.Module = LinearProjector(10, 8, 2)
    if kind == "resampler":
        projector = Resampler(5, 8, 2, depth=1, heads=1, inner_dim=16)
    seen: list[int] = []
    error = fit_projector_to_captions(projector, pairs, 400, on_progress=seen.append)
    assert seen == list(range(1, 401))
    assert error < (0.1 if kind == "linear" else 0.6)  # a resampler cannot see the order of words
    features, states = pairs(1000)
    measured = (projector(features) - states).square().mean() / states.var(0, correction=0).mean()
    assert float(measured.detach()) == pytest.approx(error, abs=0.1)


def test_captions_that_are_all_the_same_are_recognised() -> None:
    """Also if their states differ by rounding, and if only the last batch has another one."""
    one, other = torch.randn(2, 1, 4, 8)
    rounded = one.bfloat16().float()
    batches = [one.expand(3, -1, -1), torch.cat((rounded, one)), torch.cat((one, other))]

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), batches[step]

    assert not captions_differ(pairs, 1)
    assert not captions_differ(pairs, 2)
    assert captions_differ(pairs, 3)


def test_the_error_of_a_single_caption_is_infinite() -> None:
    states = torch.randn(1, 2, 8).expand(4, -1, -1)
    projector = LinearProjector(10, 8, 2)
    assert fit_projector_to_captions(projector, lambda _: (torch.randn(4, 10), states), 10) == inf
