"""generate and repeat: requests, seeds, recipes, and what is left behind (nothing)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from imageprompt.core import bundled, errors
from imageprompt.generation import generate, repeat, run
from imageprompt.loading import recipe
from imageprompt.loading.recipe import limits
from imageprompt.loading.recipe.reading import read_recipe
from tiny_stack import SIDE, make_pipeline, make_xl_pipeline, save_stack

QUICK: dict[str, Any] = {"steps": 2, "progress": False}


def red() -> Image.Image:
    return Image.new("RGB", (20, 16), "red")


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.png"
    red().save(path)
    return path


def bits(result: ip.GenerationResult) -> list[bytes]:
    return [image.tobytes() for image in result.images]


# ── requests ────────────────────────────────────────────────────────────────────────────────────


def test_a_request_and_its_recipe(tiny_bundled: Path, reference: Path) -> None:
    result = generate("a star", str(reference), num_images=3, seed=7, **QUICK)
    assert [image.size for image in result.images] == [(SIDE, SIDE)] * 3
    assert [r.index for r in result.recipes] == [0, 1, 2]
    made = result.recipe
    assert (made.prompt, made.seed, made.num_images, made.scale) == ("a star", 7, 3, 0.8)
    assert (made.steps, made.guidance_scale) == (2, bundled.GUIDANCE)
    assert (made.width, made.height) == (SIDE, SIDE)
    assert (made.dtype, made.device) == ("float32", "cpu")
    assert made.scheduler["_class_name"] == "DDIMScheduler"
    assert (made.base.name, made.adapter and made.adapter.name) == ("bundled", "plus")
    assert made.adapter is not None
    assert made.adapter.spec["variant"] == "plus"
    assert made.encoder is not None
    assert made.references[0].pictures[0].name == str(reference)
    assert made.versions["torch"] == torch.__version__
    assert result.image_prompt is not None
    assert result.image_prompt.tokens.shape == (1, 4, 32)


def test_picture_i_is_drawn_from_seed_plus_i(tiny_bundled: Path) -> None:
    several = generate("a star", red(), num_images=4, seed=10, **QUICK)
    assert len(set(bits(several))) == 4
    for i in (0, 3):
        single = generate("a star", red(), seed=10 + i, **QUICK)
        # not the same bits: another batch shape may round in another way
        difference = np.subtract(
            *(np.asarray(x, int) for x in (single.images[0], several.images[i]))
        )
        assert np.abs(difference).max() <= 1


def test_with_batches_of_one_the_bits_are_those_of_a_single_picture(tiny_bundled: Path) -> None:
    several = generate("a star", red(), num_images=3, seed=10, batch_size=1, **QUICK)
    single = generate("a star", red(), seed=12, batch_size=1, **QUICK)
    assert bits(single) == bits(several)[2:]


def test_kinds_of_references(tiny_bundled: Path, reference: Path, tmp_path: Path) -> None:
    expected = bits(generate(reference=reference, **QUICK))
    assert bits(generate(reference=reference.read_bytes(), **QUICK)) == expected
    assert bits(generate(reference=[Image.open(reference)], **QUICK)) == expected
    two = generate(reference=[reference, Image.new("RGB", (16, 16), "blue")], **QUICK)
    assert two.image_prompt is not None
    assert two.image_prompt.tokens.shape == (1, 8, 32)
    assert [record.name for record in two.recipe.references[0].pictures] == [str(reference), None]
    saved = tmp_path / "two.safetensors"
    two.image_prompt.save(saved)
    for prompt in (two.image_prompt, saved, str(saved)):
        assert bits(generate(image_prompt=prompt, **QUICK)) == bits(two)


def test_scale_0_is_the_base_bit_for_bit_with_or_without_a_reference(tiny_bundled: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(1 + i) for i in range(2)]
    plain = pipe(
        "a star",
        num_images_per_prompt=2,
        generator=generators,
        num_inference_steps=2,
        guidance_scale=bundled.GUIDANCE,
    ).images
    expected = [image.tobytes() for image in plain]
    words = generate("a star", scale=0, num_images=2, **QUICK)
    assert bits(words) == expected
    assert words.recipe.adapter is None
    assert words.image_prompt is None
    assert bits(generate("a star", red(), scale=0, num_images=2, **QUICK)) == expected
    assert bits(generate("a star", red(), num_images=2, **QUICK)) != expected


def test_size_and_words_count(tiny_bundled: Path) -> None:
    wide = generate("a star", red(), size=(32, 16), **QUICK)
    assert wide.images[0].size == (wide.recipe.width, wide.recipe.height) == (32, 16)
    plain, other, unlike = (
        bits(generate(prompt, red(), negative_prompt=negative, **QUICK))
        for prompt, negative in (("a star", ""), ("a red square", ""), ("a star", "blue"))
    )
    assert len({plain[0], other[0], unlike[0]}) == 3


def test_adapters_by_short_name_path_and_object(tiny_bundled: Path) -> None:
    path = tiny_bundled / "adapters" / "base.safetensors"
    by_name = generate(reference=red(), adapter="base", **QUICK)
    assert by_name.recipe.adapter is not None
    assert by_name.recipe.adapter.name == "base"
    assert bits(generate(reference=red(), adapter=path, **QUICK)) == bits(by_name)
    loaded = ip.Adapter.load(path)
    brought = generate(reference=red(), adapter=loaded, **QUICK)
    assert bits(brought) == bits(by_name)
    assert brought.recipe.adapter is not None
    assert brought.recipe.adapter.name is None
    assert bits(generate(reference=red(), adapter="plus", **QUICK)) != bits(by_name)


def test_an_xl_base_from_its_folder(tmp_path: Path) -> None:
    """Two text encoders, size conditioning, deeper blocks: nothing of it is known here."""
    torch.manual_seed(0)
    pipe = make_xl_pipeline()
    pipe.save_pretrained(tmp_path / "xl")
    adapter = ip.Adapter.create("plus", denoiser=pipe.unet, encoder=pipe.image_encoder, depth=1)
    adapter.save(tmp_path / "plus.safetensors")
    request: dict[str, Any] = {"base": tmp_path / "xl", "adapter": tmp_path / "plus.safetensors"}
    made = generate("a star", red(), num_images=2, size=(32, 16), **request, **QUICK)
    assert made.recipe.guidance_scale == 5.0  # the pipeline's own default
    assert bits(made) != bits(
        generate("a star", scale=0, num_images=2, size=(32, 16), **request, **QUICK)
    )
    again = repeat(made.save(tmp_path / "out")[1], progress=False)
    assert bits(again) == bits(made)[1:]


def test_a_pipeline_that_is_brought_is_given_back_as_it_was(tiny_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    before = (pipe.scheduler, dict(pipe.unet.attn_processors), list(pipe.unet.state_dict()))
    path = tiny_folder / "adapters" / "plus.safetensors"
    result = generate("a star", red(), base=pipe, adapter=path, **QUICK)
    assert before[0] is pipe.scheduler
    assert before[1:] == (dict(pipe.unet.attn_processors), list(pipe.unet.state_dict()))
    assert result.recipe.base.name is None
    with pytest.raises(errors.OptionError, match="has its own"):
        generate("a star", red(), base=pipe, adapter=path, dtype="float16", **QUICK)
    with pytest.raises(errors.OptionError, match="comes without one"):
        generate("a star", red(), base=pipe, **QUICK)


def test_a_failed_request_leaves_a_brought_pipeline_as_it_was(tiny_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    before = dict(pipe.unet.attn_processors)
    path = tiny_folder / "adapters" / "plus.safetensors"
    with pytest.raises(errors.ScaleError, match="nowhere"):
        generate("", red(), base=pipe, adapter=path, scale={"nowhere": 1.0}, **QUICK)
    assert dict(pipe.unet.attn_processors) == before


def test_the_numbers_of_saved_pictures_go_on(tiny_bundled: Path, tmp_path: Path) -> None:
    result = generate("a star", red(), num_images=2, **QUICK)
    assert [path.name for path in result.save(tmp_path / "a" / "b")] == ["0001.png", "0002.png"]
    (tmp_path / "a" / "b" / "0041.png").touch()
    assert [path.name for path in result.save(tmp_path / "a" / "b")] == ["0042.png", "0043.png"]


def test_the_number_of_threads_is_left_as_it_was(tiny_bundled: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        generate(reference=red(), **QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ── encoders ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def published(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base without encoder, and adapters with theirs in the layout of published repositories."""
    base, repository = tmp_path / "base", tmp_path / "IP-Adapter"
    pipe = make_pipeline()
    pipe.register_modules(image_encoder=None)
    pipe.save_pretrained(base)
    for folder in ("models", "sdxl_models"):
        shutil.copytree(tiny_folder / "adapters", repository / folder)
    shutil.copytree(tiny_folder / "image_encoder", repository / "models" / "image_encoder")
    return base, repository


