"""Every transformer host: the equation at its sites, scale 0, rows, masks, detach, graphs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imageprompt as ip
from imageprompt.hosts import HOSTS
from transformers_table import CASES, DIM, HEADS, SIDE, TransformerCase

FEATURES, TOKENS = 24, 3


class Rig:
    """A tiny transformer with a new adapter on it, whose weights are random."""

    def __init__(self, case: TransformerCase, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.dtype = case, dtype
        self.model = case.build(dtype=dtype)
        self.plain = case.read(self.model, self.inputs())
        self.adapter = ip.Adapter.create(
            "base", denoiser=self.model, encoder=_Encoder(), num_tokens=TOKENS
        )
        generator = torch.Generator().manual_seed(5)
        for weight in self.adapter.parameters():
            weight.data = torch.randn(weight.shape, generator=generator).to(dtype) * 0.3
        self.adapter.attach(self.model)

    def inputs(self, batch: int = 2) -> dict[str, Any]:
        return self.case.inputs(batch, dtype=self.dtype)

    def prompt(self, *seeds: int) -> ip.ImagePrompt:
        """A prompt for each seed."""
        features = [
            torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(s)) for s in seeds
        ]
        null = torch.zeros(1, FEATURES, dtype=self.dtype)
        return self.adapter.encode(
            features=[one.to(self.dtype) for one in features], null_features=null
        )

    def run(self, prompt: ip.ImagePrompt, **use: Any) -> Tensor:
        use = {"scale": 1.0, "guidance": "none"} | use
        with self.adapter.use(prompt, **use):
            return self.case.read(self.model, self.inputs())


class _Encoder:
    """What `Adapter.create` asks of an encoder."""

    fingerprint, image_size = "none", 8

    def width(self, feature: object) -> int:
        return FEATURES

    def encode(self, pictures: Any, feature: Any) -> Tensor:
        raise NotImplementedError

    def encode_null(self, feature: Any) -> Tensor:
        raise NotImplementedError


@pytest.fixture(params=CASES)
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(CASES[request.param])


def test_every_host_has_a_case() -> None:
    assert {host.name for host in HOSTS if host.name != "unet"} == set(CASES)


def test_sites(rig: Rig) -> None:
    host = next(host for host in HOSTS if host.claims(rig.model))
    assert host.name == rig.case.host
    spec: Any = host
    spec = spec.describe(rig.model)
    assert len(spec.sites) == rig.case.sites
    assert {site.cross_attention_dim for site in spec.sites} == {rig.case.token_width}
    for site in spec.sites:
        assert isinstance(rig.model.get_submodule(site.name), nn.Module)


@pytest.mark.sample(3)
def test_scale_zero_and_detach_are_the_base(rig: Rig) -> None:
    names = list(rig.model.state_dict())
    changed = rig.run(rig.prompt(1))
    assert (changed - rig.plain).abs().max() > 1e-3
    assert torch.equal(rig.run(rig.prompt(1), scale=0), rig.plain)
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    assert list(rig.model.state_dict()) == names
    rig.adapter.detach()
    assert torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in rig.model.modules()]
    assert not any(any(pair) for pair in hooks)


@pytest.mark.sample(3)
def test_each_prompt_stays_with_its_row(rig: Rig) -> None:
    both, first = rig.run(rig.prompt(1, 2)), rig.run(rig.prompt(1, 1))
    assert torch.allclose(both[0], first[0], atol=1e-6)
    assert (both[1] - first[1]).abs().max() > 1e-4


@pytest.mark.sample(3)
def test_a_new_adapter_changes_nothing_where_v_starts_at_zero(rig: Rig) -> None:
    rig.adapter.detach()
    new = ip.Adapter.create(
        "base", denoiser=rig.model, encoder=_Encoder(), num_tokens=TOKENS, init="zero"
    )
    rig.adapter = new.attach(rig.model)
    assert torch.equal(rig.run(rig.prompt(1)), rig.plain)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", CASES)
def test_the_equation_at_a_site_of_each_kind(name: str) -> None:
    """What the picture's rows get is Attention(q, norm(K'), V'), and the others get nothing."""
    case = CASES[name]
    for path, queries, output, first in case.layers:
        rig = Rig(case)
        layer: Any = rig.model.get_submodule(path)
        seen: dict[str, list[Tensor]] = {"q": [], "out": []}
        target = layer.get_submodule(output) if output else layer
        handles = [getattr(layer, queries).register_forward_hook(_keep(seen["q"]))]
        if output:
            handles.append(target.register_forward_pre_hook(_keep_input(seen["out"])))
        else:
            handles.append(target.register_forward_hook(_keep(seen["out"])))
        prompt = rig.prompt(1, 2)
        only = {site.name: 0.0 for site in _sites(rig)} | {path: 0.7}
        rig.case.read(rig.model, rig.inputs())
        rig.run(prompt, scale=only)
        for handle in handles:
            handle.remove()
        q, _ = seen["q"]
        before, after = seen["out"]
        expected = torch.zeros_like(before)
        width = HEADS * DIM
        term = _attention(rig, path, _by_head(case, q), prompt.tokens)
        rows = slice(first, first + case.positions)
        expected[:, rows, :width] = 0.7 * term[:, rows]
        assert torch.allclose(after - before, expected, atol=1e-5)
        assert expected.abs().max() > 1e-2


