"""A batch rounds as its pictures do alone: layers of every kind, and what is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import HunyuanDiTAttentionPool
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from test_engine import picture
from torch import Tensor, nn

import imageprompt as ip
from imageprompt.generation import many
from imageprompt.generation.batch_invariance import batch_invariant
from tiny_stack import make_pipeline

PICTURES = 9


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pipe_of(*modules: nn.Module) -> Any:
    """A pipeline with a model that holds these layers."""
    return SimpleNamespace(components={"unet": nn.ModuleList(modules), "scheduler": object()})


LAYERS = {
    "time": (lambda: nn.Linear(96, 384), (96,)),
    "few tokens": (lambda: nn.Linear(64, 96), (3, 64)),
    "text": (lambda: nn.Linear(64, 96), (77, 64)),
    "3x3": (lambda: nn.Conv2d(96, 96, 3, padding=1), (96, 8, 8)),
    "3x3, large": (lambda: nn.Conv2d(16, 16, 3, padding=1), (16, 40, 40)),
    "3x3, half": (lambda: nn.Conv2d(96, 96, 3, stride=2, padding=1), (96, 8, 8)),
    "5x5": (lambda: nn.Conv2d(16, 16, 5, padding=2), (16, 8, 8)),
    "1x1": (lambda: nn.Conv2d(96, 160, 1), (96, 8, 8)),
    "1x1, half": (lambda: nn.Conv2d(96, 160, 1, stride=2), (96, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(96, 96, 3, padding=1, groups=96), (96, 8, 8)),
    "groups": (lambda: nn.GroupNorm(32, 64), (64, 40, 40)),
    "groups, after attention": (lambda: GroupsLast(32, 64), (40, 40, 64)),
    "pooled text": (lambda: HunyuanDiTAttentionPool(24, 32, 4, 16), (24, 32)),
    "experts": (lambda: MOEFeedForwardSwiGLU(32, 64, 4, 2).eval(), (9, 32)),
}


class GroupsLast(nn.Module):
    """Normalises rows whose channels lie side by side, as those of attention do."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(-1, 1))
        return normed


@torch.no_grad()
@pytest.mark.parametrize("guided", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_rounds_as_alone(kind: str, guided: int, threads: int) -> None:
    torch.manual_seed(3)
    build, shape = LAYERS[kind]
    layer = build()
    rows = torch.randn(guided, PICTURES, *shape)  # the negative rows come first
    alone = torch.stack([layer(rows[:, n].contiguous()) for n in range(PICTURES)], 1)
    with batch_invariant(pipe_of(layer), PICTURES):
        together = layer(rows.flatten(0, 1))
    assert torch.equal(together, alone.flatten(0, 1))


@torch.no_grad()
def test_an_autoencoder_with_attention_rounds_as_alone(threads: int) -> None:
    torch.manual_seed(3)
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)
    rows = torch.randn(PICTURES, 4, 40, 40)
    alone = torch.cat([vae.decode(row[None]).sample for row in rows])
    assert not torch.equal(vae.decode(rows).sample, alone)
    with batch_invariant(pipe_of(vae), PICTURES):
        together = vae.decode(rows).sample
    assert torch.equal(together, alone)
    assert not any(one._forward_hooks for one in vae.modules())


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7])
def test_keys_and_values_of_prompts_round_as_alone(tokens: int, threads: int) -> None:
    torch.manual_seed(3)
    pipe = make_pipeline()
    adapter = ip.Adapter.create(
        "base", denoiser=pipe, encoder=pipe.image_encoder, num_tokens=tokens
    )
    adapter.attach(pipe)
    alone = [adapter.encode(features=torch.randn(1, 24)) for _ in range(3)]
    together = many._together(alone)
    for prompt in (*alone, together):
        adapter.precompute_kv(prompt)
    made = [one.precomputed_kv.key_values for one in (*alone, together)]
    for site, pair in made[-1].items():
        for index, rows in enumerate(pair):
            assert torch.equal(rows, torch.cat([one[site][index] for one in made[:-1]]))


