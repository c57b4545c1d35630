"""When a reference acts: schedules as text and numbers, in every kind of denoise loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from hosts_table import CASES, SMALLEST
from ids import stable
from imageprompt.attention.step_tracker import (
    StepPosition,
    StepTracker,
    parse_timesteps,
    step_indices,
)
from imageprompt.control import CURVES, Controls, Schedule
from imageprompt.control.controls import compile_scales
from imageprompt.core.errors import GuidanceError, ImagePromptError, OptionError, ScaleError
from ops import count
from rigs import Rig, build, difference
from tiny_stack import make_pipeline

# ── schedules as data ───────────────────────────────────────────────────────────────────────────

TEXTS = [
    "0-1",
    "0-0.4",
    "0.1-0.8 ease-out",
    "ease-in",
    "linear-out",
    "1,0.8,0.5,0",
    "0.25-0.75 0.5,1.5",
    "1e-05-0.5",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text: str) -> None:
    schedule = Schedule.parse(text)
    assert str(schedule) == text
    assert Schedule.parse(str(schedule)) == schedule == Schedule.of(text) == Schedule.of(schedule)


@pytest.mark.parametrize(
    ("percent", "fraction"),
    [
        ("0-40%", "0-0.4"),
        ("0%-40%", "0-0.4"),
        ("10-80% ease-out", "0.1-0.8 ease-out"),
        ("10%-0.8", "0.1-0.8"),
        ("29-58%", "0.29-0.58"),
        ("33.3 % - 100 %", "0.333-1"),
        ("0-50% 1,0.5", "0-0.5 1,0.5"),
    ],
)
def test_percent(percent: str, fraction: str) -> None:
    """Exactly the fractions, and written as such."""
    assert Schedule.parse(percent) == Schedule.parse(fraction)
    assert str(Schedule.parse(percent)) == fraction


def test_short_reprs() -> None:
    assert repr(Schedule.parse("0-40% ease-in")) == "Schedule('0-0.4 ease-in')"
    assert repr(Schedule(end=0.5, curve=math.sqrt)) == "Schedule('0-0.5 function sqrt')"
    assert repr(Controls()) == "Controls(scale=0.8)"
    assert repr(Controls(schedule=Schedule(end=0.5), lora=0.2)) == (
        "Controls(scale=0.8, schedule=Schedule('0-0.5'), lora=0.2)"
    )


def test_factors() -> None:
    """Windows are half-open; x is the part of the window that has passed."""
    assert Schedule.parse("0-0.4").factors(5) == (1, 1, 0, 0, 0)
    assert Schedule.parse("0.4-1").factors(5) == (0, 0, 1, 1, 1)
    assert Schedule.parse("linear-out").factors(4) == (1, 0.75, 0.5, 0.25)
    assert Schedule.parse("linear-in").factors(4) == (0, 0.25, 0.5, 0.75)
    assert Schedule.parse("0.5-1 linear-in").factors(4) == (0, 0, 0, 0.5)
    assert Schedule.parse("ease-in").factors(4) == (0, 0.15625, 0.5, 0.84375)
    assert Schedule.parse("ease-out").factors(4) == (1, 0.84375, 0.5, 0.15625)
    assert Schedule.parse("ease-in-out").factors(4) == (0, 0.5, 1, 0.5)
    assert Schedule.of(math.sqrt).factors(4) == tuple(math.sqrt(i / 4) for i in range(4))
    assert set(CURVES) >= {"constant", "linear-in", "linear-out", "ease-in", "ease-out"}


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 50, 100, 999])
def test_neighbours_meet_without_gap_or_overlap(steps: int) -> None:
    for edge in (0.1, 0.29, 0.3, 1 / 3, 0.7):
        first = Schedule(end=edge).factors(steps)
        second = Schedule(start=edge).factors(steps)
        assert [a + b for a, b in zip(first, second, strict=True)] == [1.0] * steps


@pytest.mark.parametrize("steps", [1, 3, 10, 29, 50, 100])
def test_numbers_for_every_step(steps: int) -> None:
    """As many numbers as steps: one each; fewer are spread evenly."""
    numbers = [i / steps for i in range(steps)]
    assert list(Schedule.of(numbers).factors(steps)) == numbers
    twice = Schedule.of(numbers).factors(2 * steps)
    assert list(twice) == [value for value in numbers for _ in range(2)]


def test_table() -> None:
    """scale[step][site] is the site's number times the step's."""
    from imageprompt.hosts.unet import HOST

    sites = next(spec for spec in HOST.families() if spec.family == "sd15").sites
    controls = Controls(preset="composition", scale=0.8, schedule=Schedule.parse("1,0.5"))
    made = compile_scales(controls, sites, 4)
    assert [sorted(set(row)) for row in made.values] == [[0, 0.2, 0.8]] * 2 + [[0, 0.1, 0.4]] * 2
    assert sum(made.included) == 2


WRONG: list[tuple[Any, str]] = [
    ("", "empty"),
    ("0.4-0.4", "ends before it starts"),
    ("0.8-0.2", "ends before it starts"),
    ("0-1.5", "from 0 to 1"),
    ("0-0.4 ease-ot", "Did you mean ease-out"),
    ("0-40", "0-40%"),
    ("0-140%", "from 0 to 1"),
    ("0.1-40%", "may be a fraction or a percentage"),
    ("0-1e99999999999999999999%", "from 0 to 1"),
    ("1,,0", "not a schedule"),
    ("1,x", "not a schedule"),
    ("1,3", "from 0"),
    ([], "list of numbers is empty"),
    ([1, math.nan], "from 0"),
    ([1, "x"], "from 0 to 2"),
    (3, "not a schedule"),
    (lambda x: 5.0, "schedule(0)"),
    (lambda x: None, "schedule(0)"),
]


@pytest.mark.parametrize(("value", "says"), WRONG, ids=stable)
def test_bad_schedules(value: Any, says: str) -> None:
    with pytest.raises(ImagePromptError) as caught:
        Schedule.of(value).factors(4)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# ── where in a loop ─────────────────────────────────────────────────────────────────────────────

NAMES = [
    "DDIM",
    "DDIMParallel",
    "DDIMInverse",
    "DDPM",
    "DDPMParallel",
    "PNDM",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverMultistepInverse",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
    "LCM",
    "TCD",
    "EDMEuler",
    "EDMDPMSolverMultistep",
    "CMStochasticIterative",
    "UnCLIP",
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "FlowMatchLCM",
]
SCHEDULERS: dict[str, Callable[[], Any]] = {
    name: getattr(diffusers, f"{name}Scheduler") for name in NAMES
}
SCHEDULERS |= {
    "DPM++ 2M Karras": lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "DPM++ 2M SDE": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "Euler trailing": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    "PNDM without Runge-Kutta": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "DDIM v zero-snr": lambda: diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
}


def positions(timesteps: Any, tracker: StepTracker | None = None) -> list[StepPosition]:
    """The position of every call of a loop."""
    tracker = tracker or StepTracker()
    found = []
    for t in timesteps:
        tracker.update(t)
        found.append(tracker.position())
    return found


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name: str) -> None:
    """Steps run from 0 to the last without a gap; one timestep is one step."""
    scheduler = SCHEDULERS[name]()
    if "mu" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(12, mu=None)
    else:
        scheduler.set_timesteps(12)
    values = scheduler.timesteps.tolist()
    found = positions(scheduler.timesteps)
    steps = len(set(values))
    assert {m.steps for m in found} == {steps}
    assert sorted({m.step for m in found}) == list(range(steps))
    by_value = {value: m.step for value, m in zip(values, found, strict=True)}
    assert [by_value[value] for value in values] == [m.step for m in found]
    whole = Schedule(end=0.5).factors(steps)
    on = [value for value, m in zip(values, found, strict=True) if whole[m.step]]
    assert len(set(on)) == math.ceil(steps / 2)
    if "PNDM" not in name and name != "KDPM2AncestralDiscrete":
        assert [m.step for m in found] == sorted(m.step for m in found)


def test_two_calls_at_one_timestep_are_one_step() -> None:
    timesteps = torch.arange(900, 0, -100)
    tracker = StepTracker()
    found = []
    for t in timesteps:
        for _ in range(2):
            tracker.update(t)
            found.append(tracker.position().step)
    assert found == [step for step in range(9) for _ in range(2)]


def test_shortened_schedules_begin_at_their_first_step() -> None:
    """img2img leaves the beginning out; a pipeline that stops early leaves its end out."""
    timesteps = torch.arange(1000, 0, -100)
    assert positions(timesteps[6:]) == [StepPosition(i, 4) for i in range(4)]
    assert positions(timesteps[:3]) == [StepPosition(i, 10) for i in range(3)]  # denoising_end
    tracker = StepTracker()
    for _ in range(2):  # the next run, on the same tensor
        assert positions(timesteps[6:], tracker) == [StepPosition(i, 4) for i in range(4)]


def test_the_same_in_every_form_of_a_timestep() -> None:
    timesteps = torch.arange(1000, 0, -100)
    expected = [StepPosition(i, 10) for i in range(10)]
    assert positions(t.expand(2) for t in timesteps) == expected
    assert positions(t[None] for t in timesteps) == expected
    assert positions(timesteps[i] for i in range(10)) == expected
    with torch.inference_mode():
        assert positions(torch.arange(1000, 0, -100)) == expected


def test_a_loop_may_be_entered_in_its_middle(tmp_path: Path) -> None:
    """use() inside a loop: the step is that of the loop, not of the block."""
    rig = build("tiny", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    inputs, prompt = rig.host.inputs(2), rig.prompt(1)
    timesteps = torch.arange(1000, 0, -250)
    for t in timesteps[:2]:
        rig.host.read(rig.unet, {**inputs, "timestep": t})
    with rig.adapter.use(prompt, 1.0, "negative-positive", schedule="0.5-1") as handle:
        rig.host.read(rig.unet, {**inputs, "timestep": timesteps[2]})
        assert handle._values[0] == 1.0
        assert handle._steps == 4


def test_stated_timesteps() -> None:
    """For loops that pass plain numbers: stated timesteps are looked up by value."""
    timesteps = [900, 600, 600, 300, 0]
    tracker = StepTracker()
    for value, step in zip(timesteps, (0, 1, 1, 2, 3), strict=True):
        for form in (value, float(value), torch.tensor(value), torch.full((2,), value)):
            tracker.update(form)
            assert tracker.position(timesteps) == StepPosition(step, 4)
    tracker.update(555)
    with pytest.raises(GuidanceError, match="not one of the timesteps"):
        tracker.position(timesteps)
    assert parse_timesteps(torch.tensor([3, 2])) == (3.0, 2.0)
    assert step_indices([5, 4, 4, 5, 3]) == [0, 1, 1, 0, 2]
    for wrong in ([], "12", 7, [math.nan], [None]):
        with pytest.raises(OptionError):
            parse_timesteps(wrong)


def test_unknown_steps_are_refused() -> None:
    """Plain numbers, copies, a loop that runs backwards: never silently wrong."""
    timesteps = torch.arange(1000, 0, -100)
    for forms in (
        [500],
        [500.0],
        [torch.tensor(500)],
        [timesteps[2].clone()],
        [timesteps[1:3] * 1],
    ):
        with pytest.raises(GuidanceError, match=r"timesteps=scheduler\.timesteps"):
            positions(forms)
    with pytest.raises(GuidanceError, match="goes back by one"):
        positions(timesteps[i] for i in (5, 4, 3))


# ── at the denoiser ─────────────────────────────────────────────────────────────────────────────


def loop(rig: Rig, timesteps: Sequence[Any], model: Any = None) -> list[Tensor]:
    """The denoiser's outputs, step by step, on the same latents."""
    inputs, model = rig.host.inputs(2), rig.unet if model is None else model
    return [rig.host.read(model, {**inputs, "timestep": t}) for t in timesteps]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = build("tiny", "base", tmp_path)
    made.adapter.attach(made.unet)
    yield made
    made.adapter.detach()


