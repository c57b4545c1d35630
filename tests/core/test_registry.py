"""A new variant or format is one file: dropped into its folder, everything else picks it up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import imageprompt as ip
from hosts_table import CASES
from imageprompt import variants
from imageprompt.checkpoint import formats
from imageprompt.checkpoint.formats import FORMATS
from imageprompt.checkpoint.identify.identify import identify
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.torch_io import write_safetensors
from imageprompt.core.errors import OptionError
from imageprompt.core.registry import Registry
from imageprompt.variants import VARIANTS

NEW_VARIANT = '''
"""mean: the mean of the patches through one linear layer."""
from dataclasses import dataclass
from imageprompt.core.spec import Feature, ProjectorSpec


@dataclass(frozen=True)
class Mean:
    name: str = "mean"
    summary: str = "mean of the patches, one token"
    feature = Feature("hidden_states[-2]")
    null_rule: str = "zero features"
    options: tuple[str, ...] = ()

    def read(self, shapes):
        if set(shapes) != {"only.weight", "only.bias"}:
            return None
        width, feature_dim = shapes["only.weight"]
        return ProjectorSpec(feature_dim=feature_dim, cross_attention_dim=width, tokens=1)

    def propose(self, feature_dim, cross_attention_dim, options):
        return ProjectorSpec(
            feature_dim=feature_dim, cross_attention_dim=cross_attention_dim, tokens=1
        )

    def build(self, spec):
        from torch import nn

        class Projector(nn.Module):
            def __init__(self):
                super().__init__()
                self.only = nn.Linear(spec.feature_dim, spec.cross_attention_dim)

            def forward(self, features):
                return self.only(features.mean(1, keepdim=True))

        return Projector()


VARIANT = Mean()
'''


@pytest.fixture
def mean_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mean.py").write_text(NEW_VARIANT)
    monkeypatch.setattr(variants, "__path__", [*variants.__path__, str(tmp_path)])
    VARIANTS.reload()
    yield
    VARIANTS.reload()


class _Encoder:
    image_size, fingerprint = 32, "0" * 16

    def width(self, feature: str) -> int:
        return 12

    def encode(self, pictures: list[object], feature: str) -> torch.Tensor:
        return torch.ones(len(pictures), 5, 12)

    def encode_null(self, feature: str) -> torch.Tensor:
        return torch.zeros(1, 5, 12)


@pytest.mark.usefixtures("mean_variant")
def test_a_variant_is_one_file(tmp_path: Path) -> None:
    case = CASES["sd15"]
    unet = case.unet()
    adapter = ip.Adapter.create("mean", denoiser=unet, encoder=_Encoder())
    adapter.save(tmp_path / "a.safetensors")
    loaded = ip.Adapter.load(tmp_path / "a.safetensors").attach(unet, _Encoder())
    assert loaded.spec == adapter.spec
    assert loaded.spec.variant == "mean"
    prompt = loaded.encode(features=torch.randn(1, 5, 12))
    inputs = case.inputs(2)
    plain = case.read(unet, inputs)
    with loaded.use(prompt, 1.0):
        assert not torch.equal(case.read(unet, inputs), plain)
    loaded.detach()
    assert torch.equal(case.read(unet, inputs), plain)


NEW_FORMAT = '''
"""shouted: the standard layout in capitals."""
from imageprompt.checkpoint.formats.contract import ParsedNames, Parts


class Shouted:
    name = "shouted"
    summary = "the standard layout in capitals"
    suffixes = (".safetensors",)
    writable = True
    nested = False

    def claims(self, names):
        return any(name.startswith("PROJ.") for name in names)

    def read(self, tensors):
        parts = {"PROJ": {}, "SITES": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest.lower()] = tensor
        return ParsedNames(Parts(parts["PROJ"], parts["SITES"]))

    def write(self, parts):
        flat = {f"PROJ.{name.upper()}": tensor for name, tensor in parts.projector.items()}
        return flat | {f"SITES.{name.upper()}": tensor for name, tensor in parts.sites.items()}


FORMAT = Shouted()
'''


@pytest.fixture
def shouted_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shouted.py").write_text(NEW_FORMAT)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    FORMATS.reload()
    yield
    FORMATS.reload()


@pytest.mark.usefixtures("shouted_format")
def test_a_format_is_one_file(tmp_path: Path) -> None:
    """Written, identified and loaded by code that does not know it by name."""
    unet = CASES["tiny"].unet()
    adapter = ip.Adapter.create("full", denoiser=unet, encoder=_Encoder())
    adapter.save(tmp_path / "a.safetensors")
    parts = identify(open_source(tmp_path / "a.safetensors")).parts
    loud = FORMATS["shouted"].write(parts)
    write_safetensors(tmp_path / "loud.safetensors", loud, {})
    found = identify(open_source(tmp_path / "loud.safetensors"))
    assert (found.format, found.variants, found.problems) == ("shouted", ("full",), ())
    loaded = ip.Adapter.load(tmp_path / "loud.safetensors").module.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in adapter.module.state_dict().items())


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(OptionError, match="Did you mean 'plus'"):
        VARIANTS["pluss"]


def test_two_plugins_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twin.py").write_text("from imageprompt.variants.base import VARIANT\n")
    monkeypatch.setattr(variants, "__path__", [*variants.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="are named 'base'"):
        list(Registry("imageprompt.variants", "VARIANT"))
