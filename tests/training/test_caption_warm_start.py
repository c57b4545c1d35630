"""The warm start: a projector learns the text states of captions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imageprompt.training.init.caption_warm_start import chosen_states, fit_projector_to_captions
from imageprompt.variants._projectors import LinearProjector, Resampler


@pytest.mark.parametrize(
    ("tokens", "places"),
    [(12, range(12)), (11, range(11)), (4, [2, 4, 7, 9]), (1, [9]), (9, range(1, 10))],
)
def test_which_states_stand_for_a_caption(tokens: int, places: list[int]) -> None:
    # start, nine words, end, then padding
    states = torch.arange(24.0).reshape(1, 24, 1).expand(2, -1, 3)
    chosen = chosen_states(states, 11, tokens)
    assert chosen[0, :, 0].tolist() == list(places)
    assert chosen.shape == (2, tokens, 3)


@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_a_projector_learns_words(kind: str) -> None:
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
    left = fit_projector_to_captions(projector, pairs, 400, on_progress=seen.append)
    assert seen == list(range(1, 401))
    assert left < (0.1 if kind == "linear" else 0.6)  # patches in no order: not which came first
    features, states = pairs(1000)
    error = (projector(features) - states).square().mean() / states.var(0, correction=0).mean()
    assert float(error.detach()) == pytest.approx(left, abs=0.1)