@pytest.mark.parametrize("folder", ["models", "sdxl_models"])
def test_the_encoder_is_found_beside_the_adapter(published: tuple[Path, Path], folder: str) -> None:
    base, repository = published
    adapter = repository / folder / "plus.safetensors"
    result = generate(reference=red(), base=base, adapter=adapter, **QUICK)
    assert result.recipe.encoder is not None
    assert Path(str(result.recipe.encoder.name)).resolve() == repository / "models/image_encoder"


def test_an_encoder_of_another_width_is_passed_over(published: tuple[Path, Path]) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    base, repository = published
    other = CLIPVisionConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    CLIPVisionModelWithProjection(other).save_pretrained(base / "image_encoder")
    adapter = repository / "models" / "plus.safetensors"
    result = generate(reference=red(), base=base, adapter=adapter, **QUICK)
    assert result.recipe.encoder is not None
    assert "IP-Adapter" in str(result.recipe.encoder.name)
    with pytest.raises(errors.EncoderError, match="16 wide"):
        generate(
            reference=red(), base=base, adapter=adapter, encoder=base / "image_encoder", **QUICK
        )


def test_without_an_encoder_anywhere_one_is_asked_for(published: tuple[Path, Path]) -> None:
    base, repository = published
    encoder = shutil.move(repository / "models" / "image_encoder", repository.parent / "elsewhere")
    request = {"reference": red(), "base": base, "adapter": repository / "models/base.safetensors"}
    with pytest.raises(errors.EncoderError, match="--encoder"):
        generate(**request, **QUICK)
    assert generate(**request, encoder=encoder, **QUICK).recipe.encoder is not None
    with pytest.raises(errors.EncoderError, match="no such path"):
        generate(**request, encoder="no-such-encoder", **QUICK)


