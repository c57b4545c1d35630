"""`cache_context` says which side of guidance a call is, and at which step, in any loop."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import Rig
from torch import Tensor

import imageprompt as ip
from transformers_table import CASES

TWO_PASSES = [name for name, case in CASES.items() if len(case.order) == 1]
WITH_CONTEXTS = [name for name in TWO_PASSES if name != "lumina2"]  # it has no cache_context


@pytest.fixture(params=WITH_CONTEXTS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(CASES[request.param])


def run(
    rig: Rig, prompt: ip.ImagePrompt, name: str = "", *, position: Any = None, **use: Any
) -> Tensor:
    """One call, in a cache context of that name and position."""
    with rig.adapter.use(prompt, **{"scale": 1.0} | use):
        if not name:
            return rig.case.read(rig.model, rig.inputs())
        with rig.model.cache_context(name, **position or {}):
            return rig.case.read(rig.model, rig.inputs())


def test_a_loop_of_the_users_own(rig: Rig) -> None:
    """Contexts of pipelines and of guiders; no context and one for both sides are positive."""
    prompt = rig.prompt(1)
    negative, positive = (run(rig, prompt, guidance=side) for side in ("negative", "positive"))
    assert not torch.equal(negative, positive)
    for name in ("uncond", "pred_uncond"):
        assert torch.equal(run(rig, prompt, name), negative), name
    for name in ("", "cond", "pred_cond", "pred_cond_skip", "other"):
        assert torch.equal(run(rig, prompt, name), positive), name
    # what the user states goes before it
    assert torch.equal(run(rig, prompt, "uncond", guidance="positive"), positive)


def test_the_step_that_a_context_states() -> None:
    rig = Rig(CASES["wan"])
    prompt = rig.prompt(1)
    for step, plain in ((0, False), (1, False), (2, True), (3, True)):
        position = {"step_index": step, "num_inference_steps": 4}
        made = run(rig, prompt, "cond", schedule="0-0.5", position=position)
        assert torch.equal(made, rig.plain) == plain
    with pytest.raises(ip.ImagePromptError, match="timesteps="):
        run(rig, prompt, "cond", schedule="0-0.5")


def test_the_denoiser_and_its_copies_stay_as_they_were(tmp_path: Path) -> None:
    """Hooks of diffusers that come and go while an adapter is attached are kept."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.hooks import HookRegistry

    rig = Rig(CASES["flux"])
    prompt = rig.prompt(1)
    negative = run(rig, prompt, "uncond")
    for copied in (copy.deepcopy(rig.model), pickle.loads(pickle.dumps(rig.model))):
        assert type(copied._diffusers_hook) is HookRegistry
        assert copied._diffusers_hook._module_ref is copied
        with copied.cache_context("uncond"):
            assert torch.equal(rig.case.read(copied, rig.inputs()), rig.plain)
    rig.model.save_pretrained(tmp_path)
    assert torch.equal(
        rig.case.read(type(rig.model).from_pretrained(tmp_path).eval(), rig.inputs()), rig.plain
    )
    rig.model.enable_cache(FirstBlockCacheConfig())
    assert torch.equal(run(rig, prompt, "uncond"), negative)
    rig.adapter.detach()
    assert type(rig.model._diffusers_hook) is HookRegistry
    with rig.model.cache_context("cond"):
        assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    rig.model.disable_cache()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    rig.adapter.attach(rig.model)
    assert torch.equal(run(rig, prompt, "uncond"), negative)