def schedule() -> Tensor:
    return torch.arange(900, 0, -150)  # six steps


def test_every_step_as_its_number_says(rig: Rig) -> None:
    """Off is the base to the bit; on is what the scale gives without a schedule."""
    base = loop(rig, schedule())
    numbers = (1.0, 0.5, 0.0, 0.25, 0.0, 1.5)
    expected = []
    for number, t in zip(numbers, schedule(), strict=True):
        with rig.adapter.use(rig.prompt(1), 0.8 * number, "negative-positive"):
            expected += loop(rig, [t])
    with rig.adapter.use(rig.prompt(1), scale=0.8, schedule=numbers):
        for _ in range(2):  # the second run begins at the first step again
            found = loop(rig, schedule())
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(found[i], base[i]) for i in (2, 4))


def test_live_changes_keep_the_step(rig: Rig) -> None:
    timesteps = schedule()
    with rig.adapter.use(rig.prompt(1), scale=0.4):
        expected = loop(rig, timesteps)
    with rig.adapter.use(rig.prompt(1), schedule="1,0.5") as handle:
        loop(rig, timesteps[:3])
        handle.scale = 0.8
        found = loop(rig, timesteps[3:])
    assert all(torch.equal(a, b) for a, b in zip(found, expected[3:], strict=True))


