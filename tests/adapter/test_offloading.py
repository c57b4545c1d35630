"""The base moves after attach, or its weights are elsewhere: LoRA, K' and V' follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_faceid import features, inputs, make, read
from torch.utils._python_dispatch import TorchDispatchMode

import imageprompt as ip
from imageprompt.core.errors import AttachError
from rigs import difference

CPU = torch.device("cpu")


def sequential(pipe: Any, tmp: str) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, CPU)


def model(pipe: Any, tmp: str) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(pipe.unet, CPU)


def group(pipe: Any, tmp: str) -> None:
    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def group_on_disk(pipe: Any, tmp: str) -> None:
    pipe.unet.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level", offload_to_disk_path=tmp
    )


OFFLOADS: dict[str, Callable[[Any, str], None]] = {
    each.__name__: each for each in (sequential, model, group, group_on_disk)
}


def result(adapter: Any, pipe: Any, prompt: Any, dtype: torch.dtype = torch.float32) -> Any:
    given = {
        name: value.to(dtype) if name in ("sample", "encoder_hidden_states") else value
        for name, value in inputs("sd15").items()
    }
    with adapter.use(prompt):
        return read(pipe.unet, given)


def frozen() -> tuple[Any, Any, Any]:
    pipe, adapter = make("sd15", "faceid")
    adapter.module.requires_grad_(False)
    return pipe, adapter, adapter.encode(features=features("faceid"))


@pytest.mark.sample(3)
@pytest.mark.parametrize("order", ["before attach", "after attach"])
@pytest.mark.parametrize("offload", OFFLOADS)
def test_live_lora_under_offloading(offload: str, order: str, tmp_path: Any) -> None:
    pipe, adapter, prompt = frozen()
    expected = result(adapter.attach(pipe), pipe, prompt)
    adapter.detach()
    if order == "after attach":
        adapter.attach(pipe)
    OFFLOADS[offload](pipe, str(tmp_path))
    if order == "before attach":
        adapter.attach(pipe)
    assert all(parameter.device == CPU for parameter in adapter.parameters())
    for _ in range(2):
        assert torch.equal(result(adapter, pipe, prompt), expected)
    adapter.detach()


@pytest.mark.parametrize("lora", ["live", "merged"])
def test_the_base_changes_its_precision_after_attach(lora: Any) -> None:
    pipe, adapter, prompt = frozen()
    adapter.attach(pipe, lora=lora)
    first = result(adapter, pipe, prompt)
    pipe.unet.to(torch.float64)
    wide = result(adapter, pipe, prompt, torch.float64)
    assert wide.dtype == torch.float64
    assert difference(wide.float(), first) <= 1e-5
    pipe.unet.to(torch.float32)
    assert torch.equal(result(adapter, pipe, prompt), first)


class Casts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_lora_is_cast_once_and_anew_after_a_write() -> None:
    pipe, adapter, prompt = frozen()
    pipe.unet.to(torch.float64)
    adapter.attach(pipe)
    given = {k: v.double() if v is not None and k in ("sample", "encoder_hidden_states") else v
             for k, v in inputs("sd15").items()}  # fmt: skip
    with adapter.use(prompt):
        first = read(pipe.unet, given)
        with Casts() as again:
            assert torch.equal(read(pipe.unet, given), first)
        loras = [each for kinds in adapter.module.loras.values() for each in kinds.values()]
        assert again.count <= len(loras) + 4  # the strength at each layer, no weight
        with torch.no_grad():
            for lora in loras:
                lora.up.weight.mul_(3)
        written = read(pipe.unet, given)
        assert difference(written, first) > 1e-4
    for lora in loras:
        lora.up.weight.data.div_(3)
    with adapter.use(prompt):
        assert difference(read(pipe.unet, given), first) < 1e-6


# ── created and attached where the weights are not ───────────────────────────────────────────────


@pytest.mark.parametrize("offload", OFFLOADS)
def test_create_reads_offloaded_weights(offload: str, tmp_path: Any) -> None:
    pipe, _, _ = frozen()
    plain = ip.Adapter.create("base", denoiser=pipe.unet, encoder=pipe.image_encoder)
    OFFLOADS[offload](pipe, str(tmp_path))
    made = ip.Adapter.create("base", denoiser=pipe, encoder=pipe.image_encoder)
    expected = plain.module.ip_adapter.state_dict()
    found = made.module.ip_adapter.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(parameter.device == CPU for parameter in made.parameters())


def test_a_base_whose_weights_were_never_loaded() -> None:
    pipe, adapter, _ = frozen()
    unet = pipe.unet.to("meta")
    for call in (
        lambda: ip.Adapter.create("base", denoiser=unet, encoder=pipe.image_encoder),
        lambda: adapter.attach(unet),
    ):
        with pytest.raises(AttachError, match=r"meta device.*Load the weights"):
            call()
    assert not adapter.attached


# ── interrupts ───────────────────────────────────────────────────────────────────────────────────


class Interrupts(TorchDispatchMode):
    """Raises at operations `at`, counted from 0."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 in self.at:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def bits(unet: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def test_merged_lora_after_an_interrupt_at_any_operation(monkeypatch: Any) -> None:
    pipe, adapter, _ = frozen()
    before, weights = bits(pipe.unet), dict(pipe.unet.state_dict())
    adapter.attach(pipe, lora="merged")
    merged = adapter._attachment.lora
    merged._pairs = merged._pairs[:3]  # every layer has the same operations
    strength: list[Any] = [None]
    monkeypatch.setattr(merged._state, "lora_strength", lambda owner: strength[0])

    def update(number: float | None) -> None:
        strength[0] = None if number is None else torch.tensor(number)
        merged.update()

    def a_loop() -> None:
        """What `use()` does: begin, change the strength, and end, whatever happened."""
        try:
            update(0.5)
            update(1.0)
        finally:
            update(None)

    def wrong() -> list[str]:
        return [name for name in before if not torch.equal(weights[name], before[name])]

    with Interrupts() as whole:  # none: it counts
        a_loop()
    assert not wrong()
    assert whole.count > 3 * 9
    for k in range(whole.count):
        with pytest.raises(KeyboardInterrupt), Interrupts(k):
            a_loop()
        assert not wrong(), k
        for then in (range(k, k + 2), (k, k + 4), range(k, k + 60)):  # while it is put back, too
            with pytest.raises(KeyboardInterrupt), Interrupts(*then):
                a_loop()
            update(None)  # as before the next call of the denoiser, at the next use and detach()
            assert not wrong(), then
    update(0.7)
    assert len(wrong()) == 3
    adapter.detach()
    assert not wrong()


@pytest.mark.parametrize("when", ["in use", "at its end"])
def test_an_interrupted_use_leaves_the_base(when: str) -> None:
    pipe, adapter, prompt = frozen()
    before = bits(pipe.unet)
    adapter.attach(pipe, lora="merged")
    mode = Interrupts(40)

    def use() -> None:
        with adapter.use(prompt):
            read(pipe.unet, inputs("sd15"))
            if when == "in use":
                raise KeyboardInterrupt
            mode.__enter__()

    with pytest.raises(KeyboardInterrupt):
        use()
    if when == "at its end":
        mode.__exit__(None, None, None)
    assert all(torch.equal(tensor, before[n]) for n, tensor in pipe.unet.state_dict().items())
    expected = result(adapter.attach(pipe, lora="live"), pipe, prompt)
    adapter.attach(pipe, lora="merged")
    assert difference(result(adapter, pipe, prompt), expected) < 1e-5
