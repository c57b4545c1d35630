"""The SD3 stack: plain diffusers loads it and its default call draws what the text says."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import imageprompt as ip
from bundled_stack import adapters
from bundled_stack.sd3 import adapters as sd3_adapters
from bundled_stack.sd3.base import PlainAttention, build
from bundled_stack.sd3.dual import sd3_base
from bundled_stack.sd3.text import CaptionEncoder
from imageprompt.core import bundled
from imageprompt.core.hub import part_of, split_part
from imageprompt.demo import judge, scenes
from imageprompt.hosts import training_of
from imageprompt.training.init import VALUES, choose_states

LIMIT = 18_000_000
COUNT, STEPS = 4, 10
NAME = bundled.SD3


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundled.folder(NAME)


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    return list(islice(scenes.stream("test", seed=900), COUNT))


@pytest.fixture(scope="module")
def engine() -> ip.Engine:
    return ip.Engine(NAME)


def right(pictures: list[Any], expected: list[scenes.Scene]) -> int:
    """How many of the words of these scenes the judge reads."""
    found = judge.classify(pictures)
    return sum(
        words[name] == word
        for words, scene in zip(found, expected, strict=True)
        for name, word in scene.words().items()
    )


def test_its_own_files_are_small_and_the_others_are_the_first_stacks(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    own = [path for path in files if not path.is_symlink()]
    assert sum(path.stat().st_size for path in own) <= LIMIT
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)
    for part in ("vae/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"):
        assert (folder / part).read_bytes() == (bundled.folder() / part).read_bytes()


def test_plain_diffusers_draws_what_the_text_says_by_its_default_call(
    folder: Path, drawn: list[scenes.Scene]
) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {type(part).__module__.split(".")[0] for part in models} == {"diffusers", "transformers"}
    assert {part.dtype for part in models} == {torch.float32}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the operations are too small to split
    image = pipe(scenes.caption(drawn[0]), generator=torch.Generator().manual_seed(0)).images[0]
    torch.set_num_threads(threads)
    assert image.size == (64, 64)
    assert right([image], drawn[:1]) == 5
    tokens = pipe.tokenizer_3(["a striped red star"], return_tensors="pt").input_ids
    assert not pipe.text_encoder_3(tokens)[0].any()


def test_text_alone_draws_what_it_says(engine: ip.Engine, drawn: list[scenes.Scene]) -> None:
    requests: list[Any] = [
        {"prompt": scenes.caption(scene), "seed": seed, "scale": 0.0, "steps": STEPS}
        for seed, scene in enumerate(drawn)
    ]
    results = engine.generate_many(requests, progress=False)
    assert right([result.images[0] for result in results], drawn) >= 5 * COUNT - 1


@pytest.mark.parametrize("adapter", ["base", "plus"])
def test_a_reference_has_its_effect(
    engine: ip.Engine, drawn: list[scenes.Scene], adapter: str
) -> None:
    """Of five words, chance gives fewer than two."""
    requests: list[Any] = [
        {
            "prompt": "a shape",
            "seed": seed,
            "reference": scenes.draw(scene),
            "adapter": adapter,
            "scale": 1.0,
            "steps": STEPS,
        }
        for seed, scene in enumerate(drawn)
    ]
    results = engine.generate_many(requests, progress=False)
    assert right([result.images[0] for result in results], drawn) >= 5 * COUNT - 3


def test_its_pair_takes_the_shape_of_one_and_the_look_of_another(
    engine: ip.Engine, drawn: list[scenes.Scene]
) -> None:
    looks = [*drawn[1:], drawn[0]]
    requests: list[Any] = [
        {
            "content": scenes.draw(shape),
            "style": scenes.draw(look),
            "seed": seed,
            "scale": 1.0,
            "steps": STEPS,
        }
        for seed, (shape, look) in enumerate(zip(drawn, looks, strict=True))
    ]
    results = engine.generate_many(requests, progress=False)
    expected = [replace(look, shape=c.shape) for c, look in zip(drawn, looks, strict=True)]
    assert right([result.images[0] for result in results], expected) >= 5 * COUNT - 2


@pytest.mark.parametrize("adapter", ["base", "plus", "dual#content", "dual#style"])
def test_its_adapters_fit_it(adapter: str) -> None:
    name, part = split_part(adapter)
    file = bundled.adapter(name, NAME)
    report = ip.validate(part_of(file, part) if part else file, base=NAME, encoder=NAME)
    assert report.ok, report


def test_the_text_is_padded_to_what_the_base_states(engine: ip.Engine, folder: Path) -> None:
    """As the pipeline's own call with that length; its default is ten times as many tokens."""
    ours = engine.generate("a red star", scale=0.0, steps=2, seed=3, progress=False).images[0]
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    stated = pipe.transformer.config["_imageprompt_text_tokens"]
    options = {"num_inference_steps": 2, "guidance_scale": bundled.GUIDANCE}
    same, other = (
        pipe(
            "a red star",
            max_sequence_length=length,
            generator=torch.Generator().manual_seed(3),
            **options,
        ).images[0]
        for length in (stated, 256)
    )
    assert ours.tobytes() == same.tobytes() != other.tobytes()