def _keep(kept: list[Tensor]) -> Any:
    return lambda module, args, output: kept.append(output.detach().clone()) or None


def _keep_input(kept: list[Tensor]) -> Any:
    return lambda module, args: kept.append(args[0].detach().clone()) or None


def _sites(rig: Rig) -> Any:
    host: Any = next(host for host in HOSTS if host.claims(rig.model))
    return host.describe(rig.model).sites


def _by_head(case: TransformerCase, q: Tensor) -> Tensor:
    if q.ndim == 3:
        q = q.unflatten(-1, (HEADS, DIM))
        return q.transpose(1, 2)
    return q if case.heads_first else q.transpose(1, 2)


def _attention(rig: Rig, path: str, q: Tensor, tokens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by hand; K' is RMS-normalised on hosts with joint attention."""
    site = next(site for site in _sites(rig) if site.name == path)
    weights = rig.adapter.module.ip_adapter.state_dict()
    k, v = (tokens @ weights[f"{site.file_id}.to_{kind}_ip.weight"].T for kind in "kv")
    k, v = (x.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for x in (k, v))
    if site.kind != "cross":
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    weights = torch.softmax(q @ k.transpose(-1, -2) / DIM**0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.sample(3)
def test_masks_act_where_they_are_white(rig: Rig) -> None:
    """A mask of ones is none; a black one is the base; half of one acts at half of the rows."""
    if not rig.case.grid:
        with pytest.raises(ip.ImagePromptError, match="mask"):
            rig.run(rig.prompt(1), mask=torch.ones(SIDE, SIDE).numpy())
        return
    prompt = rig.prompt(1)
    whole = rig.run(prompt)
    assert torch.allclose(rig.run(prompt, mask=torch.ones(8, 8).numpy()), whole, atol=1e-6)
    with pytest.warns(UserWarning, match="black all over"):
        assert torch.equal(rig.run(prompt, mask=torch.zeros(8, 8).numpy()), rig.plain)
    half = torch.zeros(8, 8)
    half[:, :4] = 1
    masked = rig.run(prompt, mask=half.numpy())
    assert not torch.allclose(masked, whole, atol=1e-5)
    assert not torch.allclose(masked, rig.plain, atol=1e-5)


@pytest.mark.sample(3)
def test_copies_are_not_attached(rig: Rig) -> None:
    copied = copy.deepcopy(rig.model)
    with rig.adapter.use(rig.prompt(1), scale=1.0, guidance="none"):
        assert torch.equal(rig.case.read(copied, rig.inputs()), rig.plain)
        assert not torch.equal(rig.case.read(rig.model, rig.inputs()), rig.plain)


@pytest.mark.sample(3)
def test_the_null_tokens_act_on_the_negative_side(rig: Rig) -> None:
    """In a batch of both sides, or in a call of its own."""
    prompt, order = rig.prompt(1), rig.case.order
    if len(order) == 1:
        negative = rig.run(prompt, guidance="negative")
        null = ip.ImagePrompt(prompt.null_tokens, prompt.null_tokens, prompt.metadata)
        assert torch.equal(negative, rig.run(null))
        # a call that says nothing is positive
        assert torch.equal(rig.run(prompt, guidance="auto"), rig.run(prompt))
        return
    both = rig.run(prompt, guidance="-".join(order))
    alone = rig.run(prompt)
    positive = order.index("positive")
    assert torch.allclose(both[positive], alone[positive], atol=1e-6)
    assert (both[1 - positive] - alone[1 - positive]).abs().max() > 1e-4


def test_texts_of_several_lengths_in_one_batch() -> None:
    """Lumina2 packs each row's text to its own length, and the picture follows it."""
    rig = Rig(CASES["lumina2"])
    inputs = rig.inputs()
    inputs["encoder_attention_mask"][0, 4] = inputs["encoder_attention_mask"][0, 3] = 1
    half = torch.zeros(8, 8)
    half[:, :4] = 1
    for mask in (None, half.numpy()):
        with rig.adapter.use(rig.prompt(1, 2), scale=1.0, mask=mask):
            both = rig.case.read(rig.model, inputs)
        for row in (0, 1):
            own = {name: value[row : row + 1] for name, value in inputs.items()}
            plain = rig.case.read(rig.model, own)
            with rig.adapter.use(rig.prompt(row + 1), scale=1.0, mask=mask):
                alone = rig.case.read(rig.model, own)
            assert torch.allclose(both[row], alone[0], atol=1e-5)
            assert (alone - plain).abs().max() > 1e-2


@pytest.mark.sample(3)
def test_saved_and_loaded(rig: Rig, tmp_path: Path) -> None:
    """The file says what it is, and acts as before on another copy of the base."""
    rig.adapter.save(tmp_path / "adapter.safetensors")
    report = ip.inspect(tmp_path / "adapter.safetensors")
    assert not report.problems
    assert "base" in report.variants
    prompt = rig.prompt(1)
    before = rig.run(prompt)
    rig.adapter.detach()
    rig.adapter = ip.Adapter.load(tmp_path / "adapter.safetensors").attach(rig.model)
    assert rig.adapter.spec.host == rig.case.host
    assert torch.equal(rig.run(prompt), before)
