"""The attention of every site, and whole denoiser calls, against the equations in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import formulas
from formulas import by_formula, capture
from hosts_table import ADAPTERS, CASES
from peer import site_ids
from rigs import Rig, build

TOLERANCE = 1e-10


def check_sites(rig: Rig, scales: dict[str, float], features: list[Tensor]) -> None:
    """Run one guided call and compare every row of every site with the formula.

    Scales are stored in float32, so use values that are exact in it.
    """
    layers = {i: name.removesuffix(".processor") for i, (name, _) in site_ids(rig.unet).items()}
    prompts = len(features)
    inputs = rig.host.inputs(2 * prompts, dtype=torch.float64)
    seen, handles = capture(rig.unet, list(layers.values()))
    try:
        null = rig.kind.null_features().double()
        prompt = rig.adapter.encode(features=[f.double() for f in features], null_features=null)
        rig.ours(inputs, prompt, scale=scales)
    finally:
        for handle in handles:
            handle.remove()
    projector = rig.state["image_proj"]
    variant = rig.kind.variant
    positive = [torch.cat([formulas.tokens(variant, projector, f) for f in fs]) for fs in features]
    negative = [
        torch.cat([formulas.tokens(variant, projector, null[0])] * len(fs)) for fs in features
    ]
    rows = negative + positive  # the batch: [negative, positive]
    frames = max(rig.host.frames, 1)
    for file_id, name in layers.items():
        x, text, found = seen[name]
        to_k = rig.state["ip_adapter"][f"{file_id}.to_k_ip.weight"].double()
        to_v = rig.state["ip_adapter"][f"{file_id}.to_v_ip.weight"].double()
        scale = scales[max((p for p in scales if name.startswith(p)), key=len)]
        assert len(x) == len(rows) * frames
        for i in range(0, len(x), frames):
            c = rows[i // frames]
            expected = by_formula(
                rig.unet.get_submodule(name), x[i], text[i], [(c @ to_k.T, c @ to_v.T, scale)]
            )
            assert (found[i] - expected).abs().max() < TOLERANCE, (name, i)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_site_of_every_variant(kind: str, tmp_path: Path) -> None:
    rig = build("sd15", kind, tmp_path, dtype=torch.float64)
    scales = {"down_blocks": 0.375, "mid_block": 1.0, "up_blocks": 1.625}
    check_sites(rig, scales, rig.features(1))


@pytest.mark.sample(2)
@pytest.mark.parametrize("host", CASES)
def test_every_site_of_every_host(host: str, tmp_path: Path) -> None:
    """Two prompts with two references each."""
    rig = build(host, "base", tmp_path, dtype=torch.float64)
    check_sites(rig, _everywhere(rig, 0.75), rig.features(2, 2))


def _everywhere(rig: Rig, scale: float) -> dict[str, float]:
    names = {name.split(".")[0] for name, _ in site_ids(rig.unet).values()}
    return dict.fromkeys(sorted(names), scale)


def test_the_attention_function() -> None:
    """`decoupled_attention` alone: several image terms, a tensor scale, a region mask."""
    from imageprompt.attention.decoupled import ImageTerm, decoupled_attention

    gen = torch.Generator().manual_seed(2)
    heads, d, rows = 3, 8, 10

    def noise(length: int) -> Tensor:
        return torch.randn(length, heads * d, generator=gen, dtype=torch.float64)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, d)).transpose(0, 1)[None]

    q, k, v = noise(rows), noise(7), noise(7)
    images = [(noise(n), noise(n), s) for n, s in ((4, 0.3), (16, 1.7))]
    terms = [
        ImageTerm(split(a), split(b), torch.tensor(s, dtype=torch.float64)) for a, b, s in images
    ]
    found = decoupled_attention(split(q), split(k), split(v), terms)
    expected = formulas.decoupled(q, k, v, images, heads)
    assert (found - split(expected)).abs().max() < 1e-12

    mask = (torch.arange(rows) < 4).double()
    term = ImageTerm(terms[1].key, terms[1].value, terms[1].scale, mask[None, None, :, None])
    masked = decoupled_attention(split(q), split(k), split(v), [term])
    plain = formulas.attention(q, k, v, heads)
    whole = formulas.decoupled(q, k, v, images[1:], heads)
    expected = torch.where(mask[:, None] > 0, whole, plain)
    assert (masked - split(expected)).abs().max() < 1e-12