# ── repeating ───────────────────────────────────────────────────────────────────────────────────


def test_every_picture_repeats_bit_for_bit_without_its_reference(
    tiny_bundled: Path, reference: Path, tmp_path: Path
) -> None:
    options = {"negative_prompt": "blue", "scale": 0.6, "size": (32, 16), "guidance_scale": 2.0}
    made = generate("a star", reference, num_images=3, seed=5, batch_size=2, **options, **QUICK)
    paths = made.save(tmp_path / "out")
    reference.unlink()
    for i, path in enumerate(paths):
        assert Image.open(path).convert("RGB").tobytes() == made.images[i].tobytes()
        again = repeat(path, progress=False)
        assert bits(again) == [made.images[i].tobytes()]
        assert again.recipes == [made.recipes[i]]


def test_words_alone_repeat_too(tiny_bundled: Path, tmp_path: Path) -> None:
    made = generate("a star", scale=0, **QUICK)
    assert bits(repeat(made.save(tmp_path)[0], progress=False)) == bits(made)


def test_a_repetition_can_be_changed(tiny_bundled: Path, reference: Path, tmp_path: Path) -> None:
    made = generate("a star", reference, num_images=2, seed=5, **QUICK)
    second = made.save(tmp_path / "out")[1]
    weaker = repeat(second, scale=0.2, progress=False)
    assert [r.index for r in weaker.recipes] == [1]
    assert (
        bits(weaker)
        == bits(generate("a star", reference, num_images=2, seed=5, scale=0.2, **QUICK))[1:]
    )
    assert bits(repeat(second, num_images=2, progress=False)) == bits(made)
    blue = Image.new("RGB", (16, 16), "blue")
    other = repeat(second, reference=blue, progress=False)
    assert bits(other) == bits(generate("a star", blue, num_images=2, seed=5, **QUICK))[1:]
    with pytest.raises(errors.OptionError, match="sclae"):
        repeat(second, sclae=0.2)


