"""Every diffusers pipeline with a transformer: attach, use, scale 0 is the plain one, detach."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import _Encoder
from torch import Tensor

import imageprompt as ip
from transformer_pipelines import DOCS, PIPELINES, SIDE, Case, make, render, texts
from transformers_table import CASES

REFUSED = [name for name, case in PIPELINES.items() if case.refused]
FIRST = {case.host: name for name, case in reversed(PIPELINES.items()) if case.host}
RUN = [name for name, case in PIPELINES.items() if not case.unseen and not case.refused]
pytestmark = pytest.mark.filterwarnings("ignore")


def kind_of(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def run(pipe: Any, case: Case, count: int = 1, **more: Any) -> Tensor:
    """Two steps; the latents."""
    known = inspect.signature(pipe.__call__).parameters
    options: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": SIDE,
        "width": SIDE,
        "generator": torch.Generator().manual_seed(5),
        "output_type": "latent",
        "negative_prompt": None,
        **texts(type(pipe), case, count),
    }
    options = {name: value for name, value in options.items() if name in known}
    torch.manual_seed(6)
    with torch.no_grad():
        made = pipe(**options | case.call | more)[0]
    return made if isinstance(made, Tensor) else torch.as_tensor(made)


def adapter_for(pipe: Any) -> ip.Adapter:
    adapter = ip.Adapter.create("base", denoiser=pipe.transformer, encoder=_Encoder(), num_tokens=3)
    generator = torch.Generator().manual_seed(7)
    for weight in adapter.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    return adapter


def prompt_of(adapter: ip.Adapter, *seeds: int, null: int = 1) -> ip.ImagePrompt:
    """A prompt for each seed, and random null tokens."""
    features = [
        torch.randn(1, 24, generator=torch.Generator().manual_seed(s)) for s in seeds or (8,)
    ]
    made = adapter.encode(features=features)
    noise = torch.randn(made.tokens.shape, generator=torch.Generator().manual_seed(null))
    return ip.ImagePrompt(made.tokens, noise)


def first_step(pipe: Any, case: Case, count: int) -> list[Tensor]:
    """The outputs [B, ...] of the denoiser's first `count` calls."""
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, made: Any) -> None:
        output = made[0]
        kept.append(torch.stack(list(output)) if isinstance(output, list) else output)

    hook = pipe.transformer.register_forward_hook(keep)
    try:
        run(pipe, case)
    finally:
        hook.remove()
    return kept[:count]


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", RUN)
def test_contract(name: str) -> None:
    """Scale 0 is the plain pipeline to the bit; with a reference it differs; detach is exact."""
    case = PIPELINES[name]
    pipe = make(kind_of(name), case)
    plain = run(pipe, case)
    assert plain.isfinite().all()
    adapter = adapter_for(pipe)
    prompt, other_null = prompt_of(adapter), prompt_of(adapter, null=2)
    adapter.attach(pipe)
    with adapter.use(prompt, scale=0.0):
        assert torch.equal(run(pipe, case), plain)
    with adapter.use(prompt):
        whole = run(pipe, case)
        first = first_step(pipe, case, len(case.calls.split()))
    with adapter.use(other_null):
        changed = first_step(pipe, case, len(first))
    made = [plain, whole]
    if case.schedule:
        with adapter.use(prompt, schedule=case.schedule):
            made.append(run(pipe, case))
    adapter.detach()
    assert whole.isfinite().all()
    assert len({tuple(one.flatten().tolist()) for one in made}) == len(made)
    # the null tokens act on the negative rows only
    rows = [
        "".join("p" if torch.equal(*pair) else "n" for pair in zip(*calls, strict=True))
        for calls in zip(first, changed, strict=True)
    ]
    assert " ".join(rows) == case.calls
    assert torch.equal(run(pipe, case), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_clear_and_leave_nothing(name: str) -> None:
    case = PIPELINES[name]
    pipe = make(kind_of(name), case)
    adapter = adapter_for(pipe).attach(pipe)
    with (
        pytest.raises(ip.ImagePromptError, match="the batch was cut") as caught,
        adapter.use(prompt_of(adapter)),
    ):
        run(pipe, case)
    assert "\n" not in str(caught.value)
    adapter.detach()
    assert not pipe.transformer._forward_pre_hooks


REPEATS_TEXTS = {"qwen-image", "z-image", "pixart", "sana", "auraflow", "flux2", "hidream"}
"""Hosts whose pipelines make several pictures of texts that are given as embeddings."""


@pytest.mark.sample(3)
@pytest.mark.parametrize("host", FIRST)
def test_each_text_has_its_reference_and_its_pictures(host: str) -> None:
    """Two texts with a reference each, and two pictures of both."""
    case = PIPELINES[FIRST[host]]
    pipe = make(kind_of(FIRST[host]), case)
    more = {"num_images_per_prompt": 2} if host in REPEATS_TEXTS else {}
    adapter = adapter_for(pipe)
    a, b = (prompt_of(adapter, *seeds) for seeds in ((8, 9), (8, 10)))
    adapter.attach(pipe)
    with adapter.use(a):
        before = run(pipe, case, 2, **more)
    with adapter.use(ip.ImagePrompt(b.tokens, a.null_tokens)):
        after = run(pipe, case, 2, **more)
    same = [torch.allclose(*pair, atol=1e-4) for pair in zip(before, after, strict=True)]
    assert same == ([True, True, False, False] if more else [True, False])


def test_the_table_knows_every_pipeline() -> None:
    """Those whose code says that their transformer is one of a host."""
    import diffusers

    held = "|".join(case.model for case in CASES.values())
    found: set[str] = set()
    for path in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        text = path.read_text()
        if re.search(rf"^        transformer: [^=\n]*\b({held})\b", text, re.M):
            found |= set(re.findall(r"^class (\w+Pipeline)\(", text, re.M))
    assert found == set(PIPELINES)


def test_the_guide_shows_the_table() -> None:
    text = DOCS.read_text()
    assert text == render(text), "run: python tests/support/transformer_pipelines.py"
