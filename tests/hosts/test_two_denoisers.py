"""Wan 2.2: two transformers run the steps in turn, and an adapter acts on both."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from test_transformer_pipelines import adapter_for, kind_of, prompt_of, run
from torch import Tensor

import imageprompt as ip
from imageprompt.attention import state as attention_state
from imageprompt.core.errors import AttachError
from transformer_pipelines import PIPELINES, make, transformer
from transformers_table import CASES

CASE = PIPELINES["WanPipeline"]
STEPS = 4


def two_transformers() -> Any:
    """A pipeline that changes its transformer in the middle of the loop."""
    parts = {
        "transformer_2": lambda: CASES["wan"].build(seed=1),
        "boundary_ratio": lambda: 0.5,
        **CASE.parts,
    }
    case = type(CASE)(**{**vars(CASE), "parts": parts})
    return make(kind_of("WanPipeline"), case)


def latents(pipe: Any, **more: Any) -> Tensor:
    return run(pipe, CASE, num_inference_steps=STEPS, **more)


@pytest.fixture
def pipe() -> Any:
    return two_transformers()


@pytest.fixture
def adapter(pipe: Any) -> Iterator[ip.Adapter]:
    made = adapter_for(pipe)
    yield made
    made.detach()


def test_one_adapter_acts_on_both(pipe: Any, adapter: ip.Adapter) -> None:
    """As a copy on each of them does; scale 0 and detach give the plain pictures, to the bit."""
    turns: list[str] = []
    for name in ("transformer", "transformer_2"):
        model = getattr(pipe, name)
        model.register_forward_pre_hook(lambda *_, name=name: turns.append(name))
    plain = latents(pipe)
    assert turns == ["transformer"] * 4 + ["transformer_2"] * 4  # two calls a step
    prompt = prompt_of(adapter)
    adapter.attach(pipe)
    with adapter.use(prompt, scale=0.0):
        assert torch.equal(latents(pipe), plain)
    with adapter.use(prompt):
        both = latents(pipe)
    adapter.detach()
    assert torch.equal(latents(pipe), plain)

    one, other = adapter, copy.deepcopy(adapter)
    one.attach(pipe.transformer)
    other.attach(pipe.transformer_2)
    with one.use(prompt), other.use(prompt):
        assert torch.equal(latents(pipe), both)
    with one.use(prompt):
        half = latents(pipe)
    assert len({tuple(made.flatten().tolist()) for made in (plain, half, both)}) == 3
    other.detach()


def test_a_schedule_counts_the_steps_of_both(pipe: Any, adapter: ip.Adapter) -> None:
    prompt = prompt_of(adapter)
    adapter.attach(pipe)
    with adapter.use(prompt, schedule="0-0.75") as handle:
        scheduled = latents(pipe)
    with adapter.use(prompt) as handle:

        def stop(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            handle.scale = 0.8 if step < 2 else 0.0
            return tensors

        by_hand = latents(pipe, callback_on_step_end=stop)
    assert torch.equal(scheduled, by_hand)


def test_step_caches_of_both_are_void(
    pipe: Any, adapter: ip.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of the second may hold what an earlier image prompt made."""
    reset: list[int] = []

    def keep(denoiser: Any, *, by_context: bool = True) -> None:
        reset.extend([id(denoiser)] * by_context)

    monkeypatch.setattr(attention_state, "reset_step_caches", keep)
    adapter.attach(pipe)
    with adapter.use(prompt_of(adapter)):
        latents(pipe)
    # once for each side of guidance
    assert reset == [id(pipe.transformer)] * 2 + [id(pipe.transformer_2)] * 2


@pytest.mark.parametrize("both_first", [True, False])
def test_one_on_both_and_one_on_one_is_an_error(
    pipe: Any, adapter: ip.Adapter, both_first: bool
) -> None:
    """It would act on both, or be missing on one."""
    bases = (pipe, pipe.transformer_2) if both_first else (pipe.transformer_2, pipe)
    adapter.attach(bases[0])
    plain = latents(pipe)
    other = copy.deepcopy(adapter)
    with pytest.raises(AttachError, match="both transformers"):
        other.attach(bases[1])
    assert not other.attached
    with pytest.raises(AttachError, match="already attached"):
        adapter.attach(bases[1])
    assert torch.equal(latents(pipe), plain)
    again = copy.deepcopy(other)
    again.attach(bases[0])
    with ExitStack() as opened:
        opened.enter_context(adapter.use(prompt_of(adapter)))
        opened.enter_context(again.use(prompt_of(again)))
        assert not torch.equal(latents(pipe), plain)
    again.detach()


def test_two_that_differ_are_refused(adapter: ip.Adapter, pipe: Any) -> None:
    pipe.transformer_2 = transformer(type(CASE)(host="wan", config={"num_layers": 1}))
    with pytest.raises(AttachError, match="their attention layers differ"):
        adapter.attach(pipe)
    assert not adapter.attached


def test_the_second_alone(adapter: ip.Adapter, pipe: Any) -> None:
    """Wan 2.2 may run on its second transformer alone."""
    pipe.transformer = None
    adapter.attach(pipe)
    prompt = prompt_of(adapter)
    with adapter.use(prompt):
        pipe.transformer_2(
            torch.zeros(1, pipe.transformer_2.config.in_channels, 1, 4, 4),
            torch.ones(1),
            torch.zeros(1, 6, pipe.transformer_2.config.text_dim),
        )