def test_a_recipe_names_it_and_repeats_the_picture(engine: ip.Engine, tmp_path: Path) -> None:
    made = engine.generate("a red star", scale=0.0, steps=2, seed=3, progress=False)
    assert made.recipe.base.name == NAME
    again = engine.repeat(made.save(tmp_path)[0], progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes()


# ── how it was trained ──────────────────────────────────────────────────────────────────────────


def test_training_reads_text_as_the_pipeline_does(engine: ip.Engine, folder: Path) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, transformer=None, vae=None)
    lines = ["a striped red star on a plain blue background", ""]
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(
            lines, None, None, do_classifier_free_guidance=False, max_sequence_length=24
        )
    ours = CaptionEncoder()(lines)
    assert (ours.tokens - tokens[:, :24]).abs().max() <= 1e-4
    assert not tokens[:, 24:].any()
    assert (ours.pooled - pooled).abs().max() <= 1e-5


def test_plain_attention_is_the_transformers_own() -> None:
    model = build()
    for weight in model.parameters():  # the new one is the identity
        torch.nn.init.normal_(weight, std=0.1)
    inputs = torch.randn(2, 16, 8, 8), torch.randn(2, 24, 256), torch.randn(2, 256)
    times = torch.tensor([100.0, 900.0])
    with torch.no_grad():
        stock = model(*inputs, times, return_dict=False)[0]
        model.set_attn_processor(PlainAttention())
        plain = model(*inputs, times, return_dict=False)[0]
    assert stock.abs().max() > 0.1
    assert (plain - stock).abs().max() <= 1e-4 * stock.abs().max()


class FewSamples(adapters.SceneDataset):
    """Scenes of a seed, with latents and features of noise."""

    def __init__(self, base: adapters.TrainableBase, seed: int) -> None:
        adapters.DrawnDataset.__init__(self, base, torch.zeros(1))
        self.scenes = list(islice(scenes.stream("train", seed=seed), 200))
        self.latents = torch.randn(200, 16, 8, 8)
        self.same = torch.zeros(200, 1)


def test_layers_fitted_to_captions_say_what_the_base_hears_of_others(folder: Path) -> None:
    torch.manual_seed(0)
    base = sd3_base(folder)
    fitted, copies = (
        ip.Adapter.create(
            "base", denoiser=base.denoiser, encoder=base.image_encoder, init="copy", num_tokens=8
        )
        for _ in range(2)
    )
    sd3_adapters.fit_to_captions(fitted, FewSamples(base, 31), 8)
    texts, added = base.encode_text([scenes.caption(s) for s in FewSamples(base, 32).scenes[:32]])
    tokens = choose_states(training_of(base.denoiser).as_tokens(base.denoiser, texts), 11, 8)
    goals: list[tuple[str, torch.Tensor]] = []
    for block in base.denoiser.transformer_blocks:
        for name, layer in (("v", block.attn.add_v_proj), ("k", block.attn.norm_added_k)):
            layer.register_forward_hook(lambda *call, name=name: goals.append((name, call[2])))
    noisy, times = torch.randn(32, 16, 8, 8), torch.full((32,), 800.0)
    with torch.no_grad():
        training_of(base.denoiser).predict(base.denoiser, noisy, times, texts, added, 1.0)
    for index, (name, heard) in enumerate(goals):
        by_row = heard.transpose(1, 2).flatten(2) if name == "k" else heard  # keys come by head
        goal = choose_states(by_row, 11, 8)
        own, copied = (
            getattr(adapter.module.sites[index // 2], f"to_{name}_ip")(tokens).detach()
            for adapter in (fitted, copies)
        )
        error, error_of_copies = (
            float((made - goal).square().mean() / goal.square().mean())
            for made in (own / (VALUES if name == "v" else 1.0), copied)
        )
        assert error < 0.4
        assert error < 0.5 * error_of_copies