def test_a_schedule_that_fails_in_the_loop_changes_nothing(rig: Rig) -> None:
    broken = True
    with rig.adapter.use(rig.prompt(1), schedule=lambda x: 5.0 if broken and x else 1.0):
        with pytest.raises(ScaleError, match=r"schedule\(0.16"):
            loop(rig, schedule())
        broken = False
        found = loop(rig, schedule())
    with rig.adapter.use(rig.prompt(1)):
        expected = loop(rig, schedule())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("schedule_", ["0.9-1", lambda x: 0.0, "0,0"])
def test_a_schedule_without_effect_is_a_warning(schedule_: Any, rig: Rig) -> None:
    base = loop(rig, schedule())
    with (
        rig.adapter.use(rig.prompt(1), schedule=schedule_),
        pytest.warns(UserWarning, match="is 0 at each of the 6 steps"),
    ):
        found = loop(rig, schedule())
    assert all(torch.equal(a, b) for a, b in zip(found, base, strict=True))


def test_a_constant_schedule_needs_no_step(rig: Rig) -> None:
    """Numbers and copies as timesteps: no step is needed, so nothing is refused."""
    with rig.adapter.use(rig.prompt(1), schedule="0-1"):
        loop(rig, [500, torch.tensor(400)])
    with rig.adapter.use(rig.prompt(1), schedule="0-0.5"), pytest.raises(GuidanceError):
        loop(rig, [500])
    with rig.adapter.use(rig.prompt(1), schedule="0-0.5", timesteps=[500, 400]):
        on, off = loop(rig, [500, 400])
    base = loop(rig, [500, 400])
    assert torch.equal(off, base[1])
    assert not torch.equal(on, base[0])


