"""Calls that could be read in two ways: decided by what runs, or refused with both readings."""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from hosts_table import ONE_SITE, SMALLEST
from imageprompt.attention.state import AttentionState
from imageprompt.attention.step_tracker import StepTracker
from imageprompt.core.errors import GuidanceError
from rigs import Rig, bare_pipeline, build

TIMES = torch.arange(900, 0, -300)
Calls = list[dict[str, Any]]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = build(SMALLEST, "base", tmp_path)
    rig.adapter.attach(rig.unet)
    return rig


def text(rows: int, seed: int = 3) -> Tensor:
    return torch.randn(rows, 7, 32, generator=torch.Generator().manual_seed(seed))


def width_of(rig: Rig) -> int:
    return int(rig.host.inputs(1)["encoder_hidden_states"].shape[-1])


def run(rig: Rig, texts: int = 1, *, pipe: Any = None, **options: Any) -> Tensor:
    """Two steps of a real pipeline on encoded texts, as latents."""
    words = torch.randn(texts, 7, width_of(rig), generator=torch.Generator().manual_seed(3))
    made: Tensor = (pipe or bare_pipeline(rig.unet))(
        **{
            "prompt_embeds": words,
            "negative_prompt_embeds": torch.zeros_like(words),
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "output_type": "latent",
            "height": 8,
            "width": 8,
            "generator": torch.Generator().manual_seed(1),
            **options,
        }
    )[0]
    return made


def same_noise(rig: Rig, rows: int) -> Tensor:
    shape = (1, rig.host.channels, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).repeat(rows, 1, 1, 1)


# ── 1: counts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("texts", "images", "scale"),
    [(1, 1, 5.0), (1, 3, 5.0), (3, 1, 5.0), (1, 3, 1.0), (1, 4, 1.0), (1, 4, 5.0), (3, 2, 5.0)],
)
def test_two_image_prompts_for_other_numbers_of_texts(
    texts: int, images: int, scale: float, rig: Rig
) -> None:
    with pytest.raises(GuidanceError), rig.adapter.use(rig.prompt(1, 1)):
        run(rig, texts, num_images_per_prompt=images, guidance_scale=scale)


