"""The objective: the reference's equations, dropout, loss weights and precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

import imageprompt as ip
from hosts_table import CASES
from imageprompt.core.errors import OptionError
from imageprompt.training.config.config import ConditionDropout, Timesteps
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.loop.noise_schedule import NoiseSchedule
from imageprompt.training.loop.objective import (
    NullConditions,
    Objective,
    RandomDraws,
)
from reference_step import Case, step
from rigs import Rig, build

ROWS = 4  # dropped: nothing, image, text, both


@dataclass
class Faces:
    """Face embeddings, and patch features if the variant reads both."""

    variant: str
    image_size = 112
    fingerprint = "0" * 16

    def width(self, feature: str) -> int:
        return 512 if feature == "face_embeds" else 20

    def encode(self, pictures: Any, feature: str) -> Tensor:
        raise NotImplementedError

    encode_null = encode

    def features(self, count: int, *, seed: int = 5) -> Any:
        gen = torch.Generator().manual_seed(seed)
        faces = torch.nn.functional.normalize(torch.randn(count, 512, generator=gen), dim=-1)
        if self.variant == "faceid":
            return faces
        return faces, torch.randn(count, 9, 20, generator=gen)

    def null_features(self) -> Any:
        if self.variant == "faceid":
            return torch.zeros(1, 512)
        return torch.zeros(1, 512), self.features(1, seed=99)[1]


def face_rig(host: str, variant: str, folder: Path) -> Rig:
    """A FaceID adapter whose LoRA is not zero."""
    torch.manual_seed(0)
    kind: Any = Faces(variant)
    unet = CASES[host].unet()
    adapter = ip.Adapter.create(variant, denoiser=unet, encoder=kind)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    parts = ("image_proj", "ip_adapter")
    state = {part: dict(getattr(adapter.module, part).state_dict()) for part in parts}
    return Rig(CASES[host], kind, unet, state, folder, adapter)


def make_case(rig: Rig) -> Case:
    inputs = rig.host.inputs(ROWS, seed=11)
    gen = torch.Generator().manual_seed(12)
    added = inputs.get("added_cond_kwargs", {})
    if added:
        added["time_ids"] = 30 + 10 * torch.rand(ROWS, 6, generator=gen)
    null_added = {n: torch.randn(1, v.shape[1], generator=gen) for n, v in added.items()}
    null_added.pop("time_ids", None)
    return Case(
        latents=inputs["sample"],
        text=inputs["encoder_hidden_states"],
        features=rig.kind.features(ROWS, seed=13),
        added=added,
        noise=torch.randn(inputs["sample"].shape, generator=gen),
        times=torch.tensor([3, 250, 611, 987]),
        drop_image=torch.tensor([False, True, False, True]),
        drop_text=torch.tensor([False, False, True, True]),
        null_text=torch.randn(1, *inputs["encoder_hidden_states"].shape[1:], generator=gen),
        null_features=rig.kind.null_features(),
        null_added=null_added,
    )


def ours(rig: Rig, kind: str, case: Case, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each sample, and the gradient of every tensor in the adapter's file."""
    schedule = NoiseSchedule.of(DDPMScheduler(prediction_type=kind))
    batch = Batch(case.latents, case.text, case.features, case.added)
    nulls = NullConditions(case.null_text, case.null_features, case.null_added)
    identity_only = options.pop("identity_only", torch.zeros(ROWS, dtype=torch.bool))
    draws = RandomDraws(case.times, case.noise, case.drop_image, case.drop_text, identity_only)
    rig.unet.requires_grad_(False)
    rig.adapter.module.requires_grad_(True).zero_grad()
    rig.adapter.attach(rig.unet)
    try:
        with Objective(**options).loss_from_draws(
            rig.adapter, rig.unet, schedule, batch, nulls, draws
        ) as losses:
            losses.mean().backward()
    finally:
        rig.adapter.detach()
    return losses.detach(), {n: p.grad for n, p in rig.adapter.module.named_parameters()}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("host", "variant", "kind"),
    [
        ("sd15", "base", "epsilon"),
        ("sd15", "plus", "epsilon"),
        ("sd15", "full", "epsilon"),
        ("sd2", "base", "v_prediction"),
        ("sd2", "plus", "v_prediction"),
        ("sdxl", "base", "epsilon"),
        ("sdxl", "plus", "v_prediction"),
        ("sd15", "faceid", "epsilon"),
        ("sd2", "faceid-plus-v2", "v_prediction"),
        ("sdxl", "faceid", "epsilon"),
    ],
)
def test_loss_and_every_gradient_equal_the_references(
    host: str, variant: str, kind: str, tmp_path: Path
) -> None:
    rig = (face_rig if "face" in variant else build)(host, variant, tmp_path)
    case = make_case(rig)
    expected_loss, expected = step(rig.unet, rig.state, variant, kind, case)
    losses, gradients = ours(rig, kind, case)
    assert float(losses.mean()) == pytest.approx(expected_loss, rel=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        size = expected[name].norm().clamp(min=1e-7)  # 0 where there is one token to attend to
        error = (gradient - expected[name]).norm() / size
        assert error < 1e-4, f"{name}: {error}"


def test_identity_only_samples_are_as_frequent_as_configured(tmp_path: Path) -> None:
    rig = face_rig("sd15", "faceid-plus-v2", tmp_path)
    schedule = NoiseSchedule.of(DDPMScheduler())
    latents = torch.zeros(2000, 1, 1, 1)
    drawn = (
        Objective(identity_only_prob=0.5)
        .draw(latents, schedule, RandomStreams(range(2000)))
        .identity_only
    )
    assert abs(float(drawn.float().mean()) - 0.5) < 0.04
    case = make_case(rig)
    case.drop_image[:] = False
    losses, _ = ours(rig, "epsilon", case, identity_only=torch.tensor([True, False, True, False]))
    faces, hidden = case.features
    case.features = (faces, hidden + 1)
    others, _ = ours(rig, "epsilon", case, identity_only=torch.tensor([True, False, True, False]))
    assert (losses != others).tolist() == [False, True, False, True]


def test_min_snr_weights_each_sample(tmp_path: Path) -> None:
    rig = build("sd15", "base", tmp_path)
    case = make_case(rig)
    alphas = DDPMScheduler().alphas_cumprod[case.times]
    ratio = alphas / (1 - alphas)
    for kind, divisor in (("epsilon", ratio), ("v_prediction", ratio + 1)):
        plain, _ = ours(rig, kind, case)
        weighted, _ = ours(rig, kind, case, min_snr=5.0)
        torch.testing.assert_close(weighted, plain * ratio.clamp(max=5) / divisor)


def test_min_snr_of_pure_noise_is_finite() -> None:
    zero_snr = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    last = torch.tensor([999])
    assert float(NoiseSchedule.of(zero_snr).min_snr(5.0, last)) == 0
    assert float(NoiseSchedule.of(zero_snr).sigma[999]) == 1
    flow = NoiseSchedule.of(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(OptionError, match="flow"):
        flow.min_snr(5.0, last)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_base_predicts(kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    schedule = NoiseSchedule.of(scheduler)
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    times = torch.tensor([10, 800])
    noisy = schedule.add_noise(clean, noise, times)
    prediction = schedule.target(clean, noise, times)
    for row in range(2):  # from a perfect prediction the scheduler recovers the clean latent
        output = scheduler.step(prediction[row : row + 1], int(times[row]), noisy[row : row + 1])
        original = output.pred_original_sample
        torch.testing.assert_close(original, clean[row : row + 1], atol=1e-4, rtol=1e-4)


def test_flow_matching_interpolates_between_noise_and_picture() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = NoiseSchedule.of(scheduler)
    torch.testing.assert_close(schedule.model_timesteps.flip(0), scheduler.timesteps)
    clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    times = torch.tensor([400])
    noisy = schedule.add_noise(clean, noise, times)
    timestep = schedule.model_timesteps[times]
    torch.testing.assert_close(noisy, scheduler.scale_noise(clean, timestep, noise))
    recovered = noisy - timestep / 1000 * schedule.target(clean, noise, times)
    torch.testing.assert_close(recovered, clean, atol=1e-5, rtol=1e-5)


def test_an_unknown_prediction_is_refused() -> None:
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="unheard-of")
    with pytest.raises(OptionError, match="unheard-of"):
        NoiseSchedule.of(scheduler)


def test_dropout_events_exclude_one_another_and_have_their_rates() -> None:
    image, text = ConditionDropout(0.1, 0.2, 0.3).draw(RandomStreams(range(20_000)))
    both = image & text
    assert abs(float(both.float().mean()) - 0.3) < 0.015
    assert abs(float((image & ~both).float().mean()) - 0.1) < 0.015
    assert abs(float((text & ~both).float().mean()) - 0.2) < 0.015


def test_timesteps_stay_in_range_and_mix_two_distributions() -> None:
    times = Timesteps(0.3, 3.0, 0.1).draw(1000, RandomStreams(range(20_000)))
    assert int(times.min()) >= 0
    assert int(times.max()) <= 999
    high = float((times > 900).float().mean())
    assert 0.7 < high < 0.76  # .7 of the normal, .1 of the uniform third


def test_noise_offset_is_one_number_per_channel() -> None:
    schedule = NoiseSchedule.of(DDPMScheduler())
    latents = torch.zeros(64, 4, 16, 16)
    without = Objective().draw(latents, schedule, RandomStreams(range(64))).noise
    offset = (
        Objective(noise_offset=0.5).draw(latents, schedule, RandomStreams(range(64))).noise
        - without
    )
    torch.testing.assert_close(offset, offset.mean((2, 3), keepdim=True).expand_as(offset))
    assert abs(float(offset[:, :, 0, 0].std()) - 0.5) < 0.08


def test_with_a_base_in_half_precision_sizes_and_adapter_stay_in_float32(
    tmp_path: Path,
) -> None:
    rig = build("sdxl", "plus", tmp_path)
    rig.unet.to(torch.bfloat16)
    case = make_case(rig)
    case.added["time_ids"][:, 0] = torch.tensor([2048.0, 2049.0, 70000.0, 333.0])
    seen = {}
    rig.unet.add_time_proj.register_forward_hook(lambda _, args, __: seen.update(sizes=args[0]))
    losses, gradients = ours(rig, "epsilon", case)
    assert torch.equal(seen["sizes"].reshape(ROWS, 6), case.added["time_ids"])
    assert losses.isfinite().all()
    assert losses.dtype == torch.float32
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())
    assert all(p.dtype == torch.float32 for p in rig.adapter.parameters())


def test_keys_and_values_of_the_text_need_no_gradient(tmp_path: Path) -> None:
    rig = build("sd15", "base", tmp_path)
    requires_grad: list[bool] = []
    for name, module in rig.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda _, __, out: requires_grad.append(out.requires_grad))
    ours(rig, "epsilon", make_case(rig))
    assert len(requires_grad) == 2 * CASES["sd15"].sites
    assert not any(requires_grad)
