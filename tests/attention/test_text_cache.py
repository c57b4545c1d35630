"""K and V of the text are cached over a denoise loop, and never where that would be wrong.

Every test runs a loop of three steps with a disturbance in the middle, and compares each step with
diffusers, which caches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hosts_table import SMALLEST
from ops import count
from rigs import Rig, build, difference

TOLERANCE = 1e-5
STEPS = 3
Disturb = Callable[[nn.Module, dict[str, Any]], None]


def times() -> Tensor:
    """Descending timesteps; their elements are views of one tensor, as schedulers hand them out."""
    return torch.arange(900, 0, -300)


def attn2(unet: nn.Module) -> list[Any]:
    """All cross-attention layers."""
    return [m for name, m in unet.named_modules() if name.endswith("attn2")]


def check(rig: Rig, disturb: Disturb, *, at: int = 2, inputs: dict[str, Any] | None = None) -> None:
    """Run the loop on both sides; `disturb(unet, inputs)` happens before step `at` on each."""
    expected, untouched = [], None
    for step, t in enumerate(times()):
        # diffusers' side: a fresh copy of the denoiser in the state that step `step` sees
        side = build(rig.host, rig.kind, rig.path.parent, seed=3)
        given = side.host.inputs(2) if inputs is None else _clone(inputs)
        if step >= at:
            before = side.theirs({**given, "timestep": t}, side.features(1))
            disturb(side.unet, given)
            after = side.theirs({**given, "timestep": t}, side.features(1))
            untouched = difference(before, after)
            expected.append(after)
        else:
            expected.append(side.theirs({**given, "timestep": t}, side.features(1)))
    assert untouched is not None
    assert untouched > 1e-3, "the disturbance does nothing"

    given = rig.host.inputs(2) if inputs is None else _clone(inputs)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        for step, t in enumerate(times()):
            if step == at:
                disturb(rig.unet, given)
            found = rig.host.read(rig.unet, {**given, "timestep": t})
            assert difference(found, expected[step]) <= TOLERANCE, step
    rig.adapter.detach()


def _clone(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A tiny denoiser with a base adapter."""
    return build(SMALLEST, "base", tmp_path)


def products(rig: Rig, inputs: dict[str, Any], t: Tensor) -> int:
    """Matrix products without bias in one step; to_k and to_v are among them."""
    return count(lambda: rig.host.read(rig.unet, {**inputs, "timestep": t}))["mm"]


def test_it_is_cached_and_released(rig: Rig) -> None:
    """Two products fewer for each site from the second step on; a new loop starts anew."""
    inputs = rig.host.inputs(2)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        for loop in range(2):
            seen = [products(rig, inputs, t) for t in times()]
            assert seen[1:] == [seen[0] - 2 * rig.host.sites] * (STEPS - 1), loop
    with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
        assert products(rig, inputs, times()[0]) == seen[0]


def test_cached_in_the_pipelines_of_diffusers(rig: Rig) -> None:
    """In a pipeline's own loop all steps but the first skip the text's products."""
    from rigs import bare_pipeline

    pipe = bare_pipeline(rig.unet)
    texts = rig.host.inputs(2)["encoder_hidden_states"]

    def run(steps: int) -> int:
        return count(
            lambda: pipe(
                prompt_embeds=texts[:1],
                negative_prompt_embeds=texts[1:],
                latents=torch.ones(1, 4, 8, 8),
                num_inference_steps=steps,
                output_type="latent",
            )
        )["mm"]

    plain = run(5) - run(4)
    rig.adapter.attach(pipe)
    with rig.adapter.use(rig.prompt(1)):
        assert run(5) - run(4) == plain - 2 * rig.host.sites


# ── the text changes ─────────────────────────────────────────────────────────────────────────────


def _text(inputs: dict[str, Any]) -> Tensor:
    return inputs["encoder_hidden_states"].clone()


def _new_text(inputs: dict[str, Any]) -> Tensor:
    gen = torch.Generator().manual_seed(31)
    return torch.randn(inputs["encoder_hidden_states"].shape, generator=gen)


def test_another_text(rig: Rig) -> None:
    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"] = _new_text(inputs)

    check(rig, disturb)


def test_text_written_in_place(rig: Rig) -> None:
    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"].copy_(_new_text(inputs))

    check(rig, disturb)


def test_part_of_the_text_written_through_a_view(rig: Rig) -> None:
    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"][1, 2:5].mul_(-2.0)

    check(rig, disturb)


def test_new_text_at_the_old_address(tmp_path: Path) -> None:
    """The old tensor is freed and its memory reused by a new one, with version 0."""
    rig, reused = build("tiny", "base", tmp_path), []

    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        new = _new_text(inputs)
        address = inputs.pop("encoder_hidden_states").data_ptr()
        held = []
        while len(held) < 200:
            candidate = new * 1.0
            if candidate.data_ptr() == address:
                break
            held.append(candidate)
        reused.append(candidate.data_ptr() == address and candidate._version == 0)
        inputs["encoder_hidden_states"] = candidate

    check(rig, disturb, inputs=rig.host.inputs(2, text_tokens=777))
    if not reused[-1]:
        pytest.skip("the allocator did not reuse the memory")


