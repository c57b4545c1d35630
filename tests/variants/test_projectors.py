"""Projectors against their formulas in float64, and the tensor names of the published files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import formulas
from hosts_table import AdapterCase
from imageprompt.variants._projectors import (
    FacePerceiver,
    LinearProjector,
    MLPProjector,
    Resampler,
    TimeResampler,
    TokenMLP,
)

TOLERANCE = 1e-10
SINGLE = 1e-5  # where weights went through float32
OUT = 24


def _state(case: AdapterCase) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(11)
    return {k: v.double() for k, v in case.image_proj(OUT, gen).items()}


def _check(module: torch.nn.Module, case: AdapterCase) -> None:
    """Load strictly by the names in files, then compare three pictures with the formula."""
    state = _state(case)
    module.double().load_state_dict(state, strict=True)
    features = case.features(3).double()
    found = module(features)
    expected = torch.stack([formulas.tokens(case.variant, state, f) for f in features])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
@pytest.mark.parametrize(("heads", "width"), [(1, 48), (3, 32)])
def test_resampler_of_any_depth(depth: int, heads: int, width: int) -> None:
    case = AdapterCase(variant="plus", tokens=5, depth=depth, heads=heads, width=width)
    module = Resampler(case.feature, OUT, 5, depth=depth, heads=heads, inner_dim=width)
    _check(module, case)


@pytest.mark.parametrize("tokens", [1, 2, 4, 16])
def test_linear_with_any_number_of_tokens(tokens: int) -> None:
    case = AdapterCase(variant="base", tokens=tokens)
    _check(LinearProjector(case.feature, OUT, tokens), case)


@pytest.mark.parametrize("positions", [1, 9, 257])
def test_mlp_keeps_every_position(positions: int) -> None:
    case = AdapterCase(variant="full", sequence=positions)
    _check(MLPProjector(case.feature, OUT), case)


def test_resampler_names() -> None:
    """The keys of a published Plus file."""
    module = Resampler(20, OUT, 5, depth=2, heads=1, inner_dim=48)
    block = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    block += ["to_q.weight", "to_kv.weight", "to_out.weight"]
    expected = {"latents", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"}
    expected |= {"norm_out.weight", "norm_out.bias"}
    for i in range(2):
        expected |= {f"layers.{i}.0.{key}" for key in block}
        expected |= {
            f"layers.{i}.1.{key}" for key in ("0.weight", "0.bias", "1.weight", "3.weight")
        }
    assert set(module.state_dict()) == expected


def test_half_precision_stays_close() -> None:
    """bfloat16 tokens are the float32 ones to half-precision accuracy, and finite."""
    case = AdapterCase(variant="plus", tokens=5, depth=4, heads=2, width=48)
    state = _state(case)
    module = Resampler(case.feature, OUT, 5, depth=4, heads=2, inner_dim=48)
    module.load_state_dict({k: v.float() for k, v in state.items()})
    features = case.features(2)
    with torch.no_grad():
        full = module(features)
        half = module.bfloat16()(features.bfloat16())
    assert half.dtype is torch.bfloat16
    assert (half.float() - full).abs().max() < 0.1


# ── against diffusers ────────────────────────────────────────────────────────────────────────────


def _perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with every weight moved off its initial value."""
    gen = torch.Generator().manual_seed(7)
    for parameter in module.double().parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=gen, dtype=torch.float64) * 0.1)
    return module.eval()


def _theirs(module: torch.nn.Module) -> Any:
    """diffusers' own module, loaded from our state dict as from a published file."""
    from diffusers.loaders import UNet2DConditionLoadersMixin

    mixin: Any = UNet2DConditionLoadersMixin()
    state = {name: tensor.float() for name, tensor in module.state_dict().items()}
    theirs = mixin._convert_ip_adapter_image_proj_to_diffusers(state, low_cpu_mem_usage=False)
    return theirs.double().eval()


@pytest.mark.parametrize("tokens", [4, 16])
def test_face_embeddings(tokens: int) -> None:
    """FaceID and portrait: one vector through an MLP to all tokens."""
    module = _perturbed(TokenMLP(12, OUT, tokens, inner_dim=24))
    face = torch.randn(3, 12, dtype=torch.float64)
    assert (module(face) - _theirs(module)(face)).abs().max() < SINGLE


@pytest.mark.parametrize("shortcut", [False, True])
def test_faces_and_their_look(shortcut: bool) -> None:
    """FaceID-plus v1 returns the perceiver's tokens, v2 adds them to those of the face."""
    module = _perturbed(
        FacePerceiver(12, 20, OUT, 4, depth=4, heads=1, inner_dim=OUT, shortcut=shortcut)
    )
    face = torch.randn(3, 12, dtype=torch.float64)
    look = torch.randn(3, 9, 20, dtype=torch.float64)
    theirs = _theirs(module)
    theirs.clip_embeds, theirs.shortcut, theirs.shortcut_scale = look[:, None], shortcut, 0.7
    assert (module(face, look, 0.7) - theirs(face)).abs().max() < SINGLE


def test_timesteps_modulate() -> None:
    """The resampler of InstantX's SD3.5 adapter."""
    from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin

    module = _perturbed(
        TimeResampler(20, OUT, 5, depth=4, heads=2, inner_dim=48, time_dim=32)
    ).float()
    mixin: Any = SD3Transformer2DLoadersMixin()
    theirs = mixin._convert_ip_adapter_image_proj_to_diffusers(
        module.state_dict(), low_cpu_mem_usage=False
    )
    features, timesteps = torch.randn(3, 9, 20), torch.tensor([3.0, 500.0, 999.0])
    expected, _ = theirs(features, timesteps)
    found = module(features, module.time_embedding(timesteps))
    assert (found - expected).abs().max() < SINGLE
