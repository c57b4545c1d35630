"""Training on transformers: the calls of their pipelines, the gradients of the equations."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

import formulas
import imageprompt as ip
from imageprompt.hosts import HOSTS, host_of, training_of
from imageprompt.hosts._training import pack, unpack
from imageprompt.training.data.dataset import Batch
from imageprompt.training.loop.noise_schedule import NoiseSchedule
from imageprompt.training.loop.objective import NullConditions, Objective, RandomDraws
from training_pipelines import PIPELINES, ROWS, TEXTS, first_step, noise
from transformers_table import CASES, DIM, HEADS, TEXT


@pytest.mark.parametrize("name", PIPELINES)
def test_a_call_in_training_is_that_of_the_pipeline(name: str) -> None:
    """The same prediction, to the bit, from the same latents, timestep and text."""
    case = PIPELINES[name]
    table = CASES[case.host or name]
    model = dataclasses.replace(table, config=table.config | case.config).build()
    found = first_step(case, model)
    trained = training_of(model)
    text, added = trained.encode_text(found["pipe"], TEXTS, None)
    assert set(added) <= set(trained.conditions)
    assert len(text) == ROWS
    assert all(len(one) == ROWS for one in added.values())
    tokens = trained.as_tokens(model, text)
    assert tokens.shape[-1] == host_of(model).describe(model).cross_attention_dim
    latents = case.latents(found["sample"])
    assert torch.equal(case.sample(latents), found["sample"])
    times = torch.as_tensor(found["timestep"]).float().expand(ROWS)
    with torch.no_grad():
        made = trained.predict(model, latents, times, text, added, case.guidance)
    assert made.shape == latents.shape
    assert torch.equal(case.sample(made), found["output"])

    # the shift, which the pipeline derives from the size of the picture
    scheduler = found["pipe"].scheduler
    positions = latents.shape[-2] * latents.shape[-1] // trained.patch_size(model) ** 2
    assert (found["mu"] is not None) == bool(case.options)
    if case.options:
        mu = trained.mu(model, scheduler.config, positions)
        assert mu == pytest.approx(found["mu"], rel=1e-6)
        schedule = NoiseSchedule.of(scheduler, mu=mu)
        uniform = torch.arange(1, 1001) / 1000
        torch.testing.assert_close(schedule.sigma, scheduler.time_shift(mu, 1.0, uniform))


@pytest.mark.parametrize("positions", [16, 1024, 4300, 4301, 9216])
def test_the_shift_of_flux2_at_every_size(positions: int) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    mu = training_of(CASES["flux2"].build()).mu(None, {}, positions)
    assert mu == pytest.approx(compute_empirical_mu(positions, 50), rel=1e-9)


def test_every_training_of_is_compared() -> None:
    transformers = {one.name for one in HOSTS if one.training} - {"unet"}
    assert transformers == {case.host or name for name, case in PIPELINES.items()}


# ── gradients ───────────────────────────────────────────────────────────────────────────────────

FEATURES, PATCHES = 20, 4
CLEAN = {"flux": (1, 8, 8), "qwen-image": (1, 8, 8)}  # before they are packed; others: (4, 8, 8)


class Encoder:
    """What `Adapter.create` asks of an encoder."""

    fingerprint, image_size = "none", 8

    def width(self, feature: object) -> int:
        return FEATURES

    def encode(self, pictures: Any, feature: Any) -> Tensor:
        raise NotImplementedError

    encode_null = encode


class Plain:
    """An adapter written down: queries are heard, and terms added, by hooks of its own."""

    def __init__(self, host: str, model: nn.Module, state: dict[str, Tensor]) -> None:
        self.case, self.state, self.tokens = CASES[host], state, torch.empty(0)
        kinds = {site.kind: site for site in reversed(host_of(model).describe(model).sites)}
        layers = {one[0]: one for one in self.case.layers}
        for site in host_of(model).describe(model).sites:
            _, queries, output, first = layers[kinds[site.kind].name]
            layer: Any = model.get_submodule(site.name)
            self._hook(site, layer, queries, output, first)

    def _hook(self, site: Any, layer: Any, queries: str, output: str, first: int) -> None:
        seen: list[Tensor] = []
        rows = slice(first, first + self.case.positions)

        def hear(_: Any, __: Any, q: Tensor) -> None:
            seen[:] = [q]

        def add(x: Tensor) -> Tensor:
            y = x.clone()
            y[:, rows, : HEADS * DIM] += self.term(site, seen[0])[:, rows]
            return y

        getattr(layer, queries).register_forward_hook(hear)
        if output:
            layer.get_submodule(output).register_forward_pre_hook(lambda _, args: (add(args[0]),))
        else:
            layer.register_forward_hook(lambda _, __, out: add(out))

    def term(self, site: Any, q: Tensor) -> Tensor:
        """Attention(q, norm(K'), V')."""
        q = q.unflatten(-1, (HEADS, DIM)) if q.ndim == 3 else q
        q = q if self.case.heads_first and q.ndim == 4 else q.transpose(1, 2)
        weights = [self.state[f"ip_adapter.{site.file_id}.to_{kind}_ip.weight"] for kind in "kv"]
        k, v = ((self.tokens @ one.T).unflatten(-1, (HEADS, DIM)) for one in weights)
        if site.kind != "cross":
            k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        scores = q @ k.permute(0, 2, 3, 1) / DIM**0.5
        return (torch.softmax(scores, -1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("host", ["flux", "sd3", "pixart", "qwen-image"])
def test_loss_and_every_gradient_equal_the_equations(host: str) -> None:
    case, rows = CASES[host], 4
    model = case.build().requires_grad_(False)
    kind: Any = Encoder()
    adapter = ip.Adapter.create(
        "plus", denoiser=model, encoder=kind, num_tokens=3, depth=1, heads=1, inner_dim=16
    )
    for seed, weight in enumerate(adapter.parameters()):
        weight.data = 0.3 * noise(*weight.shape, seed=seed)
    state = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in adapter.module.named_parameters()
    }
    inputs = case.inputs(rows)
    shape = CLEAN.get(host, (4, 8, 8))
    clean, added_noise = noise(rows, *shape, seed=11), noise(rows, *shape, seed=12)
    features, null = noise(rows, PATCHES, FEATURES, seed=13), noise(1, PATCHES, FEATURES, seed=14)
    text, null_text = inputs["encoder_hidden_states"], noise(1, 5, TEXT, seed=15)
    drop_image, drop_text = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]).bool()
    times = torch.tensor([3, 250, 611, 987])
    added, nulls = {}, {}
    if "pooled_projections" in inputs:
        added = {"pooled_projections": inputs["pooled_projections"]}
        nulls = {"pooled_projections": noise(1, 32, seed=16)}
    if host == "qwen-image":
        added = {"encoder_hidden_states_mask": torch.ones(rows, 5, dtype=torch.bool)}
        nulls = {"encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.bool)}
    flow = host != "pixart"
    schedule = (
        NoiseSchedule.flow(1000, 3.0)
        if flow
        else NoiseSchedule.of(DDPMScheduler(beta_start=0.0001, beta_end=0.02))
    )

    # by hand
    plain = copy.deepcopy(model)
    written = Plain(host, plain, state)
    parts = {n.removeprefix("image_proj."): t for n, t in state.items() if "image_proj" in n}
    written.tokens = torch.stack(
        [
            formulas.tokens("plus", parts, (null[0] if dropped else row))
            for row, dropped in zip(features, drop_image, strict=True)
        ]
    ).float()
    uniform = (times + 1) / 1000
    sigma = (3 * uniform / (1 + 2 * uniform)).reshape(-1, 1, 1, 1)
    if flow:
        noisy, target = (1 - sigma) * clean + sigma * added_noise, added_noise - clean
    else:
        noisy, target = DDPMScheduler().add_noise(clean, added_noise, times), added_noise
    by_pipeline = dict(inputs)
    by_pipeline["encoder_hidden_states"] = torch.where(drop_text[:, None, None], null_text, text)
    if "pooled_projections" in added:
        pooled, none = added["pooled_projections"], nulls["pooled_projections"]
        by_pipeline["pooled_projections"] = torch.where(drop_text[:, None], none, pooled)
    is_packed = host in CLEAN
    by_pipeline["hidden_states"] = pack(noisy) if is_packed else noisy
    scale = 1.0 if is_packed else 1000.0
    by_pipeline["timestep"] = scale * sigma.flatten() if flow else times
    out = plain(**by_pipeline, return_dict=False)[0]
    out = unpack(out, clean) if is_packed else out[:, : shape[0]]
    expected_loss = (out - target).square().mean()
    expected_loss.backward()

    # by the trainer's objective, without and with gradient checkpointing
    batch, draws = (
        Batch(clean, text, features, added),
        RandomDraws(times, added_noise, drop_image, drop_text, torch.zeros(rows).bool()),
    )
    conditions = NullConditions(null_text, null, nulls)
    adapter.module.requires_grad_(True)
    adapter.attach(model)
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        adapter.module.zero_grad()
        with Objective().loss_from_draws(
            adapter, model, schedule, batch, conditions, draws
        ) as losses:
            losses.mean().backward()
        assert float(losses.detach().mean()) == pytest.approx(
            float(expected_loss.detach()), rel=1e-4
        )
        for name, weight in adapter.module.named_parameters():
            gradient, expected = weight.grad, state[name].grad
            assert gradient is not None, name
            assert expected is not None, name
            assert expected.norm() > 0, name
            error = (gradient - expected).norm() / expected.norm().clamp(min=1e-6)
            assert error < 1e-4, f"{name}: {error}"