def test_where_the_image_prompt_is_too_large_the_reference_is_read_again(
    tiny_bundled: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageprompt.loading.recipe.png.MAX_TOKEN_BYTES", 10)
    made = generate("a star", reference, **QUICK)
    path = made.save(tmp_path / "out")[0]
    assert bits(repeat(path, progress=False)) == bits(made)
    Image.new("RGB", (16, 16), "blue").save(reference)
    with pytest.raises(errors.PictureError, match="the file has changed"):
        repeat(path)
    reference.unlink()
    with pytest.raises(errors.PictureError, match="--reference"):
        repeat(path)
    assert bits(repeat(path, reference=red(), progress=False)) == bits(made)


def test_the_scheduler_of_the_recipe_is_used(tiny_folder: Path, tmp_path: Path) -> None:
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    ddim = pipe.scheduler
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(ddim.config)
    adapter = tiny_folder / "adapters" / "plus.safetensors"
    made = generate("a star", red(), base=pipe, adapter=adapter, num_images=2, **QUICK)
    path = made.save(tmp_path)[1]
    with pytest.raises(errors.OptionError, match="in memory"):
        repeat(path)
    pipe.scheduler = ddim
    again = repeat(path, base=pipe, progress=False)
    assert bits(again) == bits(made)[1:]
    assert pipe.scheduler is ddim


def test_a_recipe_of_an_infinite_setting(tiny_folder: Path, tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    options = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **options)
    assert pipe.scheduler.config.lambda_min_clipped == float("-inf")
    made = generate("a star", scale=0, base=pipe, **QUICK)
    scheduler = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(scheduler, lambda_min_clipped=-5.1)
    again = repeat(made.save(tmp_path)[0], base=pipe, progress=False)
    assert bits(again) == bits(made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in dir(diffusers) if name.endswith("Scheduler")])
def test_a_recipe_of_every_scheduler(name: str) -> None:
    try:
        scheduler = getattr(diffusers, name)()
    except (ImportError, TypeError):
        pytest.skip("cannot be made without another package, or settings")
    recorded = json.loads(json.dumps(run._plain(scheduler), allow_nan=False))
    limits.SCHEDULER(recorded)
    again = type(scheduler).from_config(recorded)
    assert own_settings(again) == own_settings(scheduler)


def own_settings(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if name[0] != "_"}


def test_other_weights_than_the_recipes_are_refused(tmp_path: Path) -> None:
    folder = save_stack(tmp_path / "stack", seed=1)
    made = generate("a star", red(), base=folder, **QUICK)
    path = made.save(tmp_path / "out")[0]
    other = save_stack(tmp_path / "other", seed=2)
    adapter = folder / "adapters" / "plus.safetensors"
    kept = adapter.read_bytes()
    shutil.copy(other / "adapters" / "plus.safetensors", adapter)
    with pytest.raises(errors.OptionError, match="adapter 'plus' of the recipe"):
        repeat(path, progress=False)
    adapter.write_bytes(kept)
    weights = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(other / weights, folder / weights)
    with pytest.raises(errors.WrongBaseError, match="weights have changed"):
        repeat(path, progress=False)
    assert bits(repeat(path, base=folder, progress=False)) != bits(made)


