"""The cost of a denoise step in dispatched operations, pinned by a formula over the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hosts_table import CASES
from ops import count, first_and_later, projector_calls, timesteps
from peer import diffusers_embeds, diffusers_load
from rigs import Rig, build

# What an image prompt adds at each site from the second step on: the text's K and V are cached
# (-2 products), the division by 1 is left out (-1); each image term is one attention and one
# multiply-add (+2).
SITE = -3
TERM = +2


def plain(rig: Rig, inputs: dict[str, Any]) -> int:
    """Operations of the text-only denoiser."""
    return sum(count(lambda: rig.host.read(rig.unet, inputs)).values())


def both(rig: Rig, inputs: dict[str, Any]) -> tuple[int, int]:
    """Operations of the first and of a later step, with the adapters in use now."""
    steps = first_and_later(lambda t: rig.host.read(rig.unet, {**inputs, "timestep": t}))
    first, later = (sum(names.values()) for names in steps)
    return first, later


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["base", "plus", "full"])
@pytest.mark.parametrize("host", ["sd15", "sd2", "sdxl", "tiny"])
def test_one_adapter(host: str, kind: str, tmp_path: Path) -> None:
    """One operation fewer than text alone at each site, whatever the variant."""
    rig = build(host, kind, tmp_path)
    inputs = rig.host.inputs(2)
    base = plain(rig, inputs)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        _, later = both(rig, inputs)
    assert later - base == rig.host.sites * (SITE + TERM)
    rig.adapter.detach()
    assert plain(rig, inputs) == base


def test_attached_but_not_in_use(tmp_path: Path) -> None:
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(2)
    base = plain(rig, inputs)
    rig.adapter.attach(rig.unet)
    assert plain(rig, inputs) == base


def test_two_adapters(tmp_path: Path) -> None:
    """One operation more than text alone at each site."""
    one, two = (build("sd15", "plus", tmp_path, seed=seed) for seed in (3, 13))
    inputs = one.host.inputs(2)
    base = plain(one, inputs)
    one.adapter.attach(one.unet)
    two.adapter.attach(one.unet)
    with one.adapter.use(one.prompt(1)), two.adapter.use(two.prompt(1)):
        _, later = both(one, inputs)
    assert later - base == one.host.sites * (SITE + 2 * TERM)


def test_sites_at_scale_zero_cost_nothing(tmp_path: Path) -> None:
    """Six of sixteen sites off: no attention, no multiply-add there; all off: text only, less."""
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(2)
    base = plain(rig, inputs)
    rig.adapter.attach(rig.unet)
    off = {"down_blocks": 0.0, "mid_block": 1.0, "up_blocks": 1.0}
    with rig.adapter.use(rig.prompt(1), scale=off) as handle:
        _, some = both(rig, inputs)
        handle.scale = 0.0
        _, none = both(rig, inputs)
    with rig.adapter.use(rig.prompt(1), scale={"up_blocks": 1.0}):
        _, named = both(rig, inputs)
    assert some - base == 16 * SITE + 10 * TERM
    assert named - base == 16 * SITE + 9 * TERM
    assert none - base == 16 * SITE


def test_every_prompt_is_projected_once(tmp_path: Path) -> None:
    """One projector call for encoding, none while sampling, none when it is used again."""
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(2)
    rig.adapter.attach(rig.unet)
    with projector_calls([rig.adapter.module.image_proj]) as calls:
        for number in range(1, 4):
            prompt = rig.adapter.encode(features=rig.kind.features(3, seed=number))
            assert len(calls) == number + 1  # and once for the null picture
            for _ in range(2):
                with rig.adapter.use(prompt, scale=0.5) as handle:
                    for t in timesteps()[:3]:
                        rig.host.read(rig.unet, {**inputs, "timestep": t})
                        handle.scale = 0.8
            assert len(calls) == number + 1


def test_key_values_are_projected_once(tmp_path: Path) -> None:
    """K' and V' are not computed again in later steps or when a prompt is used again."""
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    made: list[int] = []
    for site in rig.adapter.module.ip_adapter.values():
        site.to_k_ip.register_forward_hook(lambda *_: made.append(1))
    rig.adapter.attach(rig.unet)
    prompt = rig.prompt(1)
    with rig.adapter.use(prompt):
        for t in timesteps()[:3]:
            rig.host.read(rig.unet, {**inputs, "timestep": t})
    once = len(made)
    assert once <= 2 * rig.host.sites  # the picture's and the null picture's
    with rig.adapter.use(prompt):
        rig.host.read(rig.unet, inputs)
    assert len(made) == once
    with rig.adapter.use(rig.prompt(1, seed=9)):
        rig.host.read(rig.unet, inputs)
    assert len(made) == once + rig.host.sites  # the null picture's are cached


@pytest.mark.parametrize(("kind", "per_site", "once"), [("base", 5, 2), ("plus", 5, 64)])
def test_the_rule_counts_diffusers_as_published(
    kind: str, per_site: int, once: int, tmp_path: Path
) -> None:
    """The same rule on diffusers' own path: 82 and 144 with sixteen sites."""
    rig = build("sd15", kind, tmp_path)
    inputs = rig.host.inputs(2)
    base = plain(rig, inputs)
    diffusers_load(rig.unet, rig.state)
    embeds = diffusers_embeds(rig.features(1), rig.kind.null_features())
    theirs = plain(rig, {**inputs, "added_cond_kwargs": {"image_embeds": [embeds]}})
    assert theirs - base == 16 * per_site + once
    assert CASES["sd15"].sites == 16


def test_views_are_not_counted() -> None:
    x = torch.ones(4, 4)
    assert not count(lambda: x.view(16).reshape(2, 8).transpose(0, 1).expand(8, 2).detach()[0])
    assert sum(count(lambda: torch.nn.functional.linear(x, x).add(1)).values()) == 2
