"""The bundled stack: plain diffusers loads it, it is small, and references have their effect."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from imageprompt.adapter.adapter import Adapter
from imageprompt.checkpoint.convert import convert
from imageprompt.core import bundled
from imageprompt.core.hub import part_of, split_part
from imageprompt.demo import judge, pipeline, scenes
from imageprompt.generation.engine import Engine

LIMIT = 26_000_000
COUNT = 24
"""Scenes that are sampled; a third of them, in half the steps, where a part is enough."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundled.folder()


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return pipeline.load_pipeline()


@pytest.fixture(scope="module")
def drawn(whole: bool) -> list[scenes.Scene]:
    return list(islice(scenes.stream("test", seed=900), COUNT if whole else COUNT // 3))


@pytest.fixture(scope="module")
def steps(whole: bool) -> int:
    return pipeline.STEPS if whole else pipeline.STEPS // 2


@pytest.fixture(scope="module")
def text_alone(pipe: Any, drawn: list[scenes.Scene], steps: int) -> list[Any]:
    """What the base makes of a text that says nothing, before any adapter is attached: a batch."""
    count = len(drawn[: pipeline.BATCH])
    return pipeline.sample(pipe, ["a shape"] * count, range(count), steps=steps)


@pytest.fixture(params=["base", "plus"])
def adapter(request: pytest.FixtureRequest, folder: Path, pipe: Any) -> Iterator[Any]:
    loaded = Adapter.load(folder / "adapters" / f"{request.param}.safetensors", dtype=torch.float32)
    loaded.attach(pipe, encoder=pipe.image_encoder)
    yield loaded
    loaded.detach()


def shares(found: list[dict[str, str]], expected: list[dict[str, str]]) -> dict[str, float]:
    return {
        name: sum(f[name] == e[name] for f, e in zip(found, expected, strict=True)) / len(found)
        for name in scenes.ATTRIBUTES
    }


def test_the_folder_is_small_and_readable(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_plain_diffusers_loads_and_runs_it(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {type(part).__module__.split(".")[0] for part in models} == {"diffusers", "transformers"}
    assert {part.dtype for part in models} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    image = pipe("a red star", num_inference_steps=2, generator=generator).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("variant", ["base", "plus", "dual#content", "dual#style"])
def test_diffusers_reads_the_bundled_adapters(
    folder: Path, variant: str, drawn: list[scenes.Scene], tmp_path: Path
) -> None:
    """diffusers' own loader, which supports resamplers of depth 4 only, gives the same latents."""
    reference = scenes.draw(drawn[0])
    name, part = split_part(variant)
    path = bundled.adapter(name)
    if part:
        convert(part_of(path, part), path := tmp_path / f"{part}.safetensors")

    def latents(pipe: Any, **more: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        steps: Any = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
        found: torch.Tensor = pipe("a shape", **steps, **more).images
        return found

    ours = StableDiffusionPipeline.from_pretrained(folder)
    adapter = Adapter.load(path, dtype=torch.float32)
    adapter.attach(ours, encoder=folder / "image_encoder")
    with adapter.use(adapter.encode([reference]), scale=0.8):
        here = latents(ours)
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.load_ip_adapter(
        str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None
    )
    theirs.set_ip_adapter_scale(0.8)
    assert (latents(theirs, ip_adapter_image=reference) - here).abs().max() <= 1e-4


def test_every_caption_word_is_one_token(pipe: Any) -> None:
    for word in scenes.all_words():
        assert len(pipe.tokenizer(word, add_special_tokens=False).input_ids) == 1
    assert len(pipe.tokenizer("naïve 画 Straße!").input_ids) > 4


def test_the_judge_classifies_renders() -> None:
    fresh = list(islice(scenes.stream("test", seed=901), 200))
    found = judge.classify([scenes.draw(scene) for scene in fresh])
    assert min(shares(found, [scene.words() for scene in fresh]).values()) >= 0.985


@pytest.mark.slow
def test_text_alone_generates_what_it_says(
    pipe: Any, drawn: list[scenes.Scene], steps: int
) -> None:
    captions = [scenes.caption(scene) for scene in drawn]
    pictures = pipeline.sample(pipe, captions, range(len(drawn)), steps=steps)
    found = shares(judge.classify(pictures), [scene.words() for scene in drawn])
    assert min(found.values()) >= 0.8, found


@pytest.mark.slow
def test_a_reference_has_its_effect(
    pipe: Any, text_alone: list[Any], adapter: Any, drawn: list[scenes.Scene], steps: int
) -> None:
    references = [scenes.draw(scene) for scene in drawn]
    prompts = ["a shape"] * len(drawn)
    pictures = pipeline.sample(
        pipe, prompts, range(len(drawn)), adapter=adapter, references=references, steps=steps
    )
    found = shares(judge.classify(pictures), [scene.words() for scene in drawn])
    assert min(found.values()) >= 0.75, found
    chance = shares(
        judge.classify(text_alone), [scene.words() for scene in drawn[: pipeline.BATCH]]
    )
    assert all(found[name] > chance[name] for name in ("shape", "colour", "texture", "background"))


@pytest.mark.slow
def test_a_reference_at_scale_zero_has_none(
    pipe: Any, adapter: Any, drawn: list[scenes.Scene]
) -> None:
    prompts, references = ["a shape"] * 2, [scenes.draw(scene) for scene in drawn[:2]]
    off = pipeline.sample(
        pipe, prompts, range(2), adapter=adapter, references=references, scale=0.0, steps=2
    )
    adapter.detach()
    plain = pipeline.sample(pipe, prompts, range(2), steps=2)
    assert [a.tobytes() for a in off] == [b.tobytes() for b in plain]


@pytest.mark.slow
def test_a_pair_takes_the_shape_of_one_reference_and_the_look_of_another(
    drawn: list[scenes.Scene], steps: int
) -> None:
    others = scenes.stream("test", seed=902)
    looks = [
        next(b for b in others if all(x != y for x, y in zip(a.labels(), b.labels(), strict=True)))
        for a in drawn
    ]
    requests = [
        {"content": scenes.draw(a), "style": scenes.draw(b), "scale": 1.0, "seed": row}
        for row, (a, b) in enumerate(zip(drawn, looks, strict=True))
    ]
    settings = {"steps": steps, "guidance_scale": bundled.GUIDANCE}
    made = Engine(bundled.NAME).generate_many(
        [request | settings for request in requests], batch_size=pipeline.BATCH, progress=False
    )
    found = judge.classify([result.images[0] for result in made])
    expected = [b.words() | {"shape": a.shape} for a, b in zip(drawn, looks, strict=True)]
    assert min(shares(found, expected).values()) >= 0.75, found