def test_other_versions_and_devices_are_said(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate("a star", red(), **QUICK)
    text = made.recipe.to_json()
    text = text.replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"')
    text = text.replace('"device": "cpu"', '"device": "cuda:7"')
    old = read_recipe(text, "old")
    recipe.write_picture(tmp_path / "old.png", made.images[0], old, [None])
    with pytest.warns(UserWarning) as said:  # noqa: PT030 the two messages follow
        again = repeat(tmp_path / "old.png", reference=red(), progress=False)
    messages = [str(warning.message) for warning in said]
    assert any("torch 1.0" in message for message in messages)
    assert any("'cuda:7'" in message for message in messages)
    assert bits(again) == bits(made)


@pytest.mark.filterwarnings("ignore:the recipe was made with")
def test_recipes_of_earlier_formats_repeat(tmp_path: Path) -> None:
    """Of the bundled stack, whatever its weights are now."""
    from PIL.PngImagePlugin import PngInfo

    def picture(version: int) -> Path:
        stored = Path(__file__).parents[1] / "loading" / "recipes" / f"format-{version}.json"
        info = PngInfo()
        info.add_itxt(recipe.RECIPE_KEY, stored.read_text(encoding="utf-8"), zip=True)
        path = tmp_path / f"format-{version}.png"
        red().save(path, pnginfo=info)
        return path

    same: dict[str, Any] = {"base": "bundled", "adapter": "plus", "progress": False}
    first = repeat(picture(1), reference=red(), **same)
    expected = generate("a star", red(), scale=0.6, seed=5, num_images=2, **QUICK)
    assert bits(first) == bits(expected)[1:]

    blue, half = Image.new("RGB", (20, 16), "blue"), np.eye(8)
    how: dict[str, Any] = {
        "reference": [red(), blue],
        "negative_reference": blue,
        "mask": half,
        "also": [ip.Reference(reference=blue, adapter="base", scale={"style": 0.5})],
    }
    second = repeat(picture(2), **how, **same)
    options: dict[str, Any] = {"fusion": "weighted", "weights": [0.7, 0.3], "framing": "crop:top"}
    options |= {"noise": 0.2, "noise_seed": 3, "preset": "style transfer", "schedule": "0-0.6"}
    options |= {"negative_prompt": "grey", "seed": 5, "num_images": 2}
    assert bits(second) == bits(generate("a star", **how, **options, **QUICK))[1:]


# ── bad requests ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"reference": None}, errors.PictureError, "--reference"),
        ({"reference": []}, errors.PictureError, "--reference"),
        ({"reference": "no-such.png"}, errors.PictureError, "no-such.png"),
        ({"scale": 2.5}, errors.ScaleError, "2.5"),
        ({"scale": -1}, errors.ScaleError, "0 .* to 2"),
        ({"scale": float("nan")}, errors.ScaleError, "nan"),
        ({"scale": {"nowhere": 1}}, errors.ScaleError, "nowhere"),
        ({"seed": -1}, errors.OptionError, "seed -1"),
        ({"num_images": 0}, errors.OptionError, "num images 0"),
        ({"batch_size": 1000}, errors.OptionError, "batch size"),
        ({"steps": 0}, errors.OptionError, "steps 0"),
        ({"guidance_scale": -2.0}, errors.OptionError, "guidance scale"),
        ({"size": (100_000, 100_000)}, errors.OptionError, "100000"),
        ({"size": (8192, 8192)}, errors.OptionError, "million pixels"),
        ({"size": (17, 16)}, errors.OptionError, "multiples of 2"),
        ({"dtype": "int8"}, errors.OptionError, "float32"),
        ({"device": "tpu"}, errors.OptionError, "tpu"),
        ({"device": "cuda:99"}, errors.OptionError, "cuda:99|not one of"),
        ({"base": "no-such-base"}, errors.NotFoundError, "no-such-base"),
        ({"adapter": "pluss"}, errors.NotFoundError, "base, plus"),
        ({"adapter": "no-such.safetensors"}, errors.NotFoundError, "no-such.safetensors"),
        ({"image_prompt": "x.safetensors"}, errors.OptionError, "cannot be combined"),
    ],
)
def test_bad_requests_are_refused_by_name(
    tiny_bundled: Path, change: dict[str, Any], kind: type[errors.ImagePromptError], words: str
) -> None:
    request = {"prompt": "a star", "reference": red(), **QUICK, **change}
    with pytest.raises(kind, match=words) as caught:
        generate(**request)
    assert "\n" not in str(caught.value)


def test_a_prompt_for_several_prompts_is_refused(tiny_bundled: Path) -> None:
    two = ip.ImagePrompt(torch.zeros(2, 4, 32), torch.zeros(2, 4, 32))
    with pytest.raises(errors.PromptError, match="2 prompts"):
        generate(image_prompt=two, **QUICK)


def test_a_damaged_base_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(errors.WrongBaseError, match="diffusers cannot load it"):
        generate(reference=red(), base=folder, **QUICK)
    (folder / "model_index.json").unlink()
    with pytest.raises(errors.NotFoundError, match=r"model_index\.json"):
        generate(reference=red(), base=folder, **QUICK)
