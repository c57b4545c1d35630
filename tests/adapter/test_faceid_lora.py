"""LoRA of FaceID adapters, live and merged: beside other LoRA, in any order, restored exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faceid import features, inputs, make, null, read
from torch import Tensor

from imageprompt.core.errors import AttachError, OptionError
from rigs import difference
from tiny_stack import make_pipeline

MODES = ("live", "merged")
pytestmark = pytest.mark.filterwarnings("ignore:Already (found a|unmerged):UserWarning")


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    return inputs("sd15")


def frozen(variant: str = "faceid", seed: int = 0, host: str = "sd15") -> tuple[Any, Any]:
    pipe, adapter = make(host, variant, seed)
    adapter.module.requires_grad_(False)
    return pipe, adapter


def prompt_of(adapter: Any, seed: int = 5) -> Any:
    return adapter.encode(features=features("faceid", seed=seed))


def bits(unet: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def same_bits(unet: Any, before: dict[str, Tensor]) -> bool:
    now = unet.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


# ── merged ───────────────────────────────────────────────────────────────────────────────────────


def test_merged_in_inference_mode(given: dict[str, Any]) -> None:
    pipe, adapter = frozen()
    adapter.attach(pipe, lora="merged")
    before, prompt, found = bits(pipe.unet), prompt_of(adapter), []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), adapter.use(prompt) as handle:
            found.append([read(pipe.unet, given)])
            handle.lora = 0.3
            found[-1].append(read(pipe.unet, given))
        assert same_bits(pipe.unet, before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    adapter.detach()


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_merged_equals_live_and_the_weights_are_restored(
    dtype: torch.dtype, close: float, given: dict[str, Any]
) -> None:
    pipe, adapter = frozen("faceid-plus-v2")
    pipe.unet.to(dtype)
    given = {k: v.to(dtype) if k in ("sample", "encoder_hidden_states") else v
             for k, v in given.items()}  # fmt: skip
    before, base = bits(pipe.unet), read(pipe.unet, given)
    found: dict[str, list[Tensor]] = {}
    for mode in MODES:
        adapter.attach(pipe, lora=mode)
        assert same_bits(pipe.unet, before)
        kind = "faceid-plus-v2"
        prompt = adapter.encode(features=features(kind), null_features=null(kind))
        with adapter.use(prompt, scale=0.7) as handle:
            found[mode] = [read(pipe.unet, given)]
            assert same_bits(pipe.unet, before) is (mode == "live")
            for lora in (0.3, 0.0, 2.0):
                handle.lora = lora
                found[mode].append(read(pipe.unet, given))
                assert lora != 0 or same_bits(pipe.unet, before)
            handle.scale = 0.0
            assert torch.equal(read(pipe.unet, given), base)
            assert same_bits(pipe.unet, before)
            handle.scale = {"style": 0.5}
            found[mode].append(read(pipe.unet, given))
        assert same_bits(pipe.unet, before)
        adapter.detach()
    for live, merged in zip(*found.values(), strict=True):
        assert difference(live, merged) <= close
    assert difference(found["live"][0], found["live"][1]) > close


@pytest.mark.parametrize("within", [True, False])
def test_detaching_restores_the_weights(within: bool, given: dict[str, Any]) -> None:
    pipe, adapter = frozen()
    before = bits(pipe.unet)
    adapter.attach(pipe, lora="merged")
    with pytest.raises(ZeroDivisionError), adapter.use(prompt_of(adapter)):  # noqa: PT012
        read(pipe.unet, given)
        assert not same_bits(pipe.unet, before)
        if within:
            adapter.detach()
            assert same_bits(pipe.unet, before)
        1 / 0  # noqa: B018
    assert same_bits(pipe.unet, before)
    adapter.detach()
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_the_base_is_cast_while_lora_is_merged(given: dict[str, Any]) -> None:
    pipe, adapter = frozen()
    expected = {name: tensor.half() for name, tensor in bits(pipe.unet).items()}
    adapter.attach(pipe, lora="merged")
    with adapter.use(prompt_of(adapter)) as outer:
        read(pipe.unet, given)
        with adapter.use(prompt_of(adapter, 6), lora=1.5):
            read(pipe.unet, given)
        assert outer.lora == 1.0
        pipe.unet.half()
        assert not same_bits(pipe.unet, expected)
    assert same_bits(pipe.unet, expected)
    adapter.detach()


def test_merged_adapters_leave_in_any_order(given: dict[str, Any]) -> None:
    pipe, one = frozen()
    _, two = frozen(seed=3)
    before, found = bits(pipe.unet), {}
    for mode in MODES:
        one.attach(pipe, lora=mode)
        two.attach(pipe, lora=mode)
        with one.use(prompt_of(one)) as first, two.use(prompt_of(two)):
            both = read(pipe.unet, given)
            first.lora = 0.0
            found[mode] = (both, read(pipe.unet, given))
            first.lora = 1.0
            assert difference(read(pipe.unet, given), both) <= 1e-6
            one.detach()
            alone = read(pipe.unet, given)
        assert difference(both, alone) > 1e-3
        assert same_bits(pipe.unet, before)
        two.detach()
    for live, merged in zip(*found.values(), strict=True):
        assert difference(live, merged) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_two_uses_of_one_adapter_take_the_strongest_lora(mode: str, given: dict[str, Any]) -> None:
    """In either order, and never the sum of both."""
    pipe, adapter = frozen()
    adapter.attach(pipe, lora=mode)
    prompt = prompt_of(adapter)

    def output(outer: float, inner: float) -> Tensor:
        with adapter.use(prompt, scale=0.4, lora=outer), adapter.use(prompt, 0.4, lora=inner):
            return read(pipe.unet, given)

    strong, weak = output(0.7, 0.7), output(0.3, 0.3)
    assert difference(strong, weak) > 1e-3
    for outer, inner in ((0.7, 0.3), (0.3, 0.7), (0.7, 0.0), (0.0, 0.7)):
        assert difference(output(outer, inner), strong) <= 1e-6, (outer, inner)
    adapter.detach()


def test_it_follows_a_schedule_through_a_pipeline() -> None:
    """Off again half-way; the cached text is computed anew where weights change."""
    pipe, adapter = frozen()
    pipe.set_progress_bar_config(disable=True)
    before, found = bits(pipe.unet), {}
    for mode in MODES:
        adapter.attach(pipe, lora=mode)
        for schedule in ("0-0.5", "0-1"):
            generator = torch.Generator().manual_seed(0)
            with adapter.use(prompt_of(adapter), schedule=schedule):
                found[mode, schedule] = pipe(
                    "a star", num_inference_steps=4, output_type="pt", generator=generator
                ).images
                assert same_bits(pipe.unet, before) is (mode == "live" or schedule == "0-0.5")
        adapter.detach()
    for schedule in ("0-0.5", "0-1"):
        assert difference(found["live", schedule], found["merged", schedule]) <= 1e-5
    assert difference(found["live", "0-0.5"], found["live", "0-1"]) > 1e-4


def test_merged_under_compile(given: dict[str, Any]) -> None:
    """Weights are written between graphs: live changes act and recompile nothing."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    pipe, adapter = frozen(host="one layer")
    base, strengths = read(pipe.unet, given), (1.0, 0.3, 0.0, 0.6)
    found, counter = {}, CompileCounterWithBackend("eager")
    models = {"live": pipe.unet, "merged": torch.compile(pipe.unet, backend=counter)}
    for mode, model in models.items():
        adapter.attach(pipe, lora=mode)
        found[mode], counts = [], []
        with adapter.use(prompt_of(adapter), scale=0.7) as handle:
            for handle.lora in strengths:
                found[mode].append(read(model, given))
                counts.append(counter.frame_count)
            handle.scale = 0.0
            assert difference(read(model, given), base) <= 1e-6
        adapter.detach()
    assert counts[0] > 0
    assert len(set(counts)) == 1
    for live, merged in zip(*found.values(), strict=True):
        assert difference(live, merged) <= 1e-5
    torch._dynamo.reset()