def test_a_schedule_costs_no_operation(tmp_path: Path) -> None:
    """Counted on every step after the first: as without one, and less where it is off."""
    rig = build("sd15", "plus", tmp_path)
    rig.adapter.attach(rig.unet)
    inputs, timesteps = rig.host.inputs(2), schedule()

    def operations(**use: Any) -> list[int]:
        with rig.adapter.use(rig.prompt(1), **use):
            return [
                sum(count(lambda t=t: rig.host.read(rig.unet, {**inputs, "timestep": t})).values())
                for t in timesteps
            ][1:]

    plain, off = operations(), operations(scale=0.0)
    assert operations(schedule="linear-out") == plain
    assert operations(schedule="0-0.5") == plain[:2] + off[2:]
    masked = operations(mask=torch.ones(8, 8))
    assert [a - b for a, b in zip(masked, plain, strict=True)] == [CASES["sd15"].sites] * 5
    style = operations(preset="style transfer")
    assert [a - b for a, b in zip(plain, style, strict=True)] == [2 * 5] * 5  # five sites are off


def test_lora_is_off_where_the_schedule_is(rig: Rig) -> None:
    timesteps = schedule()
    with rig.adapter.use(rig.prompt(1), schedule="0-0.5") as handle:
        handle.lora = 0.7
        strengths = []
        for t in timesteps:
            loop(rig, [t])
            strengths.append(round(handle.lora_strength.item(), 6))
    assert strengths == [0.7] * 3 + [0.0] * 3


# ── in pipelines ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("strength", "steps"), [(None, 6), (0.5, 3)])
def test_pipelines(strength: float | None, steps: int) -> None:
    """Text to image, and from a picture: half of the steps that are run."""
    import imageprompt as ip

    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    adapter = ip.Adapter.create("base", denoiser=pipe.unet, encoder=pipe.image_encoder)
    adapter.attach(pipe.unet)
    features = torch.randn(1, 24, generator=torch.Generator().manual_seed(4))
    more: dict[str, Any] = {}
    if strength is not None:
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
        pipe.set_progress_bar_config(disable=True)
        more = {"image": torch.rand(1, 3, 16, 16), "strength": strength}
    seen: list[tuple[int, float]] = []
    with adapter.use(adapter.encode(features=features), 1.0, schedule="0-0.5") as handle:
        pipe.unet.register_forward_hook(lambda *_: seen.append((handle._step, handle._values[0])))
        for _ in range(2):
            pipe("a red star", num_inference_steps=6, output_type="latent", **more)
    half = math.ceil(steps / 2)
    assert seen == [(i, float(i < half)) for i in range(steps)] * 2


