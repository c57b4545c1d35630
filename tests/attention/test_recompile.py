"""Under torch.compile a change of scale, to and from 0 too, costs no recompilation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from hosts_table import ONE_SITE, SMALLEST, HostCase
from rigs import Rig, build, difference

SCALES = (0.0, 0.5, 1.2, 0.0, 0.8, 2.0)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from one test in another."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A small denoiser; its graph compiles in seconds."""
    return build(SMALLEST, "base", tmp_path)


def expected(rig: Rig, inputs: dict[str, Any], scales: Any) -> list[Tensor]:
    """Eager outputs for every scale."""
    return [rig.ours(inputs, rig.prompt(1), scale=scale) for scale in scales]


def read(host: HostCase, model: Any, inputs: dict[str, Any]) -> Tensor:
    """One call of a compiled denoiser."""
    with torch.no_grad():
        return model(**inputs).sample


def test_whatever_changes_it_is_one_graph(rig: Rig) -> None:
    """Any scale, from 0, to it and from it again; another prompt, scales by site, timestep, latents
    or texts of the same shape: each call has the output of its own. The graph goes through
    AOTAutograd too."""
    layout = "negative-positive"
    calls = [
        {**rig.host.inputs(2, seed=i), "timestep": t}
        for i, t in enumerate(torch.arange(900, 0, -300))
    ]
    maps = [
        {"down_blocks": 0.5, "mid_block": 1.0, "up_blocks": 0.0},
        {"down_blocks": 0.0, "mid_block": 0.2, "up_blocks": 1.5},
    ]
    prompts = [rig.prompt(1, seed=s) for s in (5, 6, 7)]
    scaled = expected(rig, calls[0], SCALES)
    base = rig.host.read(rig.unet, calls[0])
    wanted = [
        rig.ours(call, prompt, scale=scale, guidance=layout)
        for prompt in prompts
        for scale in maps
        for call in calls
    ]
    assert min(difference(one, two) for one, two in combinations(wanted, 2)) > 1e-3
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(rig.unet, backend=counter)
    rig.adapter.attach(rig.unet)
    found, counts = [], []
    with rig.adapter.use(prompts[0], scale=SCALES[0]) as handle:
        for scale, out in zip(SCALES, scaled, strict=True):
            handle.scale = scale
            assert difference(read(rig.host, model, calls[0]), out) <= TOLERANCE, scale
            counts.append(counter.frame_count)
        handle.scale = 0.0
        assert difference(read(rig.host, model, calls[0]), base) <= TOLERANCE
    for prompt in prompts:
        with rig.adapter.use(prompt, guidance=layout) as handle:
            for handle.scale in maps:
                for call in calls:
                    found.append(read(rig.host, model, call))
                    counts.append(counter.frame_count)
    assert counts[0] > 0
    assert len(set(counts)) == 1
    for one, out in zip(found, wanted, strict=True):
        assert difference(one, out) <= TOLERANCE


def test_detaching_from_a_compiled_denoiser(tmp_path: Path) -> None:
    """Before, during and after: always the output of the eager denoiser."""
    rig = build(ONE_SITE, "plus", tmp_path)
    torch._dynamo.reset()
    inputs = rig.host.inputs(2)
    plain = rig.host.read(rig.unet, inputs)
    with_adapter = rig.ours(inputs, rig.prompt(1))
    model = torch.compile(rig.unet, backend="eager")
    assert difference(read(rig.host, model, inputs), plain) <= TOLERANCE
    rig.adapter.attach(model)  # the compiled wrapper itself
    with rig.adapter.use(rig.prompt(1)):
        assert difference(read(rig.host, model, inputs), with_adapter) <= TOLERANCE
    assert difference(read(rig.host, model, inputs), plain) <= TOLERANCE
    rig.adapter.detach()
    assert difference(read(rig.host, model, inputs), plain) <= TOLERANCE


def test_compiled_in_place_and_by_block(tmp_path: Path) -> None:
    """`unet.compile()`, and only the transformer blocks compiled, as diffusers recommends."""
    rig = build(ONE_SITE, "plus", tmp_path)
    inputs = rig.host.inputs(2)
    wanted = expected(rig, inputs, (0.5, 0.0, 1.5))
    for whole in (True, False):
        torch._dynamo.reset()
        unet = copy.deepcopy(rig.unet)
        counter = CompileCounter()
        targets: list[nn.Module] = [unet] if whole else _blocks(unet)
        for target in targets:
            target.compile(backend=counter)
        rig.adapter.attach(unet)
        counts = []
        with rig.adapter.use(rig.prompt(1)) as handle:
            for scale, out in zip((0.5, 0.0, 1.5), wanted, strict=True):
                handle.scale = scale
                assert difference(read(rig.host, unet, inputs), out) <= TOLERANCE
                counts.append(counter.frame_count)
        rig.adapter.detach()
        assert len(set(counts)) == 1, (whole, counts)


def test_blocks_need_no_more_graphs(tmp_path: Path) -> None:
    """`compile_repeated_blocks(fullgraph=True)`: one graph per kind of block, whatever changes."""
    rig, eager = build("sdxl", "base", tmp_path), build("sdxl", "base", tmp_path)
    inputs = rig.host.inputs(2)
    counter = CompileCounter()
    plain: Any = copy.deepcopy(rig.unet)
    plain.compile_repeated_blocks(fullgraph=True, backend=counter)
    rig.host.read(plain, inputs)
    without = counter.frame_count
    torch._dynamo.reset()
    uses: list[tuple[Any, dict[str, Any]]] = [
        (rig.prompt(1), {}),
        (rig.prompt(1, seed=9), {"scale": 0.3}),
        (rig.prompt(1), {"scale": {"up_blocks": 0.5, "down_blocks": 0.0}}),
        (rig.prompt(1), {"schedule": "0.5-1", "mask": torch.eye(8)}),
        (rig.prompt(1), {"mask": torch.ones(16, 48).tril()}),
        (rig.prompt(2), {"preset": "style transfer precise"}),
        (rig.prompt(1), {"scaling": "K+V", "guidance": "none"}),
    ]
    counter = CompileCounter()
    rig.adapter.attach(rig.unet)
    eager.adapter.attach(eager.unet)
    unet: Any = rig.unet
    unet.compile_repeated_blocks(fullgraph=True, backend=counter)
    steps = torch.arange(900, 0, -400)
    for prompt, use in uses:
        found = []
        for side in (rig, eager):
            with side.adapter.use(prompt, **{"guidance": "negative-positive", **use}):
                found.append([side.host.read(side.unet, {**inputs, "timestep": t}) for t in steps])
        for ours, wanted in zip(*found, strict=True):
            assert difference(ours, wanted) <= TOLERANCE, use
        assert counter.frame_count == without, use


def _blocks(unet: nn.Module) -> list[nn.Module]:
    return [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