def test_precision_changes_in_the_loop(rig: Rig) -> None:
    """A result under autocast is not reused in a step without it, nor the reverse."""
    inputs = rig.host.inputs(2)
    modes = [True, False, True]
    calls = [{**inputs, "timestep": t} for t in times()]

    def run(call: dict[str, Any], mixed: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return rig.host.read(rig.unet, call)

    pairs = list(zip(calls, modes, strict=True))
    rig.adapter.attach(rig.unet)
    wanted = []
    for call, mixed in pairs:  # a loop of its own for each
        with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
            wanted.append(run({**call, "encoder_hidden_states": _text(call)}, mixed))
    with rig.adapter.use(rig.prompt(1)):
        found = [run(call, mixed) for call, mixed in pairs]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_text_in_inference_mode(rig: Rig) -> None:
    """Inference tensors do not count writes, so nothing may be cached."""
    with torch.inference_mode():
        inputs = rig.host.inputs(2)

    def run(changed: bool) -> Tensor:
        with torch.inference_mode():
            given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
                rig.unet(**{**given, "timestep": times()[0]})
                if changed:
                    given["encoder_hidden_states"].mul_(-1)
                second = rig.unet(**{**given, "timestep": times()[1]}).sample
            with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
                again = rig.unet(**{**given, "timestep": times()[1]}).sample
            assert torch.equal(second, again)
            return second

    rig.adapter.attach(rig.unet)
    assert difference(run(False), run(True)) > 1e-3


def test_a_base_that_projects_its_text(tmp_path: Path) -> None:
    """Kolors computes a new text tensor at every step, often at the address of the last one."""
    rig = build("kolors", "base", tmp_path)

    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"].copy_(_new_text(inputs))

    check(rig, disturb)


def test_fresh_timesteps_save_as_much(rig: Rig) -> None:
    """Numbers and new tensors instead of views of a schedule: the same products are saved."""
    inputs = rig.host.inputs(2)
    rig.adapter.attach(rig.unet)
    for fresh in (float, int, lambda t: torch.tensor(int(t)), lambda t: t.clone()[None].expand(2)):
        with rig.adapter.use(rig.prompt(1)):
            seen = [products(rig, inputs, fresh(t)) for t in times()]
        assert seen[1:] == [seen[0] - 2 * rig.host.sites] * (STEPS - 1)


def test_two_passes_save_as_much(rig: Rig) -> None:
    """Guidance in two calls: K and V of both texts are kept."""
    inputs = rig.host.inputs(1)
    texts = [rig.host.inputs(1, seed=seed)["encoder_hidden_states"] for seed in (1, 2)]
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)) as handle:
        seen = []
        for t in times():
            for branch, text in zip(("negative", "positive"), texts, strict=True):
                handle.guidance = branch
                seen.append(products(rig, {**inputs, "encoder_hidden_states": text}, t))
    assert seen[2:] == [seen[0] - 2 * rig.host.sites] * (2 * STEPS - 2)


def test_text_written_through_data(rig: Rig) -> None:
    """No version counts this write."""

    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"].data.copy_(_new_text(inputs))

    check(rig, disturb)


def test_one_number_of_the_text_written_through_data(rig: Rig) -> None:
    def disturb(_: nn.Module, inputs: dict[str, Any]) -> None:
        inputs["encoder_hidden_states"].data[1, 3, 2] = 40.0

    check(rig, disturb)


def test_two_texts_take_turns(rig: Rig) -> None:
    """Two passes in every step, as pipelines with sequential guidance make them."""
    texts = [rig.host.inputs(1, seed=s)["encoder_hidden_states"] for s in (1, 2)]
    inputs = rig.host.inputs(1)
    calls = [
        {**inputs, "encoder_hidden_states": text, "timestep": t} for t in times() for text in texts
    ]
    expected = [rig.theirs(call, rig.features(1), guidance=False) for call in calls]
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), guidance="none"):
        for call, wanted in zip(calls, expected, strict=True):
            assert difference(rig.host.read(rig.unet, call), wanted) <= TOLERANCE


def test_gradients_reach_the_text(rig: Rig) -> None:
    """With gradients on nothing is cached, and no gradient is lost."""
    inputs = rig.host.inputs(2)
    text = inputs["encoder_hidden_states"].requires_grad_(True)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        grads = []
        for t in times()[:2]:
            (grad,) = torch.autograd.grad(
                rig.unet(**{**inputs, "timestep": t}).sample.square().sum(), text
            )
            grads.append(grad)
    assert all(g.abs().max() > 0 for g in grads)


# ── the layers change ────────────────────────────────────────────────────────────────────────────