# ── compiled, and cached ────────────────────────────────────────────────────────────────────────


def test_compiled(tmp_path: Path) -> None:
    """Another step is another row of numbers: one graph, and the step is still known.

    Masks, negative rows and scaled keys are part of the graph.
    """
    use: dict[str, Any] = {
        "schedule": "0-0.5 linear-out",
        "preset": "style transfer precise",
        "scaling": "K+mean(V) w/ C penalty",
        "mask": torch.eye(8),
    }
    torch._dynamo.reset()
    rig = build(SMALLEST, "base", tmp_path)
    rig.adapter.attach(rig.unet)
    base = loop(rig, schedule())
    with rig.adapter.use(rig.prompt(1), **use):
        expected = loop(rig, schedule())
    counter = CompileCounter()
    model, counts = torch.compile(rig.unet, backend=counter, fullgraph=True), []
    with rig.adapter.use(rig.prompt(1), **use):
        for _ in range(2):
            for t, out in zip(schedule(), expected, strict=True):
                assert difference(loop(rig, [t], model)[0], out) <= 1e-5
                counts.append(counter.frame_count)
    assert len(set(counts)) == 1, counts
    assert difference(expected[0], base[0]) > 1e-3
    assert difference(expected[4], base[4]) == 0
    torch._dynamo.reset()


def broadcast(unet: Any) -> None:
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    apply_pyramid_attention_broadcast(
        unet,
        PyramidAttentionBroadcastConfig(
            cross_attention_block_skip_range=100,
            spatial_attention_block_skip_range=100,
            current_timestep_callback=lambda: 500,
        ),
    )


def taylor(unet: Any) -> None:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    config = TaylorSeerCacheConfig(
        cache_interval=100, disable_cache_before_step=1, cache_identifiers=[r".*attn2$"]
    )
    apply_taylorseer_cache(unet, config)
    _set_cache_context(unet, CacheContext("loop"))  # as a pipeline does around its calls


@pytest.mark.parametrize("apply", [broadcast, taylor])
def test_caches_over_steps(apply: Callable[[Any], None], rig: Rig) -> None:
    """Their contents are void as soon as the adapter adds something else."""
    base = loop(rig, schedule())
    with rig.adapter.use(rig.prompt(1)):
        full = loop(rig, schedule())
    with rig.adapter.use(rig.prompt(1), scale=0.5):
        half = loop(rig, schedule())
    apply(rig.unet)
    plain = loop(rig, schedule()[:2])
    assert difference(plain[1], base[1]) > 1e-6  # the cache is at work
    with rig.adapter.use(rig.prompt(1), 0.8, "negative-positive", schedule="0-0.5") as handle:
        found = loop(rig, schedule())
        assert torch.equal(found[0], full[0])
        assert difference(found[1], full[1]) > 1e-6  # and stays so where nothing changes
        assert torch.equal(found[3], base[3])  # the schedule ends here
        handle.controls = Controls(scale=1.0)
        loop(rig, schedule()[:2])
        handle.scale = 0.5
        assert torch.equal(loop(rig, schedule()[2:3])[0], half[2])
    assert torch.equal(loop(rig, schedule()[3:4])[0], base[3])
    with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
        assert torch.equal(loop(rig, schedule()[4:5])[0], full[4])


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_a_cache_that_cuts_the_batch_is_refused(rig: Rig) -> None:
    """FasterCache with guidance drops the negative half inside the call: an error of one line."""
    from diffusers.hooks import FasterCacheConfig, apply_faster_cache

    apply_faster_cache(
        rig.unet,
        FasterCacheConfig(
            spatial_attention_block_skip_range=100,
            unconditional_batch_skip_range=100,
            unconditional_batch_timestep_skip_range=(-1, 1001),
            tensor_format="BCHW",
            current_timestep_callback=lambda: 500,
        ),
    )
    inputs = rig.host.inputs(2)
    text, latents, when = inputs["encoder_hidden_states"], inputs["sample"], torch.tensor([5, 5])

    def call() -> None:
        with torch.no_grad():
            rig.unet(latents, timestep=when, encoder_hidden_states=text, return_dict=False)

    with rig.adapter.use(rig.prompt(1)):
        call()
        with pytest.raises(GuidanceError, match="FasterCache"):
            call()


def test_scale_errors_name_the_step() -> None:
    with pytest.raises(ScaleError, match=r"schedule\(0\.5\)"):
        Schedule.of(lambda x: 1.0 if x < 0.5 else math.inf).factors(4)
