"""What cannot work on a transformer: one line with the reason and the remedy; nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_transformers import Rig, _Encoder

import imageprompt as ip
from transformers_table import CASES


class _Wide(_Encoder):
    def width(self, feature: object) -> int:
        return 99


def _other_host(rig: Rig) -> None:
    other = Rig(CASES["pixart"])
    other.adapter.detach()
    other.adapter.attach(rig.model)


def _other_encoder(rig: Rig) -> None:
    rig.adapter.attach(rig.model, encoder=_Wide())


def _other_features(rig: Rig) -> None:
    rig.adapter.encode(features=[torch.zeros(1, 99)])


def _two_references(rig: Rig) -> None:
    rig.run(rig.prompt(1, 2, 3))


def _preset(rig: Rig) -> None:
    rig.run(rig.prompt(1), preset="style transfer")


def _style(rig: Rig) -> None:
    rig.run(rig.prompt(1), preset="style")


def _role(rig: Rig) -> None:
    rig.run(rig.prompt(1), scale={"style": 1.0})


def _mask(rig: Rig) -> None:
    rig.run(rig.prompt(1), mask=torch.ones(4, 4))


def _lora(rig: Rig) -> None:
    ip.Adapter.create("faceid", denoiser=rig.model, encoder=None)


REFUSED: dict[str, tuple[str, Callable[[Rig], None], str, str]] = {
    "a file of another host": ("flux", _other_host, "on a flux base", "another adapter"),
    "an encoder of another width": ("flux", _other_encoder, "are 99 wide", "Use the"),
    "features of another width": ("flux", _other_features, "[1, 99]", "Use the encoder"),
    "references that do not fit the rows": (
        "flux",
        _two_references,
        "3 image prompt",
        "one reference per text",
    ),
    "references that do not fit Z-Image's list": (
        "z-image",
        _two_references,
        "3 image prompt",
        "one reference per text",
    ),
    "a preset by sampling order": ("flux", _preset, "sampling order", "`imageprompt probe`"),
    "a preset without roles": ("flux", _style, "sampling order", "`imageprompt probe`"),
    "a role that no site has": ("sd3", _role, "no site of this base", "`imageprompt probe`"),
    "a mask on frames": ("wan", _mask, "a mask on this base", "without a mask"),
    "a variant with LoRA": ("flux", _lora, "faceid", "Choose another variant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    host, attempt, reason, remedy = REFUSED[name]
    rig = Rig(CASES[host])
    before = rig.run(rig.prompt(1))
    with pytest.raises(ip.ImagePromptError) as caught:
        attempt(rig)
    said = str(caught.value)
    assert "\n" not in said
    assert reason in said
    assert remedy in said
    assert torch.equal(rig.run(rig.prompt(1)), before)
    rig.adapter.detach()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    hooks: list[Any] = [(m._forward_hooks, m._forward_pre_hooks) for m in rig.model.modules()]
    assert not any(any(pair) for pair in hooks)