class LoraLike(nn.Module):
    """A wrapper like those of PEFT: the layer plus a low-rank part with a strength."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(layer.out_features)
        self.base_layer = layer
        self.down = nn.Parameter(torch.randn(2, layer.in_features, generator=gen) * 0.3)
        self.up = nn.Parameter(torch.randn(layer.out_features, 2, generator=gen) * 0.3)
        self.strength = 1.0

    @property
    def weight(self) -> Tensor:
        """PEFT's layers show the weight of the layer below."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.strength * (x @ self.down.T @ self.up.T)


def test_lora_added_in_the_loop(rig: Rig) -> None:
    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            layer.to_k, layer.to_v = LoraLike(layer.to_k), LoraLike(layer.to_v)

    check(rig, disturb)


def test_lora_whose_strength_changes(tmp_path: Path) -> None:
    """Wrapped from the start, its strength changed between steps: invisible in any weight."""
    rig = build(SMALLEST, "base", tmp_path)

    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            if not isinstance(layer.to_k, LoraLike):  # the other side comes unwrapped
                layer.to_k, layer.to_v = LoraLike(layer.to_k), LoraLike(layer.to_v)
            layer.to_k.strength = layer.to_v.strength = -2.0

    inputs = rig.host.inputs(2)
    for layer in attn2(rig.unet):
        layer.to_k, layer.to_v = LoraLike(layer.to_k), LoraLike(layer.to_v)
        layer.to_k.strength = layer.to_v.strength = 0.0  # what the unwrapped layers give
    check(rig, disturb, inputs=inputs)


@pytest.mark.parametrize("which", ["to_k", "to_v"])
def test_forward_hook(which: str, rig: Rig) -> None:
    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            getattr(layer, which).register_forward_hook(lambda _m, _a, out: out * -1.5)

    check(rig, disturb)


def test_forward_pre_hook(rig: Rig) -> None:
    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            layer.to_v.register_forward_pre_hook(lambda _m, args: (args[0] * -1.5,))

    check(rig, disturb)


def test_hook_removed(tmp_path: Path) -> None:
    """A hook that is removed in the loop: nothing computed under it is reused."""
    rig = build(SMALLEST, "base", tmp_path)
    inputs = rig.host.inputs(2)
    plain = [rig.theirs({**inputs, "timestep": t}, rig.features(1)) for t in times()]
    handles = [
        layer.to_v.register_forward_hook(lambda _m, _a, out: -out) for layer in attn2(rig.unet)
    ]
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        hooked = rig.host.read(rig.unet, {**inputs, "timestep": times()[0]})
        for handle in handles:
            handle.remove()
        assert difference(hooked, plain[0]) > 1e-3
        for t, wanted in zip(times()[1:], plain[1:], strict=True):
            assert (
                difference(rig.host.read(rig.unet, {**inputs, "timestep": t}), wanted) < TOLERANCE
            )


def test_replaced_forward(rig: Rig) -> None:
    """Offloading libraries replace the forward of a layer."""

    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            old = layer.to_v.forward
            layer.to_v.forward = lambda x, old=old: -old(x)

    check(rig, disturb)


def test_parametrised_weight(rig: Rig) -> None:
    class Negate(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return -weight

    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            nn.utils.parametrize.register_parametrization(layer.to_v, "weight", Negate())

    check(rig, disturb)


def _write(layer: Any) -> None:
    with torch.no_grad():
        layer.to_v.weight.mul_(-1.5)


def _replace(layer: Any) -> None:
    layer.to_v.weight = nn.Parameter(layer.to_v.weight.detach() * -1.5)


def _load(layer: Any) -> None:
    layer.to_v.load_state_dict({"weight": layer.to_v.weight.detach() * -1.5})


def _swap_data(layer: Any) -> None:
    layer.to_v.weight.data = layer.to_v.weight.data * -1.5


@pytest.mark.parametrize("change", [_write, _replace, _load, _swap_data])
def test_weights_changed_in_the_loop(change: Callable[[Any], None], rig: Rig) -> None:
    """A LoRA fused into the weights between two steps, in every way to write them."""

    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        for layer in attn2(unet):
            change(layer)

    check(rig, disturb)


def test_weights_fused_between_two_pictures(rig: Rig) -> None:
    """`weight.data += ...`, as PEFT fuses, leaves no trace in a tensor: a new loop starts anew."""
    inputs = rig.host.inputs(2)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        for t in times():
            rig.host.read(rig.unet, {**inputs, "timestep": t})
        for layer in attn2(rig.unet):
            layer.to_v.weight.data += 0.5
        found = [rig.host.read(rig.unet, {**inputs, "timestep": t}) for t in times()]
    rig.adapter.detach()
    for t, one in zip(times(), found, strict=True):
        wanted = rig.theirs({**inputs, "timestep": t}, rig.features(1))
        assert difference(one, wanted) <= TOLERANCE


def test_the_real_peft(rig: Rig) -> None:
    """The same with PEFT's own layers."""
    import peft

    def disturb(unet: nn.Module, _: dict[str, Any]) -> None:
        torch.manual_seed(4)
        config = peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
        unet.add_adapter(config)

    check(rig, disturb)
