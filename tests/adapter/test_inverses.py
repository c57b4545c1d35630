"""attach and detach are exact inverses, scale 0 is exactly the base, failures change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import imageprompt as ip
from hosts_table import ADAPTERS, CASES, AdapterCase, adapter_state
from imageprompt.core.errors import AttachError, EncoderError, ImagePromptError, WrongBaseError
from rigs import build, write_adapter


class Snapshot:
    """Everything of a denoiser that an adapter could disturb."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.processors = dict(unet.attn_processors)
        self.state = {key: value.clone() for key, value in unet.state_dict().items()}
        self.modules = [name for name, _ in unet.named_modules()]
        self.config = json.dumps(dict(unet.config), default=str, sort_keys=True)
        self.hooks = self._hooks()

    def _hooks(self) -> list[int]:
        return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in self.unet.modules()]

    def check_weights(self) -> None:
        """No key, tensor, module or config entry changed."""
        state = self.unet.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[key], self.state[key]) for key in state)
        assert [name for name, _ in self.unet.named_modules()] == self.modules
        assert json.dumps(dict(self.unet.config), default=str, sort_keys=True) == self.config

    def check(self) -> None:
        """Nothing at all changed."""
        self.check_weights()
        now = self.unet.attn_processors
        assert list(now) == list(self.processors)
        assert all(now[name] is self.processors[name] for name in now)
        assert self._hooks() == self.hooks


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("host", CASES)
def test_attach_use_detach(host: str, kind: str, tmp_path: Path) -> None:
    rig = build(host, kind, tmp_path)
    inputs = rig.host.inputs(2)
    before = rig.host.read(rig.unet, inputs)
    snapshot = Snapshot(rig.unet)

    assert rig.adapter.attach(rig.unet) is rig.adapter
    snapshot.check_weights()
    assert torch.equal(rig.host.read(rig.unet, inputs), before)  # attached, not in use
    with rig.adapter.use(rig.prompt(1)):
        snapshot.check_weights()
        assert not torch.equal(rig.host.read(rig.unet, inputs), before)
        snapshot.check_weights()
    assert torch.equal(rig.host.read(rig.unet, inputs), before)
    rig.adapter.detach()

    snapshot.check()
    assert torch.equal(rig.host.read(rig.unet, inputs), before)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("host", "dtype"),
    [
        *((host, torch.float32) for host in CASES),
        ("sd15", torch.bfloat16),
        ("motion", torch.bfloat16),
    ],
)
def test_scale_zero_is_the_base(host: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit, over several steps so that caches are used, and back again from scale 1."""
    rig = build(host, "base", tmp_path, dtype=dtype)
    inputs = rig.host.inputs(2, dtype=dtype)
    times = torch.arange(900, 0, -300)
    steps = [{**inputs, "timestep": t} for t in times]
    before = [rig.host.read(rig.unet, step) for step in steps]
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), scale=0.0) as handle:
        for step, expected in zip(steps, before, strict=True):
            assert torch.equal(rig.host.read(rig.unet, step), expected)
        handle.scale = 1.0
        assert not torch.equal(rig.host.read(rig.unet, steps[0]), before[0])
        handle.scale = {"down_blocks": 0.0, "mid_block": 0.0, "up_blocks": 0.0}
        for step, expected in zip(steps, before, strict=True):
            assert torch.equal(rig.host.read(rig.unet, step), expected)


def test_scale_zero_with_the_unfused_processor(tmp_path: Path) -> None:
    """A base with the unfused AttnProcessor keeps its own arithmetic."""
    from diffusers.models.attention_processor import AttnProcessor

    rig = build("sd15", "base", tmp_path)
    rig.unet.set_attn_processor(AttnProcessor())
    inputs = rig.host.inputs(2)
    before = rig.host.read(rig.unet, inputs)
    assert torch.equal(rig.ours(inputs, rig.prompt(1), scale=0.0), before)
    assert not torch.equal(rig.ours(inputs, rig.prompt(1), scale=1.0), before)


def test_scale_zero_under_autocast(tmp_path: Path) -> None:
    """Under autocast scale 0 is the base too, and other scales act."""
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    with torch.autocast("cpu", torch.bfloat16):
        before = rig.host.read(rig.unet, inputs)
        assert torch.equal(rig.ours(inputs, rig.prompt(1), scale=0.0), before)
        acted = rig.ours(inputs, rig.prompt(1))
    assert acted.dtype is torch.bfloat16
    assert (acted.float() - rig.ours(inputs, rig.prompt(1))).abs().max() < 0.1


def test_arguments_by_position(tmp_path: Path) -> None:
    """Pipelines pass sample, timestep and text by position, timesteps as plain numbers."""
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    wanted = rig.ours(inputs, rig.prompt(1))
    rig.adapter.attach(rig.unet)
    with torch.no_grad(), rig.adapter.use(rig.prompt(1)):
        found = rig.unet(inputs["sample"], 421, inputs["encoder_hidden_states"], return_dict=False)
    assert torch.equal(found[0], wanted)


def test_a_live_scale_is_the_scale(tmp_path: Path) -> None:
    """Setting `handle.scale` equals entering with that scale."""
    rig = build("tiny", "plus", tmp_path)
    inputs = rig.host.inputs(2)
    expected = {s: rig.ours(inputs, rig.prompt(1), scale=s) for s in (0.3, 1.2)}
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), scale=0.9) as handle:
        for scale, wanted in expected.items():
            handle.scale = scale
            assert handle.scale == scale
            assert torch.equal(rig.host.read(rig.unet, inputs), wanted)


def test_two_adapters_leave_in_any_order(tmp_path: Path) -> None:
    first = build("tiny", "base", tmp_path, seed=3)
    second = build("tiny", "plus", tmp_path, seed=13)
    unet, inputs = first.unet, first.host.inputs(2)
    before, snapshot = first.host.read(unet, inputs), Snapshot(unet)
    for order in ((first, second), (second, first)):
        first.adapter.attach(unet)
        second.adapter.attach(unet)
        with second.adapter.use(second.prompt(1)):
            only_second = first.host.read(unet, inputs)
        order[0].adapter.detach()
        if order[0] is first:
            with second.adapter.use(second.prompt(1)):
                assert torch.equal(first.host.read(unet, inputs), only_second)
        order[1].adapter.detach()
        snapshot.check()
        assert torch.equal(first.host.read(unet, inputs), before)


@pytest.mark.parametrize("leaves_first_entered", [True, False])
def test_detach_inside_the_use_of_another_adapter(
    leaves_first_entered: bool, tmp_path: Path
) -> None:
    """The other adapter goes on as if it had been alone; the one that left is gone."""
    stays = build("tiny", "base", tmp_path, seed=3)
    leaves = build("tiny", "plus", tmp_path, seed=13)
    unet, inputs = stays.unet, stays.host.inputs(2)
    before, snapshot = stays.host.read(unet, inputs), Snapshot(unet)
    alone = stays.ours(inputs, stays.prompt(1))
    stays.adapter.attach(unet)
    leaves.adapter.attach(unet)
    uses = [stays.adapter.use(stays.prompt(1)), leaves.adapter.use(leaves.prompt(1))]
    outer, inner = reversed(uses) if leaves_first_entered else uses
    with outer, inner:
        assert not torch.equal(stays.host.read(unet, inputs), alone)
        leaves.adapter.detach()
        assert not leaves.adapter.attached
        assert torch.equal(stays.host.read(unet, inputs), alone)
    assert torch.equal(stays.host.read(unet, inputs), before)
    with stays.adapter.use(stays.prompt(1)):  # and again in a block of its own
        leaves.adapter.attach(unet)
        assert torch.equal(stays.host.read(unet, inputs), alone)
        leaves.adapter.detach()
        assert torch.equal(stays.host.read(unet, inputs), alone)
    stays.adapter.detach()
    snapshot.check()


def test_misspelt_attributes_of_a_handle_are_errors(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), scale=0.5) as handle:
        assert repr(handle) == "ActivePrompt(1 prompt(s), Controls(scale=0.5))"
        for name, says in (
            ("sacle", "Did you mean 'scale'"),
            ("lorra", "Did you mean 'lora'"),
            ("control", "Did you mean 'controls'"),
            ("schedule", r"replace\(handle.controls, schedule="),
            ("weight", "Live are: scale, lora, controls, guidance"),
        ):
            with pytest.raises(AttributeError, match=says):
                setattr(handle, name, 0.3)
        assert handle.scale == 0.5
        handle.scale = 0.3
        assert handle.controls.scale == 0.3
        rig.host.read(rig.unet, rig.host.inputs(2))


def test_one_adapter_moves_between_denoisers(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    other = rig.host.unet(seed=77)
    inputs = rig.host.inputs(2)
    prompt = rig.prompt(1)
    first = rig.ours(inputs, prompt)
    rig.adapter.attach(other)
    with rig.adapter.use(prompt):
        moved = rig.host.read(other, inputs)
    rig.adapter.detach()
    assert not torch.equal(first, moved)
    assert torch.equal(rig.ours(inputs, prompt), first)


def test_an_error_inside_use_leaves_nothing_behind(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    before, snapshot = rig.host.read(rig.unet, inputs), Snapshot(rig.unet)
    rig.adapter.attach(rig.unet)
    with pytest.raises(KeyboardInterrupt), rig.adapter.use(rig.prompt(1)):
        raise KeyboardInterrupt
    assert torch.equal(rig.host.read(rig.unet, inputs), before)
    rig.adapter.detach()
    snapshot.check()


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = build("tiny", "base", tmp_path)
    snapshot = Snapshot(rig.unet)

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rig.adapter.module, "to", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        rig.adapter.attach(rig.unet)
    assert not rig.adapter.attached
    snapshot.check()


def test_inference_mode_comes_and_goes(tmp_path: Path) -> None:
    """Tensors created inside it are written to, and have gradients, outside."""
    rig = build("tiny", "base", tmp_path)
    rig.adapter.module.requires_grad_(False)
    inputs, prompt = rig.host.inputs(1), rig.prompt(1)
    rig.adapter.attach(rig.unet)
    with torch.inference_mode():
        entered = rig.adapter.use(prompt)
        handle = entered.__enter__()
        rig.host.read(rig.unet, inputs)
    handle.scale = 0.3
    found = rig.host.read(rig.unet, inputs)
    entered.__exit__(None, None, None)
    with rig.adapter.use(prompt, scale=0.3):
        assert torch.equal(rig.host.read(rig.unet, inputs), found)
        sample = inputs["sample"].clone().requires_grad_()
        rig.unet(**{**inputs, "sample": sample}, return_dict=False)[0].sum().backward()
    assert sample.grad is not None
    rig.adapter.detach()


def test_saved_base_holds_nothing_of_ours(tmp_path: Path) -> None:
    """`save_pretrained` while attached and in use writes the base's own weights and config."""
    rig = build("sd15", "base", tmp_path)
    rig.unet.save_pretrained(tmp_path / "plain")
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        rig.host.read(rig.unet, rig.host.inputs(2))
        rig.unet.save_pretrained(tmp_path / "attached")
    rig.adapter.detach()
    name = "diffusion_pytorch_model.safetensors"
    plain, attached = (load_file(tmp_path / d / name) for d in ("plain", "attached"))
    assert list(plain) == list(attached)
    assert all(torch.equal(plain[key], attached[key]) for key in plain)
    configs = [(tmp_path / d / "config.json").read_text() for d in ("plain", "attached")]
    assert configs[0] == configs[1]


def test_the_adapter_keeps_its_own_weights(tmp_path: Path) -> None:
    """Attach, use and detach leave the adapter's tensors as the file had them."""
    rig = build("sdxl", "plus", tmp_path)
    rig.ours(rig.host.inputs(2), rig.prompt(1))
    stored = load_file(rig.path)
    held = rig.adapter.module.state_dict()
    assert set(held) == set(stored)
    assert all(torch.equal(held[key], stored[key]) for key in stored)


def test_prompts_are_reusable_after_detach(tmp_path: Path) -> None:
    rig = build("tiny", "plus", tmp_path)
    inputs, prompt = rig.host.inputs(2), rig.prompt(2)
    first = rig.ours(inputs, prompt)
    prompt.save(tmp_path / "prompt.safetensors")
    loaded = ip.ImagePrompt.load(tmp_path / "prompt.safetensors")
    assert torch.equal(rig.ours(inputs, prompt), first)
    assert torch.equal(rig.ours(inputs, loaded), first)


# ── failures leave the base untouched ────────────────────────────────────────────────────────────


def _foreign(unet: nn.Module, where: str) -> None:
    """Put a foreign processor on one site."""

    class Foreign(nn.Module):
        def forward(self, attn: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return x

    processors = dict(unet.attn_processors)
    processors[where] = Foreign()
    unet.set_attn_processor(processors)


def test_adapter_of_another_base(tmp_path: Path) -> None:
    """An SD1.5 adapter on an SDXL denoiser, the reverse and others: an error of one line."""
    for mine, other in (("sd15", "sdxl"), ("sdxl", "sd15"), ("sd15", "sd2"), ("tiny", "sd15")):
        rig = build(mine, "base", tmp_path)
        unet = CASES[other].unet()
        inputs = CASES[other].inputs(2)
        before, snapshot = CASES[other].read(unet, inputs), Snapshot(unet)
        with pytest.raises(WrongBaseError) as caught:
            rig.adapter.attach(unet)
        assert "\n" not in str(caught.value)
        snapshot.check()
        assert torch.equal(CASES[other].read(unet, inputs), before)
        rig.ours(rig.host.inputs(2), rig.prompt(1))  # and the adapter still works on its own base


def test_same_widths_but_fewer_sites(tmp_path: Path) -> None:
    """A file without the last site of the base is refused, not attached in part."""
    rig = build("sd15", "base", tmp_path)
    cut = {k: v for k, v in rig.state["ip_adapter"].items() if not k.startswith("31.")}
    path = write_adapter({**rig.state, "ip_adapter": cut}, tmp_path / "cut.safetensors")
    snapshot = Snapshot(rig.unet)
    with pytest.raises(ImagePromptError):
        ip.Adapter.load(path).attach(rig.unet)
    snapshot.check()


@pytest.mark.parametrize("place", ["first", "last"])
def test_denoiser_with_a_foreign_processor(place: str, tmp_path: Path) -> None:
    """Refused before anything changes, wherever the foreign processor sits."""
    rig = build("sd15", "base", tmp_path)
    sites = [name for name in rig.unet.attn_processors if ".attn2." in name]
    _foreign(rig.unet, sites[0] if place == "first" else sites[-1])
    snapshot = Snapshot(rig.unet)
    with pytest.raises(AttachError):
        rig.adapter.attach(rig.unet)
    snapshot.check()


def test_denoiser_that_carries_diffusers_own_adapter(tmp_path: Path) -> None:
    from peer import diffusers_load

    rig = build("sd15", "base", tmp_path)
    diffusers_load(rig.unet, rig.state)
    snapshot = Snapshot(rig.unet)
    with pytest.raises(AttachError):
        rig.adapter.attach(rig.unet)
    snapshot.check()


def test_attach_twice(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    expected = rig.ours(inputs, rig.prompt(1))
    snapshot = Snapshot(rig.unet)
    rig.adapter.attach(rig.unet)
    assert rig.adapter.attach(rig.unet) is rig.adapter  # a notebook cell that is run again
    with rig.adapter.use(rig.prompt(1)):
        assert torch.equal(rig.host.read(rig.unet, inputs), expected)
    with pytest.raises(AttachError, match=r"already attached.*detach\(\)"):
        rig.adapter.attach(build("tiny", "base", tmp_path).unet)
    rig.adapter.detach()
    rig.adapter.detach()  # harmless
    snapshot.check()


def test_encoder_of_the_wrong_width(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    rig = build("sd15", "base", tmp_path)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=rig.kind.feature + 4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    snapshot = Snapshot(rig.unet)
    with pytest.raises(EncoderError) as caught:
        rig.adapter.attach(rig.unet, encoder=CLIPVisionModelWithProjection(config))
    assert "\n" not in str(caught.value)
    snapshot.check()
    rig.adapter.attach(rig.unet)  # the failed attempt left the adapter free
    rig.adapter.detach()


@pytest.mark.parametrize("thing", [object(), None, nn.Linear(2, 2), "a string"])
def test_things_that_are_not_a_denoiser(thing: object, tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    with pytest.raises(AttachError):
        rig.adapter.attach(thing)


def test_use_refuses_before_it_changes_anything(tmp_path: Path) -> None:
    """Wrong prompt, scale or guidance: typed error, base bit-identical."""
    rig = build("tiny", "base", tmp_path)
    wide = build("sdxl", "base", tmp_path, seed=9)
    inputs = rig.host.inputs(2)
    before = rig.host.read(rig.unet, inputs)
    with pytest.raises(AttachError), rig.adapter.use(rig.prompt(1)):
        pass
    rig.adapter.attach(rig.unet)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (wide.prompt(1), {}),
        (rig.prompt(1), {"scale": -0.1}),
        (rig.prompt(1), {"scale": 2.1}),
        (rig.prompt(1), {"scale": float("nan")}),
        (rig.prompt(1), {"scale": "much"}),
        (rig.prompt(1), {"scale": {"no_such_block": 1.0}}),
        (rig.prompt(1), {"guidance": "sideways"}),
        ("not a prompt", {}),
    ]
    for prompt, options in wrong:
        with pytest.raises(ImagePromptError) as caught, rig.adapter.use(prompt, **options):
            pass
        assert "\n" not in str(caught.value)
        assert torch.equal(rig.host.read(rig.unet, inputs), before)
    with rig.adapter.use(rig.prompt(1)) as handle:
        good = rig.host.read(rig.unet, inputs)
        for scale in (-1.0, 3.0, float("inf"), {"nowhere": 1.0}):
            with pytest.raises(ImagePromptError):
                handle.scale = scale
            assert torch.equal(rig.host.read(rig.unet, inputs), good)  # a refused scale is not set


def test_file_with_missing_tensors(tmp_path: Path) -> None:
    """Half a pair, no projector, an extra key: each refused when it is loaded."""
    unet = CASES["tiny"].unet()
    state = adapter_state(unet, AdapterCase(variant="base"), CASES["tiny"].cross_dim)
    half = dict(state["ip_adapter"])
    half.pop("3.to_v_ip.weight")
    extra = {**state["ip_adapter"], "3.to_w_ip.weight": half["3.to_k_ip.weight"].clone()}
    for name, broken in (
        ("half", {**state, "ip_adapter": half}),
        ("extra", {**state, "ip_adapter": extra}),
        ("no-projector", {"ip_adapter": state["ip_adapter"]}),
        ("no-sites", {"image_proj": state["image_proj"]}),
    ):
        with pytest.raises(ImagePromptError) as caught:
            ip.Adapter.load(write_adapter(broken, tmp_path / f"{name}.safetensors"))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