@pytest.mark.parametrize(("texts", "images"), [(2, 1), (2, 2), (1, 2)])
def test_one_for_each_text_or_for_each_picture(texts: int, images: int, rig: Rig) -> None:
    """Each picture is what it is with its own reference alone."""
    noise = same_noise(rig, texts * images)
    with rig.adapter.use(rig.prompt(1, 1)):
        found = run(rig, texts, num_images_per_prompt=images, latents=noise)
    alone = []
    for features in rig.features(1, 1):
        prompt = rig.adapter.encode(features=features, null_features=rig.kind.null_features())
        with rig.adapter.use(prompt):
            alone.append(run(rig, texts, num_images_per_prompt=images, latents=noise))
    rows = texts * images
    for row in range(rows):
        expected = alone[row * 2 // rows][row]
        assert torch.allclose(found[row], expected, atol=1e-5), row


# ── 2: no guidance, equal latents ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rows", [2, 4])
def test_no_guidance_on_one_noise(rows: int, rig: Rig) -> None:
    """guidance_scale=1: no row is negative, whatever the latents look like."""
    with rig.adapter.use(rig.prompt(1)):
        together = run(
            rig, num_images_per_prompt=rows, latents=same_noise(rig, rows), guidance_scale=1.0
        )
        one = run(rig, latents=same_noise(rig, 1), guidance_scale=1.0)
    assert all(torch.allclose(row, one[0], atol=1e-5) for row in together)


@pytest.mark.sample(2)
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_no_guidance_on_one_noise_compiled(how: str, tmp_path: Path) -> None:
    """The pipeline is asked outside of the graph of its denoiser."""
    torch._dynamo.reset()
    rig = build(ONE_SITE, "base", tmp_path)
    rig.adapter.attach(rig.unet)
    pipe, noise = bare_pipeline(rig.unet), same_noise(rig, 2)
    with rig.adapter.use(rig.prompt(1)):
        one = run(rig, pipe=pipe, latents=noise[:1], guidance_scale=1.0)
    if how == "wrapped":
        pipe.unet = torch.compile(rig.unet, backend="eager", fullgraph=True)
    else:
        rig.unet.compile(backend="eager", fullgraph=True)
    with rig.adapter.use(rig.prompt(1)):
        found = run(rig, pipe=pipe, num_images_per_prompt=2, latents=noise, guidance_scale=1.0)
    assert all(torch.allclose(row, one[0], atol=1e-5) for row in found)
    torch._dynamo.reset()


def loop(rig: Rig, words: Tensor, noise: Tensor, *, guided: bool, times: Tensor = TIMES) -> None:
    """A loop of the user's own: the pictures differ after the first step."""
    for t in times:
        out = rig.host.read(
            rig.unet, {"sample": noise, "timestep": t, "encoder_hidden_states": words}
        )
        out = out[: len(out) // 2].repeat(2, 1, 1, 1) if guided else out
        noise = noise + 0.1 * out


def test_a_loop_of_ones_own_is_told_by_its_second_step(rig: Rig) -> None:
    words = torch.cat([torch.zeros_like(text(1, 1)), text(1, 2)])
    words = torch.randn(2, 7, width_of(rig), generator=torch.Generator().manual_seed(4))
    with rig.adapter.use(rig.prompt(1)):
        loop(rig, words, same_noise(rig, 2), guided=True)
    with pytest.raises(GuidanceError, match="or pictures"), rig.adapter.use(rig.prompt(1)):
        loop(rig, words, same_noise(rig, 2), guided=False)
    with rig.adapter.use(rig.prompt(1), guidance="none"):
        loop(rig, words, same_noise(rig, 2), guided=False)


def test_two_prompts_in_a_guided_batch_of_two(rig: Rig) -> None:
    """A reference for each row, and then the second step shows guidance."""
    words = torch.randn(2, 7, width_of(rig), generator=torch.Generator().manual_seed(4))
    with pytest.raises(GuidanceError, match="one noise"), rig.adapter.use(rig.prompt(1, 1)):
        loop(rig, words, same_noise(rig, 2), guided=True)


@pytest.mark.parametrize("t", [TIMES[0], torch.tensor(900), 900], ids=["view", "tensor", "number"])
def test_a_single_step_is_not_decided_in_silence(t: Any, rig: Rig) -> None:
    """One picture in one step (Turbo): also if loops that were confirmed come after it."""
    words = torch.randn(2, 7, width_of(rig), generator=torch.Generator().manual_seed(4))
    inputs = {"sample": same_noise(rig, 2), "timestep": t, "encoder_hidden_states": words}

    def use(*, more: bool) -> None:
        with rig.adapter.use(rig.prompt(1)):
            rig.host.read(rig.unet, inputs)
            if more:
                loop(rig, words, same_noise(rig, 2), guided=True, times=TIMES.clone())

    for more in (False, True):
        with pytest.warns(UserWarning, match="one single step"):
            use(more=more)


# ── 3: guidance in two calls ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("copies", [False, True])
def test_two_calls_are_refused_unless_the_branch_is_stated(copies: bool, rig: Rig) -> None:
    negative, positive = (rig.host.inputs(1, seed=seed)["encoder_hidden_states"] for seed in (1, 2))
    noise = same_noise(rig, 1)

    def calls(handle: Any, *, stated: bool) -> list[Tensor]:
        made = []
        for t in TIMES:
            for branch, words in (("negative", negative), ("positive", positive)):
                if stated:
                    handle.guidance = branch
                sample = noise.clone() if copies else noise
                inputs = {"sample": sample, "timestep": t, "encoder_hidden_states": words}
                made.append(rig.host.read(rig.unet, inputs))
        return made

    with (
        pytest.raises(GuidanceError, match=r"handle\.guidance"),
        rig.adapter.use(rig.prompt(1)) as h,
    ):
        calls(h, stated=False)
    with rig.adapter.use(rig.prompt(1)) as handle:
        apart = calls(handle, stated=True)
    with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
        both = {
            "sample": same_noise(rig, 2),
            "encoder_hidden_states": torch.cat([negative, positive]),
        }
        for step, t in enumerate(TIMES):
            rows = rig.host.read(rig.unet, {**both, "timestep": t})
            for row in range(2):
                assert torch.allclose(rows[row], apart[2 * step + row][0], atol=1e-5)


def test_two_calls_of_a_guided_pipeline_are_refused(rig: Rig) -> None:
    """A pipeline says that it is guided, but not which of its two calls is which."""
    from diffusers import DiffusionPipeline

    class TwoCalls(DiffusionPipeline):  # type: ignore[misc]
        do_classifier_free_guidance = True

        def __init__(self, unet: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet)

        def __call__(self) -> None:
            noise = same_noise(rig, 1)
            for t in TIMES:
                for seed in (1, 2):
                    words = rig.host.inputs(1, seed=seed)["encoder_hidden_states"]
                    inputs = {"sample": noise, "timestep": t, "encoder_hidden_states": words}
                    rig.host.read(self.unet, inputs)

    pipe = TwoCalls(rig.unet)
    with (
        pytest.raises(GuidanceError, match="two calls at one step"),
        rig.adapter.use(rig.prompt(1)),
    ):
        pipe()


def test_the_guider_of_a_modular_loop_tells_the_branch(tmp_path: Path) -> None:
    """diffusers' own block of its modular SDXL pipeline, with its guider."""
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines import BlockState
    from diffusers.modular_pipelines.stable_diffusion_xl.denoise import (
        StableDiffusionXLLoopDenoiser,
    )

    rig = build("sdxl", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    batch = rig.host.inputs(2)
    added = batch["added_cond_kwargs"]
    negative, positive = batch["encoder_hidden_states"].chunk(2)
    pooled, ids = added["text_embeds"].chunk(2), added["time_ids"].chunk(2)
    state = BlockState(
        scaled_latents=batch["sample"][:1],
        num_inference_steps=3,
        timestep_cond=None,
        cross_attention_kwargs=None,
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=pooled[1],
        negative_pooled_prompt_embeds=pooled[0],
        add_time_ids=ids[1],
        negative_add_time_ids=ids[0],
    )
    parts = SimpleNamespace(guider=ClassifierFreeGuidance(guidance_scale=5.0), unet=rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        found = StableDiffusionXLLoopDenoiser()(parts, state, 0, TIMES[0])[1].noise_pred
    with rig.adapter.use(rig.prompt(1), guidance="negative-positive"):
        uncond, cond = rig.host.read(rig.unet, {**batch, "timestep": TIMES[0]}).chunk(2)
    assert torch.allclose(found, uncond + 5.0 * (cond - uncond), atol=1e-4)
    assert not torch.allclose(cond, uncond, atol=1e-2)


# ── 4: a denoiser that is never called ──────────────────────────────────────────────────────────


def test_a_block_whose_denoiser_was_never_called_warns(rig: Rig) -> None:
    other = copy.deepcopy(rig.unet)
    with pytest.warns(UserWarning, match="never called inside use"), rig.adapter.use(rig.prompt(1)):
        rig.host.read(other, rig.host.inputs(2))


def test_an_error_in_the_block_is_not_drowned_in_a_warning(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError), rig.adapter.use(rig.prompt(1)):
        raise ZeroDivisionError


# ── stale properties ────────────────────────────────────────────────────────────────────────────


def test_the_pipeline_that_runs_is_asked(rig: Rig) -> None:
    """Another pipeline of the same parts was guided before; its properties are stale."""
    first, second = bare_pipeline(rig.unet), bare_pipeline(rig.unet)
    with rig.adapter.use(rig.prompt(1)):
        run(rig, pipe=first, guidance_scale=5.0)
        found = run(
            rig,
            pipe=second,
            guidance_scale=1.0,
            num_images_per_prompt=2,
            latents=same_noise(rig, 2),
        )
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert first.do_classifier_free_guidance
    assert not second.do_classifier_free_guidance


# ── 5: threads, tasks, interleaved loops ────────────────────────────────────────────────────────


def alone(rig: Rig, seed: int, **use: Any) -> list[Tensor]:
    inputs = rig.host.inputs(2, seed=seed)
    with rig.adapter.use(rig.prompt(1, seed=seed), **use):
        return [rig.host.read(rig.unet, {**inputs, "timestep": t}) for t in TIMES.clone()]


@pytest.mark.parametrize("schedule", [None, "0-0.5"])
def test_threads_hear_their_own_references(schedule: str | None, rig: Rig) -> None:
    """Six threads on one denoiser, one of them without a reference, but with steps of its own."""
    expected = [alone(rig, seed, schedule=schedule) for seed in range(5)]
    inputs = rig.host.inputs(2, seed=9)
    plain = rig.host.read(rig.unet, {**inputs, "timestep": TIMES[0]})
    found: dict[int, list[list[Tensor]]] = {}
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        start.wait()
        found[seed] = [alone(rig, seed, schedule=schedule) for _ in range(4)]

    def work_plain() -> None:
        start.wait()
        found[9] = [[rig.host.read(rig.unet, {**inputs, "timestep": TIMES[0]})] for _ in range(12)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    threads.append(threading.Thread(target=work_plain))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == 6
    for seed, wanted in enumerate(expected):
        for outputs in found[seed]:
            assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True)), seed
    assert all(torch.equal(made[0], plain) for made in found[9])


def test_no_prompt_is_lost_where_threads_begin_together() -> None:
    """Between reading and writing what is in use, another thread may come."""
    state, lost = AttentionState(), list[object]()
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(2000):
            prompt: Any = Mock(state=state)  # equal to itself only
            state.enter(prompt)
            if prompt not in state.open:
                lost.append(prompt)
            state.leave(prompt)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(before)
    assert not lost
    assert not state.open


def test_a_call_without_a_prompt_does_not_move_the_clock_of_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between reading the timestep of a call and asking which step that is."""
    expected = alone(rig, 1, schedule="0-0.5")
    times = torch.arange(800, 0, -100)
    inputs = {**rig.host.inputs(2, seed=9), "timestep": times[7]}
    others: list[threading.Thread] = []
    position = StepTracker.position

    def interrupted(tracker: StepTracker, *args: Any) -> Any:
        others.append(threading.Thread(target=rig.host.read, args=(rig.unet, inputs)))
        others[-1].start()
        others[-1].join(0.2)
        return position(tracker, *args)

    monkeypatch.setattr(StepTracker, "position", interrupted)
    found = alone(rig, 1, schedule="0-0.5")
    for other in others:
        other.join(300)
    assert len(others) == len(TIMES)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_tasks_hear_their_own_references(rig: Rig) -> None:
    expected = [alone(rig, seed) for seed in range(3)]

    async def task(seed: int) -> list[Tensor]:
        inputs, made = rig.host.inputs(2, seed=seed), []
        with rig.adapter.use(rig.prompt(1, seed=seed)):
            for t in TIMES.clone():
                await asyncio.sleep(0)
                made.append(rig.host.read(rig.unet, {**inputs, "timestep": t}))
        return made

    async def all_of_them() -> list[list[Tensor]]:
        return await asyncio.gather(*(task(seed) for seed in range(3)))

    for outputs, wanted in zip(asyncio.run(all_of_them()), expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))


def test_a_thread_started_in_the_block_is_outside_of_it(rig: Rig) -> None:
    inputs = {**rig.host.inputs(2), "timestep": TIMES[0]}
    plain, seen = rig.host.read(rig.unet, inputs), []

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: seen.append(rig.host.read(rig.unet, inputs)))
        thread.start()
        thread.join(300)

    with pytest.warns(UserWarning, match="in this thread or task"), rig.adapter.use(rig.prompt(1)):
        in_a_thread()
    assert torch.equal(seen[0], plain)


def test_interleaved_loops_keep_their_own_step(rig: Rig) -> None:
    """Two loops over schedules of their own take turns, one of them two steps behind."""
    inputs = [rig.host.inputs(2, seed=seed) for seed in (1, 2)]
    times = [torch.arange(900, 0, -225), torch.arange(800, 0, -200)]

    def step(which: int, i: int) -> Tensor:
        return rig.host.read(rig.unet, {**inputs[which], "timestep": times[which][i]})

    with rig.adapter.use(rig.prompt(1), schedule="0-0.5"):
        apart = [[step(which, i) for i in range(4)] for which in range(2)]
    times = [one.clone() for one in times]
    with rig.adapter.use(rig.prompt(1), schedule="0-0.5"):
        mixed: list[list[Tensor]] = [[], []]
        for which, i in [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (0, 3), (1, 2), (1, 3)]:
            mixed[which].append(step(which, i))
    for which in range(2):
        assert all(torch.equal(*pair) for pair in zip(apart[which], mixed[which], strict=True))


def test_a_step_that_cannot_be_told_is_an_error(rig: Rig) -> None:
    inputs = {**rig.host.inputs(2), "timestep": torch.tensor(300)}
    use = rig.adapter.use(rig.prompt(1), schedule="0-0.5")
    with pytest.raises(GuidanceError, match="timesteps="), use:
        rig.host.read(rig.unet, inputs)


def test_an_interrupted_call_does_not_block_the_others(rig: Rig) -> None:
    """Ctrl-C in the middle of a call: other threads go on."""
    inputs = {**rig.host.inputs(2), "timestep": TIMES[0]}
    expected = alone(rig, 1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = rig.unet.mid_block.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), rig.adapter.use(rig.prompt(1)):
        rig.host.read(rig.unet, inputs)
    hook.remove()
    found: list[list[Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(alone(rig, 1)))
    thread.start()
    thread.join(300)
    assert all(torch.equal(*pair) for pair in zip(found[0], expected, strict=True))


def test_backward_in_another_thread_hears_the_prompt(tmp_path: Path) -> None:
    """Gradient checkpointing runs blocks again where autograd runs, on a GPU in another thread."""
    rig = build("tiny", "base", tmp_path)
    rig.unet.enable_gradient_checkpointing()
    rig.unet.train()
    for weight in rig.adapter.parameters():
        weight.requires_grad_(True)
    rig.adapter.attach(rig.unet)
    inputs = {**rig.host.inputs(1)}

    def gradients(*, thread: bool) -> list[Tensor]:
        for weight in rig.adapter.parameters():
            weight.grad = None
        with rig.adapter.use(rig.prompt(1), guidance="none"):
            loss = rig.unet(**inputs).sample.square().sum()
            if thread:
                worker = threading.Thread(target=loss.backward)
                worker.start()
                worker.join(300)
            else:
                loss.backward()
        weights = rig.adapter.module.ip_adapter.parameters()
        return [weight.grad.clone() for weight in weights]

    pairs = zip(gradients(thread=False), gradients(thread=True), strict=True)
    assert all(torch.equal(*pair) and pair[0].any() for pair in pairs)


def test_backward_beside_another_threads_prompt_is_refused(tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path)
    rig.unet.enable_gradient_checkpointing()
    rig.unet.train()
    for weight in rig.adapter.parameters():
        weight.requires_grad_(True)
    rig.adapter.attach(rig.unet)
    errors: list[BaseException] = []

    def in_a_thread(target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        thread.join(300)

    def backward(loss: Tensor) -> None:
        try:
            loss.backward()
        except GuidanceError as error:
            errors.append(error)

    def use_beside(loss: Tensor) -> None:
        with rig.adapter.use(rig.prompt(1), guidance="none") as handle:
            handle.called = True
            in_a_thread(backward, loss)

    with rig.adapter.use(rig.prompt(1), guidance="none"):
        in_a_thread(use_beside, rig.unet(**rig.host.inputs(1)).sample.square().sum())
    assert len(errors) == 1
    assert "several threads" in str(errors[0])