@torch.no_grad()
def test_plain_layers_do_not() -> None:
    """Else the tests above show nothing."""
    torch.manual_seed(3)
    layer = nn.Linear(96, 384)
    rows = torch.randn(PICTURES, 96)
    alone = torch.cat([layer(row[None]) for row in rows])
    assert not torch.equal(layer(rows), alone)
    assert torch.allclose(layer(rows), alone, atol=1e-5)


def latents(engine: ip.Engine, requests: list[dict[str, Any]], **many_options: Any) -> Tensor:
    """What the autoencoder decodes, in float32."""
    kept: list[Tensor] = []
    vae = engine.loaded.pipe.vae
    with pytest.MonkeyPatch.context() as patch:
        decode = vae.decode

        def watched(z: Tensor, *args: Any, **options: Any) -> Any:
            decoded = decode(z, *args, **options)
            kept.extend((z.flatten(1), decoded[0].flatten(1)))
            return decoded

        patch.setattr(vae, "decode", watched)
        if many_options:
            engine.generate_many(requests, progress=False, **many_options)
        else:
            for request in requests:
                engine.generate(**request)
    return torch.cat([torch.cat(kept[0::2]), torch.cat(kept[1::2])], 1)


@pytest.mark.parametrize("base", ["bundled", "bundled-sd3"])
@pytest.mark.parametrize("guidance_scale", [1, 5])
def test_a_batch_equals_its_pictures_alone_in_every_float(base: str, guidance_scale: int) -> None:
    requests = [
        {
            "prompt": ("a star", "")[i % 2],
            "reference": picture(i % 3),
            "seed": i,
            "guidance_scale": guidance_scale,
            "steps": 2,
            "progress": False,
        }
        for i in range(PICTURES)
    ]
    engine = ip.Engine(base)
    alone = latents(engine, requests)
    together = latents(engine, requests, batch_size=PICTURES)
    assert torch.equal(alone, together)


def test_pictures_of_one_request_too() -> None:
    engine = ip.Engine()
    quick: dict[str, Any] = {"reference": picture(0), "steps": 2, "progress": False}
    made = engine.generate("a star", num_images=3, batch_size=3, seed=4, **quick)
    last = engine.generate("a star", seed=6, **quick)
    assert np.array_equal(np.asarray(made.images[2]), np.asarray(last.images[0]))


def test_layers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(96, 8)
    attention = nn.Module()
    attention.to_q = nn.Linear(8, 8)
    copies = []
    with suppress(KeyboardInterrupt), batch_invariant(pipe_of(layer, attention), 2):
        assert type(layer) is not nn.Linear
        assert type(attention.to_q) is nn.Linear  # caches and LoRA need it to be plain
        copies.append(copy.deepcopy(layer))
        raise KeyboardInterrupt
    assert type(layer) is nn.Linear
    rows = torch.randn(4, 96)
    assert torch.equal(copies[0](rows), layer(rows))
    assert many.rounding_as_alone(None, 1).__enter__() is None  # nothing to do for one


def test_one_model_in_two_places() -> None:
    model = nn.Sequential(nn.Linear(96, 8))
    pipe = SimpleNamespace(components={"text_encoder": model, "text_encoder_2": model})
    with batch_invariant(pipe, 2):
        assert type(model[0]) is not nn.Linear
    assert type(model[0]) is nn.Linear


def test_a_compiled_model_is_left_alone() -> None:
    inner, by_itself = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))
    by_itself.compile(backend="eager")
    for compiled in (torch.compile(nn.Sequential(inner), backend="eager"), by_itself):
        with batch_invariant(pipe_of(compiled), 4):
            assert {type(one) for one in (inner, by_itself[0])} == {nn.Linear}


def test_other_precisions_are_left_alone() -> None:
    layer = nn.Linear(8, 8, dtype=torch.bfloat16)
    rows = torch.randn(4, 8, dtype=torch.bfloat16)
    calls: list[int] = []
    expected = layer(rows)
    layer.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    with batch_invariant(pipe_of(layer), 4):
        assert torch.equal(layer(rows), expected)
    assert calls == [4]