def test_what_a_step_costs(given: dict[str, Any]) -> None:
    """Live: three operations per linear layer. Merged: none, and the text stays cached."""
    from ops import first_and_later

    pipe, adapter = frozen()

    def later() -> int:
        return first_and_later(lambda t: read(pipe.unet, given | {"timestep": t}))[1].total()

    def used(mode: str, lora: float) -> int:
        adapter.attach(pipe, lora=mode)
        with adapter.use(prompt_of(adapter), lora=lora):
            found = later()
        adapter.detach()
        return found

    without = used("merged", 0.0)
    linears = sum(len(loras) for loras in adapter.module.loras.values())
    sites = len([name for name in pipe.unet.attn_processors if ".attn2." in name])
    assert used("merged", 1.0) == without
    assert used("live", 1.0) == without + 3 * linears + 2 * sites  # its k and v are not cached


def refusals() -> dict[str, tuple[Callable[[Any, Any], Any], str]]:
    def quantised(pipe: Any, _: Any) -> None:
        class Linear4bit(torch.nn.Linear):
            pass

        layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
        layer.to_q.__class__ = Linear4bit

    def eight_bits(pipe: Any, _: Any) -> None:
        layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), False)

    def cast_at_each_call(pipe: Any, _: Any) -> None:
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16)

    return {
        "quantised": (quantised, "quantised or computed .Linear4bit"),
        "eight bits": (eight_bits, "quantised .torch.float8_e4m3fn"),
        "cast": (cast_at_each_call, "cast at each call"),
        "offloaded": (lambda pipe, _: pipe.unet.to("meta"), "offloaded layer by layer"),
        "parametrised": (
            lambda pipe, _: torch.nn.utils.parametrizations.weight_norm(
                pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
            ),
            "quantised or computed",
        ),
        "trained": (
            lambda _, adapter: adapter.module.requires_grad_(True),
            "trained together with it",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_merged_exactly_is_refused(name: str) -> None:
    change, says = refusals()[name]
    pipe, adapter = frozen()
    change(pipe, adapter)
    with pytest.raises(AttachError, match=says) as caught:
        adapter.attach(pipe, lora="merged")
    assert "Use lora='live'" in str(caught.value)
    assert not adapter.attached
    assert not pipe.unet._forward_pre_hooks


def test_offloaded_after_it_was_attached(given: dict[str, Any]) -> None:
    pipe, adapter = frozen()
    adapter.attach(pipe, lora="merged")
    prompt = prompt_of(adapter)
    pipe.unet.enable_group_offload("cpu", torch.device("cpu"), "leaf_level")
    with pytest.raises(AttachError, match="offloaded"), adapter.use(prompt):
        read(pipe.unet, given)
    adapter.detach()


def test_offloaded_while_lora_is_merged(given: dict[str, Any]) -> None:
    """Live changes are refused, and at the end the base has its own weights again."""
    pipe, adapter = frozen()
    before, base = bits(pipe.unet), read(pipe.unet, given)
    adapter.attach(pipe, lora="merged")
    with adapter.use(prompt_of(adapter)) as handle:
        merged = read(pipe.unet, given)
        pipe.unet.enable_group_offload("cpu", torch.device("cpu"), "leaf_level")
        assert difference(read(pipe.unet, given), merged) <= 1e-6
        handle.lora = 0.3
        with pytest.raises(AttachError, match="offloaded"):
            read(pipe.unet, given)
    assert same_bits(pipe.unet, before)
    assert torch.equal(read(pipe.unet, given), base)
    adapter.detach()


@pytest.mark.parametrize("mode", MODES)
def test_blocks_compiled_one_by_one(mode: str, given: dict[str, Any]) -> None:
    """`compile_repeated_blocks(fullgraph=True)`: equal to eager; live changes recompile nothing."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter, found, counts = CompileCounterWithBackend("eager"), [], []
    for compiled in (False, True):
        pipe, adapter = frozen(host="one layer")
        adapter.attach(pipe, lora=mode)
        if compiled:
            pipe.unet.compile_repeated_blocks(fullgraph=True, backend=counter)
        with adapter.use(prompt_of(adapter), scale=0.7) as handle:
            for handle.lora in (1.0, 0.3, 0.0, 0.6):
                found.append(read(pipe.unet, given))
                counts.append(counter.frame_count)
        adapter.detach()
    for eager, ours in zip(found[:4], found[4:], strict=True):
        assert difference(ours, eager) <= 1e-5
    assert difference(found[0], found[2]) > 1e-4
    assert counts[4] > 0
    assert len(set(counts[4:])) == 1
    torch._dynamo.reset()


def test_invalid_modes() -> None:
    import imageprompt as ip

    pipe, adapter = frozen()
    with pytest.raises(OptionError, match="'live' or 'merged'"):
        adapter.attach(pipe, lora="fused")
    plus = ip.Adapter.create("plus", denoiser=pipe.unet, encoder=pipe.image_encoder, depth=1)
    with pytest.raises(OptionError, match="no LoRA"):
        plus.attach(pipe, lora="merged")
    assert [adapter.attached, plus.attached] == [False, False]


# ── beside the user's own ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA file for the tiny stack, as diffusers writes it."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    unet = make_pipeline().unet
    torch.manual_seed(7)
    targets = ["to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "mine")
    folder = tmp_path_factory.mktemp("lora")
    layers = get_peft_model_state_dict(unet, adapter_name="mine")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


class Scene:
    """A pipeline, the user's LoRA and a FaceID adapter, with the output of each combination."""

    def __init__(self, own: Path, given: dict[str, Any]) -> None:
        self.pipe, self.adapter = frozen()
        self.own, self.given = own, given
        self.plain = self.read()
        fused = copy.deepcopy(self.pipe)
        fused.load_lora_weights(own, adapter_name="mine")
        fused.fuse_lora()
        self.mine = read(fused.unet, given)
        self.both = self.with_face(fused)
        self.face = self.with_face(self.pipe)

    def read(self) -> Tensor:
        return read(self.pipe.unet, self.given)

    def with_face(self, pipe: Any) -> Tensor:
        self.adapter.attach(pipe)
        with self.adapter.use(prompt_of(self.adapter)):
            found = read(pipe.unet, self.given)
        self.adapter.detach()
        return found

    def used(self) -> Tensor:
        with self.adapter.use(prompt_of(self.adapter)):
            return self.read()

    def load(self) -> None:
        self.pipe.load_lora_weights(self.own, adapter_name="mine")


@pytest.fixture
def scene(own: Path, given: dict[str, Any]) -> Scene:
    return Scene(own, given)


@pytest.mark.sample(2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["own", "face"])
def test_they_come_and_go_in_any_order(first: str, mode: str, scene: Scene) -> None:
    adapter, pipe, close = scene.adapter, scene.pipe, 1e-5
    if first == "own":
        scene.load()
    adapter.attach(pipe, lora=mode)
    if first == "face":
        scene.load()
    assert difference(scene.read(), scene.mine) <= close
    assert difference(scene.used(), scene.both) <= close
    pipe.disable_lora()
    assert difference(scene.used(), scene.face) <= close
    pipe.enable_lora()
    with_mine = scene.read()
    pipe.unload_lora_weights()  # removes peft's wrappers, around the layers with our hooks
    assert difference(scene.used(), scene.face) <= close
    assert torch.equal(scene.read(), scene.plain)
    scene.load()
    assert difference(scene.used(), scene.both) <= close
    adapter.detach()
    assert torch.equal(scene.read(), with_mine)
    pipe.unload_lora_weights()
    assert torch.equal(scene.read(), scene.plain)


@pytest.mark.parametrize("mode", MODES)
def test_fused_before_and_unfused_while_attached(mode: str, scene: Scene) -> None:
    scene.load()
    scene.pipe.fuse_lora()
    scene.adapter.attach(scene.pipe, lora=mode)
    assert difference(scene.used(), scene.both) <= 1e-5
    scene.pipe.unfuse_lora()
    scene.pipe.disable_lora()
    assert difference(scene.used(), scene.face) <= 1e-5
    scene.adapter.detach()
    assert difference(scene.read(), scene.plain) <= 1e-5  # unfusing rounds


def test_fused_while_lora_is_merged(scene: Scene) -> None:
    """A foreign change of merged weights is noticed by their bits and kept, with a warning."""
    scene.load()
    scene.adapter.attach(scene.pipe, lora="merged")

    def fuse_within() -> Tensor:
        with scene.adapter.use(prompt_of(scene.adapter)):
            scene.read()
            scene.pipe.fuse_lora()
            return scene.read()

    with pytest.warns(UserWarning, match="weights were changed while a LoRA was merged"):
        both = fuse_within()
    assert difference(both, scene.both) <= 1e-5
    assert difference(scene.read(), scene.mine) <= 1e-5
    scene.adapter.detach()
    assert difference(scene.read(), scene.mine) <= 1e-5
