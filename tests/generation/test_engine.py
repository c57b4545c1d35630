"""Engine: what it keeps, what it notices, its hooks, threads and batches."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from imageprompt import loading
from imageprompt.core import bundled, errors
from imageprompt.loading import models as kept_models
from imageprompt.loading.models import Kept, Turn
from tiny_stack import SIDE, make_pipeline

QUICK: dict[str, Any] = {"steps": 2, "progress": False}


@pytest.fixture(autouse=True)
def nothing_kept() -> Any:
    ip.release()
    yield
    ip.release()


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((24, 24))


def bits(result: ip.GenerationResult) -> list[bytes]:
    return [image.tobytes() for image in result.images]


def fresh(**arguments: Any) -> list[bytes]:
    """The pictures of an engine that made nothing before."""
    return bits(ip.Engine().generate(**arguments, **QUICK))


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Counts the calls of a function of `loading`."""
    calls: list[object] = []
    real = getattr(loading, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(loading, name, counted)
    return calls


# ── what is kept ────────────────────────────────────────────────────────────────────────────────


def test_base_and_adapter_are_loaded_once(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases, adapters = count(monkeypatch, "load_base"), count(monkeypatch, "load_adapter_file")
    first = ip.generate("a star", picture(1), **QUICK)
    second = ip.generate("a star", picture(1), **QUICK)
    assert bits(first) == bits(second)
    assert first.recipe == second.recipe
    assert (len(bases), len(adapters)) == (1, 1)
    ip.release()
    assert bits(ip.generate("a star", picture(1), **QUICK)) == bits(first)
    assert len(bases) == 2


def test_release_of_one_base_and_the_bound(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = count(monkeypatch, "load_base")
    other = tmp_path / "other"
    shutil.copytree(bundled.folder(), other)
    for base in (None, other, None, other):
        ip.generate("a star", scale=0, base=base, **QUICK)
    assert len(bases) == 2
    ip.release(other)
    for base in (None, other):
        ip.generate("a star", scale=0, base=base, **QUICK)
    assert len(bases) == 3
    assert len(kept_models._kept) <= kept_models.LIMIT


def test_a_reference_is_encoded_once(tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imageprompt.encoding.encode import ReferenceEncoder

    calls: list[object] = []
    real = ReferenceEncoder.encode
    monkeypatch.setattr(
        ReferenceEncoder, "encode", lambda *a, **k: (calls.append(a), real(*a, **k))[1]
    )
    engine = ip.Engine()
    first = engine.generate("a star", picture(1), **QUICK)
    assert first.image_prompt is not None
    first.image_prompt.tokens.zero_()  # the caller's copy
    again = engine.generate("a circle", picture(1), seed=4, **QUICK)
    assert len(calls) == 1
    assert bits(again) == fresh(prompt="a circle", reference=picture(1), seed=4)
    engine.generate("a star", picture(1), framing="pad", **QUICK)
    engine.generate("a star", picture(2), **QUICK)
    assert len(calls) == 4  # `fresh` encoded it too


@pytest.mark.sample(2)
@pytest.mark.parametrize("part", ["unet", "adapter", "encoder"])
def test_a_change_on_disk_is_noticed(tiny_bundled: Path, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    shutil.copytree(bundled.folder(), folder)
    pattern = {"unet": "unet/*.safetensors", "adapter": "adapters/plus.safetensors"}
    changed = next(folder.glob(pattern.get(part, "image_encoder/*.safetensors")))
    engine = ip.Engine(folder, adapter="plus")
    before = engine.generate("a star", picture(1), scale=2, guidance_scale=5, **QUICK)
    tensors = load_file(changed)
    from safetensors import safe_open

    with safe_open(changed, "pt") as file:
        metadata = file.metadata()
    save_file({name: t * 1.5 for name, t in tensors.items()}, changed, metadata)
    after = engine.generate("a star", picture(1), scale=2, guidance_scale=5, **QUICK)
    expected = ip.Engine(folder, adapter="plus").generate(
        "a star", picture(1), scale=2, guidance_scale=5, **QUICK
    )
    assert bits(after) == bits(expected)
    assert after.recipe == expected.recipe
    assert after.recipe != before.recipe


def test_an_adapter_larger_than_any_picture_file(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of pictures and face embeddings is not that of adapters."""
    from imageprompt.loading import assets

    monkeypatch.setattr(assets.file_hash, "__defaults__", (1000,))
    with pytest.raises(OSError, match="more than"):
        assets.file_hash(tiny_bundled / "adapters" / "plus.safetensors")
    made = ip.generate("a star", picture(1), **QUICK)
    assert made.recipe.adapter is not None


def test_dtype_and_device_are_those_that_are_meant(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stated or by default, they are one base."""
    bases = count(monkeypatch, "load_base")
    device = loading.usable_device(None)
    stated = {"device": device, "dtype": loading.default_dtype(device)}
    ip.generate("a star", scale=0, **QUICK)
    ip.generate("a star", scale=0, **stated, **QUICK)
    assert len(bases) == 1


def test_one_file_used_in_two_ways_is_loaded_once(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each use has an image encoder of its own; the weights are the same."""
    files = count(monkeypatch, "load_adapter_file")
    encoder = tiny_bundled / "image_encoder"
    found = bits(ip.generate("a star", picture(1), **QUICK))
    assert bits(ip.generate("a star", picture(1), encoder=encoder, **QUICK)) == found
    both = [ip.Reference(reference=picture(1), encoder=encoder, scale=0.0)]
    assert bits(ip.generate("a star", picture(1), also=both, **QUICK)) == found
    assert len(files) == 1


def test_kept_is_bounded() -> None:
    kept: Kept[int] = Kept(2)
    for key in (1, 2, 1, 3):
        kept.get(key, lambda key=key: key)  # type: ignore[misc]
    assert len(kept) == 2
    assert kept.get(1, lambda: -1) == 1
    assert kept.get(2, lambda: -1) == -1


def test_a_loaded_pipeline_is_left_as_it_was_and_can_be_freed() -> None:
    pipe = make_pipeline()
    scheduler, processors = pipe.scheduler, dict(pipe.unet.attn_processors)
    engine = ip.Engine(pipe)
    engine.generate("a star", scale=0, size=(SIDE, SIDE), **QUICK)
    assert pipe.scheduler is scheduler
    assert pipe.unet.attn_processors == processors
    assert not pipe.unet._forward_hooks
    gone = weakref.ref(pipe)
    del engine, pipe, scheduler, processors
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("attached", [True, False])
def test_an_adapter_is_attached_afterwards_if_it_was_before(
    tiny_bundled: Path, attached: bool
) -> None:
    pipe = loading.load_base(None, tiny_bundled, dtype=None, device="cpu", bars=False).pipe
    adapter = ip.Adapter.load(bundled.adapter("plus"), dtype=torch.float32)
    if attached:
        adapter.attach(pipe, encoder=pipe.image_encoder)
    engine = ip.Engine(pipe, adapter=adapter, encoder=pipe.image_encoder)
    made = engine.generate("a star", picture(1), **QUICK)
    (other,) = engine.generate_many(
        [{"prompt": "a star", "reference": picture(1), "steps": 2}], progress=False
    )
    file = Path(bundled.adapter("plus"))
    wanted = engine.generate("a star", picture(1), adapter=file, **QUICK)
    assert bits(other) == bits(made) == bits(wanted)
    assert adapter.attached is attached
    assert bool(pipe.unet._forward_hooks or pipe.unet._forward_pre_hooks) is attached


def test_defaults_of_the_engine(tiny_bundled: Path) -> None:
    engine = ip.Engine(adapter="base")
    used = engine.generate("a star", picture(1), **QUICK).recipe.adapter
    assert used is not None
    assert used.name == "base"
    named = engine.generate("a star", picture(1), adapter="plus", **QUICK).recipe.adapter
    assert named is not None
    assert named.name == "plus"


@pytest.mark.parametrize("name", ["base", "dtype", "device"])
def test_another_base_in_a_call_names_both_readings(tiny_bundled: Path, name: str) -> None:
    with pytest.raises(errors.OptionError, match=f"the engine has its own {name}") as caught:
        ip.Engine().generate("a star", scale=0, **{name: "cpu"}, **QUICK)
    assert f"Engine({name}=" in str(caught.value)


def test_repeat_of_an_engine(tiny_bundled: Path, tmp_path: Path) -> None:
    engine = ip.Engine()
    made = engine.generate("a star", picture(1), num_images=2, **QUICK)
    path = made.save(tmp_path)[1]
    assert bits(engine.repeat(path, progress=False)) == bits(made)[1:]
    assert bits(ip.repeat(path, progress=False)) == bits(made)[1:]


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────


def test_step_hook(tiny_bundled: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    plain = ip.generate("a star", picture(1), num_images=3, batch_size=2, **QUICK)
    hooked = ip.generate(
        "a star",
        picture(1),
        num_images=3,
        batch_size=2,
        on_step=lambda p: seen.append((p.index, p.picture, list(p.pictures), p.step, p.total)),
        **QUICK,
    )
    assert bits(hooked) == bits(plain)
    assert not hooked.cancelled
    assert seen == [
        (0, 0, [0, 1], 1, 2),
        (0, 0, [0, 1], 2, 2),
        (0, 2, [2], 1, 2),
        (0, 2, [2], 2, 2),
    ]


def test_cancel_within_a_step(tiny_bundled: Path) -> None:
    engine = ip.Engine()
    steps: list[int] = []

    def stop(progress: ip.Progress) -> None:
        if progress.picture == 1:
            steps.append(progress.step)
            progress.cancel()

    before = torch.get_num_threads()
    result = engine.generate(
        "a star", picture(1), num_images=3, batch_size=1, on_step=stop, **QUICK
    )
    assert result.cancelled
    assert len(result) == 1
    assert steps == [1]
    assert torch.get_num_threads() == before
    after = engine.generate("a star", picture(1), num_images=2, **QUICK)
    assert bits(after) == fresh(prompt="a star", reference=picture(1), num_images=2)


@pytest.mark.sample(2)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_in_a_step_leaves_nothing_behind(
    tiny_bundled: Path, error: type[BaseException]
) -> None:
    engine = ip.Engine()

    def fail(_: ip.Progress) -> None:
        raise error

    with pytest.raises(error):
        engine.generate("a star", picture(1), on_step=fail, **QUICK)
    after = engine.generate("a star", picture(1), **QUICK)
    assert bits(after) == fresh(prompt="a star", reference=picture(1))


@pytest.mark.parametrize("hook", ["on_step", "on_image"])
def test_a_call_from_a_callback_is_an_error(tiny_bundled: Path, hook: str) -> None:
    engine = ip.Engine()

    def again(_: object) -> None:
        engine.generate("a circle", scale=0, **QUICK)

    with pytest.raises(errors.OptionError, match="from its own callback"):
        engine.generate("a star", scale=0, **{hook: again}, **QUICK)
    engine.generate("a star", scale=0, **QUICK)


def test_step_hook_without_step_callbacks() -> None:
    from diffusers import StableDiffusionPipeline

    class Old(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(  # type: ignore[no-untyped-def]
            self, prompt, num_inference_steps=2, generator=None, num_images_per_prompt=1
        ):
            raise AssertionError("called")

    pipe = make_pipeline()
    old = Old(**pipe.components, requires_safety_checker=False)
    with pytest.raises(errors.OptionError, match="callback_on_step_end"):
        ip.generate("a star", scale=0, base=old, on_step=print, **QUICK)


# ── threads and tasks ───────────────────────────────────────────────────────────────────────────


def test_threads_queue_up(tiny_bundled: Path) -> None:
    engine = ip.Engine()
    found: dict[int, list[bytes]] = {}

    def make(seed: int) -> None:
        made = engine.generate("a star", picture(seed % 3), seed=seed, **QUICK)
        found[seed] = bits(made)

    threads = [threading.Thread(target=make, args=[seed]) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    alone = ip.Engine()
    assert found == {
        seed: bits(alone.generate("a star", picture(seed % 3), seed=seed, **QUICK))
        for seed in range(9)
    }


def test_two_pipelines_of_one_denoiser_take_turns() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = make_pipeline()
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    running, most = [0], [0]

    def note(_: object) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1

    def make(base: Any) -> None:
        ip.generate("a star", scale=0, size=(SIDE, SIDE), base=base, on_step=note, **QUICK)

    threads = [threading.Thread(target=make, args=[base]) for base in (pipe, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert most == [1]


def test_asyncio_tasks(tiny_bundled: Path) -> None:
    engine = ip.Engine()

    async def run() -> list[Any]:
        calls = (
            asyncio.to_thread(engine.generate, "a star", picture(seed), seed=seed, **QUICK)
            for seed in range(4)
        )
        return await asyncio.gather(*calls)

    for seed, made in enumerate(asyncio.run(run())):
        assert bits(made) == fresh(prompt="a star", reference=picture(seed), seed=seed)


def test_turns_are_taken_in_order() -> None:
    turn, order = Turn(), list[int]()

    def take(number: int) -> None:
        with turn:
            order.append(number)

    threads = [threading.Thread(target=take, args=[number]) for number in range(5)]
    with turn:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turn._waiting) < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join(300)
    assert order == [0, 1, 2, 3, 4]
