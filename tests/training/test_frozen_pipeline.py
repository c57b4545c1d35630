"""The frozen part of training: precision, text encoding, blocked attention, checkpointing."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import imageprompt as ip
from imageprompt.core.errors import OptionError
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.memory import cpu_attention
from imageprompt.training.memory.activation_checkpointing import enable_selective_checkpointing
from tiny_stack import make_pipeline, make_xl_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, make in (("sd", make_pipeline), ("xl", make_xl_pipeline)):
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        pipe = make()
        pipe.save_pretrained(folders[name])
        config = folders[name] / "vae" / "config.json"
        content = json.loads(config.read_text())
        assert content.pop("force_upcast")  # published SDXL has it, SD1.5 does not
        if name == "sd":
            config.write_text(json.dumps(content))
    return folders


def test_everything_is_frozen_in_the_requested_precision(folders: dict[str, Path]) -> None:
    base = FrozenPipeline.load(folders["sd"], precision="bf16")
    models = [part for part in base.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(models) == 4
    for model in models:
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in model.parameters())
    assert base.encoder is not None
    assert base.encoder.width("image_embeds") == 24


def test_a_vae_that_overflows_keeps_its_own_weights(folders: dict[str, Path]) -> None:
    base = FrozenPipeline.load(folders["xl"], precision="fp16")
    exact = FrozenPipeline.load(folders["xl"], precision="no")
    assert base.denoiser.dtype is torch.float16
    for ours, theirs in zip(base.pipe.vae.parameters(), exact.pipe.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "width"), [("sd", 32), ("xl", 64)])
def test_prompts_are_encoded_as_in_generation(
    name: str, width: int, folders: dict[str, Path]
) -> None:
    base = FrozenPipeline.load(folders[name], precision="no")
    states, added = base.encode_text(["a star", ""])
    assert states.shape == (2, 16, width)
    tokens = base.pipe.tokenizer(["a star", ""], padding="max_length", return_tensors="pt")
    out = base.pipe.text_encoder(tokens.input_ids, output_hidden_states=True)
    if name == "sd":
        torch.testing.assert_close(states, out.last_hidden_state)
        assert added == {}
    else:
        second = base.pipe.text_encoder_2(tokens.input_ids, output_hidden_states=True)
        torch.testing.assert_close(states[..., :32], out.hidden_states[-2])
        torch.testing.assert_close(states[..., 32:], second.hidden_states[-2])
        torch.testing.assert_close(added["text_embeds"], second.text_embeds)


def test_an_unknown_precision_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="fp8"):
        FrozenPipeline.load(folders["sd"], precision="fp8")  # type: ignore[arg-type]


def attention(kernel: Any, *parts: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of q, k and v, for a fixed gradient of the result."""
    *qkv, grad = [x.to(dtype) for x in parts]
    qkv = [x.requires_grad_() for x in qkv]
    out = kernel(*qkv, None)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, qkv, grad))]


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_blocked_attention_is_attention(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "BLOCK", 2**16)
    gen = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 300, 16, generator=gen).bfloat16() for _ in range(4)]
    parts[0] = parts[0] * spread
    exact = attention(
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask),
        *parts,
        dtype=torch.float64,
    )
    for ours, expected in zip(
        attention(cpu_attention.blocked_kernel, *parts, dtype=torch.bfloat16), exact, strict=True
    ):
        assert float((ours - expected).norm() / expected.norm()) < 0.012


def test_a_large_score_outside_the_sampled_keys_does_not_overflow() -> None:
    q = torch.zeros(1, 1, 256, 16, dtype=torch.bfloat16)
    k = torch.zeros_like(q)
    q[..., 0], k[0, 0, 3, 0] = 40.0, 40.0  # key 3 is not among the sampled ones
    v = torch.randn(1, 1, 256, 16).bfloat16()
    out = cpu_attention.blocked_kernel(q.requires_grad_(), k, v, None)
    torch.testing.assert_close(out, v[:, :, 3:4].expand_as(out))


def gradients(unet: Any, adapter: Any, side: int) -> tuple[Tensor, list[Tensor]]:
    gen = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, side, side, generator=gen)
    text = torch.randn(2, 7, 32, generator=gen)
    adapter.module.zero_grad()
    tokens = adapter.project(torch.randn(2, 24, generator=gen))
    with adapter.use(ImagePrompt(tokens), guidance="none"):
        out = unet(
            latents.to(unet.dtype), torch.tensor([7, 500]), text.to(unet.dtype), return_dict=False
        )[0]
        loss = out.float().square().mean()
        loss.backward()
    return loss.detach(), [p.grad.clone() for p in adapter.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    pipe = make_pipeline()
    unet = pipe.unet.to(dtype).eval().requires_grad_(False)
    cpu_attention.use_blocked_attention(unet)
    adapter = ip.Adapter.create("base", denoiser=unet, encoder=pipe.image_encoder).attach(unet)
    side = 48  # 2 x 576 positions in the blocks of half size
    ran: list[int] = []
    unet.down_blocks[1].attentions[0].transformer_blocks[0].norm3.register_forward_hook(
        lambda *_: ran.append(1)
    )
    loss, plain = gradients(unet, adapter, side)
    assert len(ran) == 1
    enable_selective_checkpointing(unet)
    checkpointed_loss, checkpointed = gradients(unet, adapter, side)
    assert len(ran) == 3
    assert torch.equal(loss, checkpointed_loss)
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_detach_restores_the_processors_of_blocked_attention() -> None:
    pipe = make_pipeline()
    cpu_attention.use_blocked_attention(pipe.unet)
    before = dict(pipe.unet.attn_processors)
    adapter = ip.Adapter.create("base", denoiser=pipe.unet, encoder=pipe.image_encoder)
    adapter.attach(pipe)
    adapter.detach()
    assert dict(pipe.unet.attn_processors) == before


class Placed(nn.Module):
    """Tells where it is; no such device is needed here."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def to(self, device: Any) -> Placed:
        self.device = torch.device(device)
        return self


@pytest.mark.parametrize("online", [False, True])
def test_what_a_cache_makes_idle_waits_in_main_memory(online: bool) -> None:
    names = ("vae", "text_encoder", "unet", "image_encoder")
    parts = {name: Placed("cuda") for name in names}
    pipe = SimpleNamespace(components={**parts, "tokenizer": object()})
    encoder: Any = SimpleNamespace(model=parts["image_encoder"])
    host: Any = None
    base = FrozenPipeline(pipe, parts["unet"], None, encoder, host)
    base.park(encoder=not online)
    parked = {name: part.device.type for name, part in parts.items()}
    expected = {"vae": "cpu", "text_encoder": "cpu", "unet": "cuda"}
    assert parked == expected | {"image_encoder": "cuda" if online else "cpu"}
    with suppress(KeyError), base.unparked():
        assert {part.device.type for part in parts.values()} == {"cuda"}
        raise KeyError
    assert {name: part.device.type for name, part in parts.items()} == parked
