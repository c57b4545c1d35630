"""guidance_until: after a share of the steps only the positive side is computed, rightly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.core import errors
from imageprompt.generation import generate, repeat
from tiny_stack import make_xl_pipeline

RED = Image.new("RGB", (20, 16), "red")
QUICK: dict[str, Any] = {"steps": 4, "guidance_scale": 5.0, "progress": False}


@contextmanager
def rows(denoiser: Any) -> Iterator[list[int]]:
    """The rows of each call of the denoiser in the block."""
    found: list[int] = []

    def count(_: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        latents = inputs[0] if inputs else named["hidden_states"]
        found.append(latents.shape[0])

    hook = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def bits(result: ip.GenerationResult) -> list[bytes]:
    return [image.tobytes() for image in result.images]


def test_it_is_what_diffusers_own_cutoff_makes(tiny_folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    adapter = ip.Adapter.load(tiny_folder / "adapters" / "plus.safetensors")
    with rows(pipe.unet) as seen:
        ours = generate("a star", RED, base=pipe, adapter=adapter, guidance_until=0.5, **QUICK)
    assert seen == [2, 2, 1, 1]
    adapter.attach(pipe, encoder=pipe.image_encoder)
    prompt = adapter.encode([RED])
    with adapter.use(prompt):
        theirs = pipe(
            "a star",
            num_inference_steps=4,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(1)],
            callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1),
        ).images[0]
    adapter.detach()
    assert np.abs(np.asarray(theirs, int) - np.asarray(ours.images[0], int)).max() <= 1


def test_a_recipe_repeats_and_every_batch_begins_with_guidance(
    tiny_bundled: Path, tmp_path: Path
) -> None:
    made = generate("a star", RED, num_images=3, batch_size=2, guidance_until=0.3, **QUICK)
    assert made.recipe.guidance_until == 0.3
    again = repeat(made.save(tmp_path / "out")[2], progress=False)
    assert bits(again) == bits(made)[2:]
    whole = generate("a star", RED, num_images=3, batch_size=2, **QUICK)
    assert bits(whole) != bits(made)
    assert bits(whole) == bits(
        generate("a star", RED, num_images=3, batch_size=2, guidance_until=1, **QUICK)
    )


def test_controls_follow_the_smaller_batch(tiny_bundled: Path) -> None:
    """Masks, a schedule and a negative side, in a shared batch and alone."""
    mask = np.zeros((24, 24), "float32")
    mask[:, :12] = 1
    requests: list[dict[str, Any]] = [
        {"reference": RED, "mask": mask, "schedule": "0-0.8", "guidance_until": 0.5},
        {"reference": RED, "mask": 1 - mask, "schedule": "0-0.8", "guidance_until": 0.5},
        {"reference": RED, "negative_scale": 0.5, "guidance_until": 0.5},
        {"reference": RED},
    ]
    engine = ip.Engine()
    with rows(engine.loaded.pipe.unet) as seen:
        together = engine.generate_many([{**one, **QUICK} for one in requests], progress=False)
    assert seen == [4, 4, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2]
    for request, made in zip(requests, together, strict=True):
        alone = engine.generate(**request, **QUICK)
        assert np.array_equal(np.asarray(alone.images[0]), np.asarray(made.images[0]))


def test_other_pipelines(tiny_bundled: Path, tmp_path: Path) -> None:
    """Each halves all that it holds twice."""
    engine = ip.Engine()
    unet = engine.loaded.pipe.unet
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    picture = RED.resize((16, 16))
    half = Image.fromarray(np.repeat([[0, 255]], 2, 0).astype("uint8")).resize((16, 16), 0)
    start = {"init_image": picture, "strength": 1.0}
    for options in (
        start,
        {**start, "inpaint_mask": half},
        {"controlnet": net, "control_image": picture},
    ):
        with rows(unet) as seen:
            engine.generate("a star", RED, guidance_until=0.5, **options, **QUICK)
        assert seen == [2, 2, 1, 1], options.keys()
    pipe = make_xl_pipeline()
    adapter = ip.Adapter.create("plus", denoiser=pipe.unet, encoder=pipe.image_encoder, depth=1)
    with rows(pipe.unet) as seen:
        generate(
            "a star", RED, base=pipe, adapter=adapter, size=(32, 32), guidance_until=0.3, **QUICK
        )
    assert seen == [2, 2, 1, 1]


def test_sd3() -> None:
    engine = ip.Engine("bundled-sd3")
    with rows(engine.loaded.pipe.transformer) as seen:
        engine.generate("a star", RED, guidance_until=0.5, **QUICK)
    assert seen == [2, 2, 1, 1]
    engine.release()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": 1.0}, "no guidance to stop"),
        ({"guidance": "negative-positive"}, "stated layout"),
        ({"guidance_until": 1.5}, "not a number from 0 to 1"),
    ],
)
def test_bad_options(tiny_bundled: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.OptionError, match=words):
        generate("a star", scale=0, **{**QUICK, "guidance_until": 0.5, **options})


def test_a_pipeline_that_guides_to_its_end(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from imageprompt.generation import guidance_cutoff

    monkeypatch.delitem(guidance_cutoff.HALVED, "StableDiffusionPipeline")
    flags = ["generate", "--scale", "0", "--steps", "2", "--guidance-until", "0.5"]
    assert cli.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "guides to its end" in line
