"""FaceID against the equations in float64, where diffusers is wrong: AnimateDiff, two adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import formulas
import imageprompt as ip
from hosts_table import CASES
from rigs import difference

TOLERANCE = 1e-10
PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def make(unet: Any, seed: int) -> Any:
    """A FaceID adapter whose weights all have an effect."""
    torch.manual_seed(seed)
    adapter = ip.Adapter.create("faceid", denoiser=unet, encoder=None)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapter.module.double().requires_grad_(False)
    return adapter


def faces(count: int, seed: int = 5) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 512, generator=gen, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def layers(unet: Any) -> dict[int, str]:
    """File id -> attention layer; motion modules are not counted."""
    names = [name for name in unet.attn_processors if "motion_modules" not in name]
    return {i: name.removesuffix(".processor") for i, name in enumerate(names)}


class Written:
    """A site's attention as in the paper, row by row, for tokens [batch, N, W]."""

    def __init__(self, images: Sequence[tuple[Tensor, Tensor, Tensor, float]], rows: int) -> None:
        self.images, self.rows = images, rows

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        text, frames = encoder_hidden_states, len(x) // self.rows
        out = []
        for i, row in enumerate(x):
            images = [
                (c[i // frames] @ to_k.T, c[i // frames] @ to_v.T, scale)
                for to_k, to_v, c, scale in self.images
            ]
            q, k, v = attn.to_q(row), attn.to_k(text[i]), attn.to_v(text[i])
            out.append(formulas.decoupled(q, k, v, images, attn.heads))
        return attn.to_out[0](torch.stack(out))


def by_equations(
    unet: Any, inputs: dict[str, Any], used: Sequence[tuple[Any, Tensor, float, float]]
) -> Tensor:
    """W + strength x up @ down in every attention layer, K' and V' at every site.

    `used` lists adapters with their features [batch, n, 512], scale and LoRA strength.
    """
    written = copy.deepcopy(unet)
    processors = {}
    tokens = [
        torch.stack([
            torch.cat([formulas.face_tokens(a.module.image_proj.state_dict(), f) for f in row])
            for row in rows
        ])
        for a, rows, _, _ in used
    ]  # fmt: skip
    for i, name in layers(unet).items():
        layer = written.get_submodule(name)
        states = [adapter.module.ip_adapter[str(i)].state_dict() for adapter, *_ in used]
        for kind, part in PARTS.items():
            for state, (*_, strength) in zip(states, used, strict=True):
                up, down = (state[f"to_{kind}_lora.{end}.weight"] for end in ("up", "down"))
                layer.get_submodule(part).weight.data += strength * up @ down
        if "to_k_ip.weight" in states[0]:
            images = [
                (state["to_k_ip.weight"], state["to_v_ip.weight"], c, scale)
                for state, c, (_, _, scale, _) in zip(states, tokens, used, strict=True)
            ]
            processors[f"{name}.processor"] = Written(images, len(inputs["sample"]))
    written.set_attn_processor({**written.attn_processors, **processors})
    with torch.no_grad():
        return written(**inputs).sample


@pytest.mark.parametrize("mode", ["live", "merged"])
def test_animatediff(mode: str) -> None:
    """Motion modules are not layers of the file, and every frame of a video sees the face."""
    case = CASES["motion"]
    unet = case.unet().double().requires_grad_(False)
    adapter, inputs = make(unet, 1), case.inputs(2, dtype=torch.float64)
    assert set(adapter.module.ip_adapter) == {str(i) for i in layers(unet)}
    adapter.attach(unet, lora=mode)
    prompt = adapter.encode(features=[faces(2, 1), faces(2, 2)])
    with adapter.use(prompt, scale=0.75, guidance="none", lora=0.5):
        found = case.read(unet, inputs)
    adapter.detach()
    expected = by_equations(
        unet, inputs, [(adapter, torch.stack([faces(2, 1), faces(2, 2)]), 0.75, 0.5)]
    )
    assert difference(found, expected) < TOLERANCE
    assert difference(found, case.read(unet, inputs)) > 1e-3
    # diffusers counts the motion modules, and so applies the LoRA of other layers to them
    theirs = unet._load_ip_adapter_loras([{"ip_adapter": adapter.module.ip_adapter.state_dict()}])
    assert any("motion_modules" in name for name in theirs[0])


@pytest.mark.sample(4)
@pytest.mark.parametrize("modes", [("live", "live"), ("merged", "live"), ("merged", "merged")])
def test_two_faceid_adapters(modes: tuple[str, str]) -> None:
    """Both LoRAs act; in diffusers loading the second switches the first off."""
    case = CASES["sd15"]
    unet = case.unet().double().requires_grad_(False)
    inputs = case.inputs(1, dtype=torch.float64)
    one, two = make(unet, 1), make(unet, 2)
    for adapter, mode in zip((one, two), modes, strict=True):
        adapter.attach(unet, lora=mode)
    prompts = [one.encode(features=faces(1, 1)), two.encode(features=faces(2, 2))]
    plain = case.read(unet, inputs)
    used = [(one, faces(1, 1)[None], 0.5, 1.0), (two, faces(2, 2)[None], 0.75, 0.625)]
    with one.use(prompts[0], scale=0.5, guidance="none"):
        with two.use(prompts[1], scale=0.75, guidance="none", lora=0.625):
            both = case.read(unet, inputs)
        first = case.read(unet, inputs)
    assert difference(both, by_equations(unet, inputs, used)) < TOLERANCE
    assert difference(first, by_equations(unet, inputs, used[:1])) < TOLERANCE
    assert difference(both, first) > 1e-3
    one.detach()  # in the order of attaching
    with two.use(prompts[1], scale=0.75, guidance="none", lora=0.625):
        second = case.read(unet, inputs)
    assert difference(second, by_equations(unet, inputs, used[1:])) < TOLERANCE
    two.detach()
    assert torch.equal(case.read(unet, inputs), plain)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_diffusers_leaves_the_first_ones_lora_off() -> None:
    """Why the equations are needed here; test_faceid.py compares one adapter with diffusers."""
    from test_faceid import state_of

    from tiny_stack import make_pipeline

    torch.manual_seed(0)
    pipe = make_pipeline()
    states = []
    for seed in (1, 2):
        adapter = make(pipe.unet, seed)
        adapter.module.float()
        states.append(state_of(adapter))
    pipe.load_ip_adapter(states, subfolder=["", ""], weight_name=["", ""])
    assert pipe.get_active_adapters() == ["faceid_1"]
