"""generate() with control: several references, places, styles, init images, ControlNet; repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from imageprompt.control import Controls
from imageprompt.core import errors
from imageprompt.generation import generate, repeat
from imageprompt.generation.reference import Reference
from imageprompt.library import Library
from tiny_stack import SIDE

QUICK: dict[str, Any] = {"steps": 2, "progress": False}


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (20, 16), name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with pictures and masks."""
    for name in ("red", "blue", "green"):
        colour(name).save(tmp_path / f"{name}.png")
    left = np.zeros((SIDE, SIDE), np.uint8)
    left[:, : SIDE // 2] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(255 - left).save(tmp_path / "right.png")
    return tmp_path


def bits(result: ip.GenerationResult) -> list[bytes]:
    return [image.tobytes() for image in result.images]


def again(result: ip.GenerationResult, folder: Path, **changes: Any) -> ip.GenerationResult:
    return repeat(result.save(folder / "out")[0], progress=False, **changes)


def test_what_needs_guidance_says_so_without(tiny_bundled: Path) -> None:
    kept_away = {"negative_reference": colour("blue"), "noise": 0.3, **QUICK}
    with pytest.warns(
        UserWarning, match="no effect at guidance scale 1: --negative-reference, --noise"
    ):
        without = generate("a star", colour("red"), guidance_scale=1, **kept_away)
    assert bits(without) == bits(generate("a star", colour("red"), guidance_scale=1, **QUICK))


# ── several references ──────────────────────────────────────────────────────────────────────────


def by_hand(folder: Path, uses: list[tuple[str, Any, dict[str, Any]]], **call: Any) -> bytes:
    """The same with the parts: `uses` are an adapter's name, pictures, and arguments of use()."""
    from contextlib import ExitStack

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    adapters = {name: None for name, _, _ in uses}
    with ExitStack() as stack:
        for name in adapters:
            adapter = ip.Adapter.load(folder / "adapters" / f"{name}.safetensors")
            adapters[name] = adapter.attach(pipe, encoder=pipe.image_encoder)
        for name, pictures, how in uses:
            prompt = adapters[name].encode(pictures)
            stack.enter_context(adapters[name].use(prompt, **how))
        options = {"num_inference_steps": 2, "guidance_scale": 5.0, **call}
        generators = [torch.Generator().manual_seed(1)]
        return bytes(pipe("a star", generator=generators, **options).images[0].tobytes())


def test_controls_are_those_of_use(tiny_bundled: Path) -> None:
    how = {"scale": 1.5, "schedule": "0-0.5", "scaling": "K+V"}
    made = generate("a star", colour("red"), **how, **QUICK)
    assert bits(made) == [by_hand(tiny_bundled, [("plus", [colour("red")], how)])]
    whole = generate("a star", colour("red"), controls=made_controls(how), **QUICK)
    assert bits(whole) == bits(made)
    assert made.recipe.references[0].controls == made_controls(how).as_dict()


def made_controls(how: dict[str, Any]) -> Controls:
    return Controls.of(None, **how)


def test_masks_and_references_pair_in_order(tiny_bundled: Path, files: Path) -> None:
    two = {"reference": [files / "red.png", files / "blue.png"]}
    masks = [files / "left.png", files / "right.png"]
    made = generate("a star", **two, mask=masks, **QUICK)
    uses = [
        ("plus", [colour(name)], {"scale": 0.8, "mask": mask})
        for name, mask in zip(("red", "blue"), masks, strict=True)
    ]
    assert bits(made) == [by_hand(tiny_bundled, uses)]
    assert [one.mask and one.mask.name for one in made.recipe.references] == [*map(str, masks)]
    one = generate("a star", **two, mask=masks[0], **QUICK)
    both = ("plus", [colour("red"), colour("blue")], {"scale": 0.8, "mask": masks[0]})
    assert bits(one) == [by_hand(tiny_bundled, [both])]
    assert bits(again(made, files)) == bits(made)
    assert bits(again(one, files, mask=masks[1])) != bits(one)


def test_further_references_have_adapters_and_controls_of_their_own(
    tiny_bundled: Path, files: Path
) -> None:
    further = Reference(reference=files / "blue.png", adapter="base", scale=1.2, schedule="0.5-1")
    made = generate("a star", files / "red.png", scale=0.5, also=[further], **QUICK)
    uses: list[tuple[str, Any, dict[str, Any]]] = [
        ("plus", [colour("red")], {"scale": 0.5}),
        ("base", [colour("blue")], {"scale": 1.2, "schedule": "0.5-1"}),
    ]
    assert bits(made) == [by_hand(tiny_bundled, uses)]
    assert [one.adapter.name for one in made.recipe.references] == ["plus", "base"]
    assert len(made.image_prompts) == 2
    for name in ("red", "blue"):
        (files / f"{name}.png").unlink()
    assert bits(again(made, files)) == bits(made)  # their tokens are in the file
    stronger = again(made, files, scale=1.5)
    uses[0][2]["scale"] = 1.5
    assert bits(stronger) == [by_hand(tiny_bundled, uses)]
    alone = again(made, files, also=[])
    assert bits(alone) == [by_hand(tiny_bundled, [("plus", [colour("red")], {"scale": 0.5})])]


def test_the_same_adapter_twice_is_loaded_once(
    tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = ip.Adapter.load
    ip.release()
    monkeypatch.setattr(
        ip.Adapter, "load", lambda *a, **k: loaded.append(a) or load(*a, **k), raising=True
    )
    generate("a star", colour("red"), also=[Reference(reference=colour("blue"))], **QUICK)
    assert len(loaded) == 1


def test_how_references_are_encoded_is_in_the_recipe(tiny_bundled: Path, files: Path) -> None:
    how: dict[str, Any] = {"fusion": "weighted", "weights": [0.7, 0.3], "framing": "crop:top"}
    how |= {"negative_reference": files / "green.png", "noise": 0.2, "noise_seed": 3}
    two = [files / "red.png", files / "blue.png"]
    made = generate("a star", two, **how, **QUICK)
    (metadata,) = made.recipe.references
    assert metadata.encode_options == {
        "fusion": "weighted",
        "weights": [0.7, 0.3],
        "framing": "crop:top",
        "noise": 0.2,
        "noise_seed": 3,
    }
    assert metadata.negative_reference[0].name == str(files / "green.png")
    path = made.save(files / "out")[0]
    assert bits(repeat(path, progress=False)) == bits(made)
    # another adapter reads the pictures anew, in the same way
    other = repeat(path, adapter="base", progress=False)
    assert bits(other) == bits(generate("a star", two, adapter="base", **how, **QUICK))
    plain = repeat(path, fusion="average", weights=None, progress=False)
    assert bits(plain) == bits(
        generate("a star", two, **(how | {"fusion": "average", "weights": None}), **QUICK)
    )
    quiet = how | {"noise": 0, "noise_seed": 0}  # the seed goes with the noise
    assert bits(repeat(path, noise=0, progress=False)) == bits(
        generate("a star", two, **quiet, **QUICK)
    )
    (files / "green.png").unlink()
    assert bits(repeat(path, scale=0.8, progress=False)) == bits(made)
    with pytest.raises(errors.PictureError, match=r"negative.reference.*no such file"):
        repeat(path, adapter="base", progress=False)


def test_a_style_of_the_library(tiny_bundled: Path, files: Path) -> None:
    made = generate("a star", files / "red.png", **QUICK)
    pipe = ip.Adapter.load(tiny_bundled / "adapters" / "plus.safetensors")
    from diffusers import StableDiffusionPipeline

    base = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    pipe.attach(base, encoder=base.image_encoder)
    Library(files / "library").add("ember", pipe, [files / "red.png"])
    pipe.detach()
    styled = generate("a star", style="ember", library=files / "library", **QUICK)
    assert bits(styled) == bits(made)
    (metadata,) = styled.recipe.references
    assert metadata.style is not None
    assert (metadata.style.name, metadata.pictures) == ("ember", ())
    Library(files / "library").remove("ember")
    assert bits(again(styled, files)) == bits(styled)
    with pytest.raises(errors.NotFoundError, match="ember"):
        generate("a star", style="ember", library=files / "library", **QUICK)


def test_a_style_of_a_recipe_must_be_what_it_was(
    tiny_bundled: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its tokens are too large for the picture; any other style may take its place."""
    from diffusers import StableDiffusionPipeline

    base = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    adapter = ip.Adapter.load(tiny_bundled / "adapters" / "plus.safetensors")
    adapter.attach(base, encoder=base.image_encoder)
    shelf, where = Library(files / "library"), {"library": files / "library", "progress": False}
    shelf.add("ember", adapter, [files / "red.png"])
    shelf.add("other", adapter, [files / "blue.png"])
    monkeypatch.setattr("imageprompt.loading.recipe.png.MAX_TOKEN_BYTES", 10)
    path = generate("a star", style="ember", **where, steps=2).save(files / "out")[0]
    assert bits(repeat(path, style="other", **where)) != bits(repeat(path, **where))
    shelf.add("ember", adapter, [files / "blue.png"], replace=True)
    with pytest.raises(errors.OptionError, match=r"tokens have changed.*--style NAME"):
        repeat(path, **where)
    base.image_encoder.vision_model.post_layernorm.weight.data.mul_(2)
    adapter.detach()
    adapter.attach(base, encoder=base.image_encoder)
    shelf.add("foreign", adapter, [files / "blue.png"])  # made with another encoder
    path = generate("a star", files / "red.png", **QUICK).save(files / "out")[0]
    assert len(repeat(path, style="foreign", **where).images) == 1


def test_faces_have_masks_and_weights_of_their_own() -> None:
    how = {"face_embeddings": ["a.npy", "b.npy"], "mask": ["left.png", "right.png"]}
    for pictures in (None, ["a.png", "b.png"]):
        both = ip.Reference(reference=pictures, **how)
        both.check()
        parts = both.split_by_mask()
        assert [part.embeddings for part in parts] == [["a.npy"], ["b.npy"]]
        assert [part.pictures for part in parts] == [[p] for p in pictures or ()] or not pictures
        assert [part.mask for part in parts] == how["mask"]
    ip.Reference(reference=["group.png"], face="all", weights=[0.3, 0.7]).check()
    ip.Reference(face_embeddings=["group.npy"], weights=[0.3, 0.7]).check()


def test_two_encoders_are_two_attachments() -> None:
    """Also where they look alike."""
    from imageprompt.generation.apply_references import OpenedReference
    from imageprompt.loading import LocatedAdapter

    located, encoders = LocatedAdapter(Path("a"), "a"), [torch.nn.Linear(2, 2) for _ in range(2)]
    one, two, again_one = (
        OpenedReference(ip.Reference(reference="a.png", encoder=e), [], [], None, None, located, {})
        for e in (*encoders, encoders[0])
    )
    assert one.attachment == again_one.attachment != two.attachment


def test_a_face_adapter_reads_embeddings(
    tiny_bundled: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, without an image encoder; what the file does not tell is in the recipe."""
    from diffusers import StableDiffusionPipeline

    unet = StableDiffusionPipeline.from_pretrained(tiny_bundled).unet
    torch.manual_seed(0)
    adapter = ip.Adapter.create("faceid", denoiser=unet, encoder=None)
    for weights in adapter.parameters():
        weights.data.normal_(std=0.3)  # its LoRA too, which starts as no change
    adapter.save(files / "face.safetensors")
    face = np.random.default_rng(0).normal(size=512).astype(np.float32)
    np.save(files / "face.npy", face / np.linalg.norm(face))
    how = {"adapter": files / "face.safetensors", "face_embeddings": files / "face.npy"}
    made = generate("a star", **how, **QUICK)
    (metadata,) = made.recipe.references
    assert (metadata.encoder, metadata.pictures) == (None, ())
    assert [record.name for record in metadata.face_embeddings] == [str(files / "face.npy")]
    merged = generate("a star", lora_mode="merged", lora=0.5, **how, **QUICK)
    (metadata,) = merged.recipe.references
    assert (metadata.lora_mode, metadata.encode_options) == ("merged", {})
    assert bits(merged) != bits(made)
    monkeypatch.setattr("imageprompt.loading.recipe.png.MAX_TOKEN_BYTES", 10)  # read the file again
    assert bits(again(merged, files)) == bits(merged)


def test_references_are_encoded_again_by_the_same_encoder_only(
    tiny_bundled: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPVisionModelWithProjection as Vision

    monkeypatch.setattr("imageprompt.loading.recipe.png.MAX_TOKEN_BYTES", 10)
    encoder = Vision.from_pretrained(tiny_bundled / "image_encoder")
    encoder.save_pretrained(files / "encoder")
    made = generate("a star", files / "red.png", encoder=files / "encoder", **QUICK)
    path = made.save(files / "out")[0]
    assert bits(repeat(path, progress=False)) == bits(made)
    encoder.vision_model.post_layernorm.weight.data.mul_(2)
    encoder.save_pretrained(files / "encoder")
    with pytest.raises(errors.OptionError, match=r"weights have changed.*--encoder"):
        repeat(path, progress=False)
    repeat(path, encoder=files / "encoder", progress=False)


def test_scales_in_every_notation_come_back_from_a_recipe(tiny_bundled: Path, files: Path) -> None:
    for scale in (
        {1: 0.5, 3: 1.0},
        ["down_blocks.1"],
        {"down": {"block_1": [0.5]}, "up": {"block_0": [0.0, 1.0]}},
    ):
        made = generate("a star", colour("red"), scale=scale, **QUICK)
        assert bits(again(made, files)) == bits(made), scale


def test_a_base_that_stacks_its_batch_in_a_way_of_its_own(tiny_folder: Path, files: Path) -> None:
    """Perturbed attention: the pipeline says so; a stated layout is kept in the recipe."""
    from diffusers import StableDiffusionPAGPipeline

    pipe = StableDiffusionPAGPipeline.from_pretrained(tiny_folder, pag_applied_layers=["mid"])
    plus = tiny_folder / "adapters" / "plus.safetensors"
    options: dict[str, Any] = {"base": pipe, "adapter": plus, **QUICK}
    told = generate("a star", colour("red"), **options)
    for guidance in ("negative-positive-positive", ["negative", "positive", "positive"]):
        made = generate("a star", colour("red"), guidance=guidance, **options)
        assert bits(again(made, files, base=pipe)) == bits(made) == bits(told)


def test_what_is_shown_can_be_changed_in_a_repetition(tiny_bundled: Path, files: Path) -> None:
    red, blue = files / "red.png", files / "blue.png"
    words = generate("a star", scale=0, **QUICK)
    assert bits(again(words, files, reference=red)) == bits(generate("a star", red, **QUICK))
    averaged = generate("a star", [red, blue], fusion="average", preset="linear", **QUICK)
    saved = files / "blue.safetensors"
    alone = generate("a star", blue, preset="linear", **QUICK)
    assert alone.image_prompt is not None
    alone.image_prompt.save(saved)
    assert bits(again(averaged, files, image_prompt=saved)) == bits(alone)
    assert bits(again(averaged, files, reference=blue)) == bits(alone)
    more = again(averaged, files, preset="style and composition", composition=0.3)
    assert more.recipe.references[0].controls["composition"] == 0.3
    assert again(more, files, preset="linear").recipe.references[0].controls["composition"] is None
    twice = again(words, files, reference=red, also=[Reference(reference=blue, adapter="base")])
    assert [one.adapter.name for one in twice.recipe.references] == ["plus", "base"]
    with pytest.raises(errors.PictureError, match="no reference picture"):
        again(twice, files, reference=[], also=[])


# ── what pictures start from ────────────────────────────────────────────────────────────────────


@pytest.fixture
def start(files: Path) -> Path:
    path = files / "start.png"
    Image.effect_noise((SIDE, SIDE), 90).convert("RGB").save(path)
    return path


def test_an_init_image(tiny_bundled: Path, files: Path, start: Path) -> None:
    """The pipeline that diffusers has for it, on the same parts."""
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    options: dict[str, Any] = {"init_image": start, "strength": 0.6, "steps": 4, "progress": False}
    words = generate("a star", scale=0, **options)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(
        "a star",
        image=Image.open(start),
        strength=0.6,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(1)],
    ).images[0]
    assert bits(words) == [plain.tobytes()]
    made = generate("a star", files / "red.png", num_images=2, **options)
    assert bits(made)[0] != bits(words)[0]
    assert (made.recipe.strength, made.recipe.steps) == (0.6, 4)
    assert bits(repeat(made.save(files / "out")[1], progress=False)) == bits(made)[1:]
    half = generate("a star", files / "red.png", schedule="0-0.5", **options)
    assert bits(half) not in (bits(made)[:1], bits(words))  # of the shortened loop


def test_a_pipeline_that_is_brought_is_used_as_it_is_or_made_into_what_is_needed(
    tiny_folder: Path, start: Path
) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
    from diffusers import StableDiffusionImg2ImgPipeline as Img2Img
    from diffusers import StableDiffusionInstructPix2PixPipeline as Pix2Pix
    from diffusers import StableDiffusionPipeline as Words

    words = Words.from_pretrained(tiny_folder)
    plus = {"adapter": tiny_folder / "adapters" / "plus.safetensors", **QUICK}
    img2img = Img2Img(**words.components, requires_safety_checker=False)
    plain = generate("a star", colour("red"), base=words, **plus)
    assert bits(generate("a star", colour("red"), base=img2img, **plus)) == bits(plain)
    changed = generate("a star", colour("red"), base=words, init_image=start, **plus)
    same = generate("a star", colour("red"), base=img2img, init_image=start, **plus)
    assert bits(same) == bits(changed)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**words.unet.config, "in_channels": 8})
    pix2pix = Pix2Pix(**{**words.components, "unet": unet}, requires_safety_checker=False)
    options = {"base": pix2pix, "guidance": "positive-negative-negative", **plus}
    edited = generate("a star", colour("red"), init_image=start, **options)
    assert edited.recipe.strength is None
    assert bits(edited) != bits(generate("a star", scale=0, init_image=start, **options))
    with pytest.raises(errors.OptionError, match="diffusers has no pipeline for text"):
        generate("a star", colour("red"), **options)
    net = ControlNetModel.from_unet(words.unet, conditioning_embedding_out_channels=(8, 8))
    guided = StableDiffusionControlNetPipeline(
        **words.components, controlnet=net, requires_safety_checker=False
    )
    with pytest.raises(errors.OptionError, match=r"generate\(\) does not know"):
        generate("a star", colour("red"), base=guided, **plus)
    with pytest.raises(errors.OptionError, match=r"strength 0\.5: this base has no such option"):
        generate("a star", colour("red"), init_image=start, strength=0.5, **options)


def test_init_images_of_other_sizes_are_scaled_and_that_is_said(
    tiny_bundled: Path, files: Path
) -> None:
    wide = files / "wide.png"
    Image.effect_noise((200, 100), 90).convert("RGB").save(wide)
    with pytest.warns(UserWarning, match="200x100 pixels: scaled and distorted to 22x12"):
        made = generate("a star", colour("red"), init_image=wide, **QUICK)
    assert made.images[0].size == (made.recipe.width, made.recipe.height) == (22, 12)
    with pytest.warns(UserWarning, match="init image of 200x100 pixels: scaled to 32x16"):
        generate("a star", colour("red"), init_image=wide, size=(32, 16), **QUICK)


def test_an_inpaint_mask(tiny_bundled: Path, files: Path, start: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    options = {"init_image": start, "inpaint_mask": files / "left.png", **QUICK}
    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    pipe = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(
        "a star",
        image=Image.open(start),
        mask_image=Image.open(files / "left.png"),
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(1)],
    ).images[0]
    assert bits(generate("a star", scale=0, **options)) == [plain.tobytes()]
    made = generate("a star", files / "red.png", **options)
    assert bits(made) != [plain.tobytes()]
    assert made.recipe.inpaint_mask is not None
    assert bits(again(made, files)) == bits(made)


def test_inpainting_with_latents_of_sixteen_channels() -> None:
    """The bundled stack itself: what is not masked stays, which diffusers alone refuses to do."""
    start = Image.open(Path(__file__).resolve().parents[2] / "docs" / "reference.png").convert(
        "RGB"
    )
    start = start.resize((64, 64))
    mask = np.zeros((64, 64))
    mask[:, :32] = 1
    options: dict[str, Any] = {"init_image": start, "inpaint_mask": mask, "steps": 4}
    made = generate("a shape", start.rotate(180), scale=1.0, progress=False, **options)
    change = np.abs(np.asarray(made.images[0], int) - np.asarray(start, int)).mean(axis=(0, 2))
    assert change[44:].max() < 15  # what the VAE loses
    assert change[:24].mean() > 20


def test_a_controlnet(tiny_bundled: Path, files: Path, start: Path) -> None:
    from diffusers import ControlNetModel, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundled)
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(zero.weight, std=0.5)
    net.save_pretrained(files / "net")
    control = {"controlnet": files / "net", "control_image": start}
    made = generate("a star", files / "red.png", **control, **QUICK)
    weak = generate("a star", files / "red.png", control_scale=0.1, **control, **QUICK)
    assert len({bits(made)[0], bits(weak)[0]}) == 2
    assert made.recipe.control_scale == 1.0
    off = generate("a star", files / "red.png", control_scale=0.0, **control, **QUICK)
    assert bits(off) == bits(generate("a star", files / "red.png", size=(SIDE, SIDE), **QUICK))
    path = made.save(files / "out")[0]
    assert bits(repeat(path, progress=False)) == bits(made)
    both = generate("a star", files / "red.png", init_image=start, **control, **QUICK)
    hole = {"init_image": start, "inpaint_mask": files / "left.png"}
    all_ = generate("a star", files / "red.png", **hole, **control, **QUICK)
    assert len({bits(made)[0], bits(both)[0], bits(all_)[0]}) == 3
    assert bits(again(all_, files)) == bits(all_)
    # in memory, and of another base
    assert bits(
        generate("a star", files / "red.png", controlnet=net, control_image=start, **QUICK)
    ) == bits(made)
    other = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8))
    with pytest.raises(
        errors.WrongBaseError, match="downscales pictures by 4; this base's VAE by 2"
    ):
        generate("a star", colour("red"), controlnet=other, control_image=start, **QUICK)
    torch.save({}, files / "net" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(errors.OptionError, match="cannot load it"):
        repeat(path, progress=False)


@pytest.mark.parametrize("name", ["mask", "init_image"])
def test_files_of_a_recipe_must_lie_there_unchanged(
    tiny_bundled: Path, files: Path, start: Path, name: str
) -> None:
    named = {"mask": files / "left.png", "init_image": start}
    made = generate("a star", files / "red.png", **named, **QUICK)
    path = made.save(files / "out")[0]
    flag = f"--{name.replace('_', '-')}"
    Image.new("L", (SIDE, SIDE), 200).save(named[name])
    with pytest.raises(errors.PictureError, match=f"the file has changed.*{flag}"):
        repeat(path, progress=False)
    named[name].unlink()
    with pytest.raises(errors.PictureError, match=f"no such file.*{flag}"):
        repeat(path, progress=False)
    inside = Image.new("RGB", (SIDE, SIDE), "white")
    kept = repeat(path, progress=False, **{name: inside})
    with pytest.raises(errors.PictureError, match=f"an object in memory.*{flag}"):
        again(kept, files)


def test_arrays_are_masks(tiny_bundled: Path, files: Path) -> None:
    array = np.asarray(Image.open(files / "left.png"))
    expected = bits(generate("a star", colour("red"), mask=files / "left.png", **QUICK))
    for mask in (array, array / 255.0, torch.from_numpy(array / 255.0), (array / 255).tolist()):
        assert bits(generate("a star", colour("red"), mask=mask, **QUICK)) == expected
