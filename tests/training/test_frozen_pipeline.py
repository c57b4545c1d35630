"""The frozen half of training: precision, prompts of every base, blocks, recomputation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import imageprompt as ip
from imageprompt.core.errors import OptionError
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.memory import cpu_attention
from imageprompt.training.memory.activation_checkpointing import recompute_blocks
from tiny_stack import make_pipeline, make_xl_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kept = {}
    for name, make in (("sd", make_pipeline), ("xl", make_xl_pipeline)):
        torch.manual_seed(0)
        kept[name] = tmp_path_factory.mktemp(name)
        pipe = make()
        pipe.save_pretrained(kept[name])
        config = kept[name] / "vae" / "config.json"
        told = json.loads(config.read_text())
        assert told.pop("force_upcast")  # published SD1.5 says nothing of it, SDXL does
        if name == "sd":
            config.write_text(json.dumps(told))
    return kept


def test_everything_is_frozen_in_the_precision_asked_for(folders: dict[str, Path]) -> None:
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
def test_attention_in_blocks_is_attention(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "BLOCK", 2**16)
    gen = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 300, 16, generator=gen).bfloat16() for _ in range(4)]
    parts[0] = parts[0] * spread
    exact = attention(
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask),
        *parts,
        dtype=torch.float64,
    )
    for ours, wanted in zip(
        attention(cpu_attention.blocked_kernel, *parts, dtype=torch.bfloat16), exact, strict=True
    ):
        assert float((ours - wanted).norm() / wanted.norm()) < 0.012


def test_a_score_that_stands_out_leaves_no_infinity() -> None:
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
def test_recomputation_changes_no_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    pipe = make_pipeline()
    unet = pipe.unet.to(dtype).eval().requires_grad_(False)
    cpu_attention.compute_in_blocks(unet)
    adapter = ip.Adapter.create("base", denoiser=unet, encoder=pipe.image_encoder).attach(unet)
    side = 48  # 2 x 576 positions in the blocks of half size
    ran: list[int] = []
    unet.down_blocks[1].attentions[0].transformer_blocks[0].norm3.register_forward_hook(
        lambda *_: ran.append(1)
    )
    loss, plain = gradients(unet, adapter, side)
    assert len(ran) == 1
    recompute_blocks(unet)
    again, recomputed = gradients(unet, adapter, side)
    assert len(ran) == 3
    assert torch.equal(loss, again)
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_what_training_does_to_a_base_leaves_the_adapters_free() -> None:
    pipe = make_pipeline()
    cpu_attention.compute_in_blocks(pipe.unet)
    before = dict(pipe.unet.attn_processors)
    adapter = ip.Adapter.create("base", denoiser=pipe.unet, encoder=pipe.image_encoder)
    adapter.attach(pipe)
    adapter.detach()
    assert dict(pipe.unet.attn_processors) == before
