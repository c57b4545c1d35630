"""generate with every host that is a transformer: the whole pipeline, from text to picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from test_engine import bits, picture

import imageprompt as ip
import whole_pipelines
from imageprompt.core import bundled, errors
from imageprompt.encoding.encoders import open_encoder
from imageprompt.generation import pipeline_call
from whole_pipelines import SIZE, SIZES, open_pipeline, reopened, small_only

HOSTS = [name for name in whole_pipelines.HOSTS if name != "wan"]


def create_adapter(pipe: Any, encoder: Any) -> ip.Adapter:
    shape = {"num_tokens": 2, "depth": 1, "heads": 1, "inner_dim": 8}
    made = ip.Adapter.create("plus", denoiser=pipe.transformer, encoder=encoder, **shape)
    torch.manual_seed(6)
    for weight in made.module.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.sample(3)
@pytest.mark.parametrize("name", HOSTS)
def test_a_picture_of_every_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipeline(name)
    small_only(monkeypatch, pipe)
    encoder = open_encoder(bundled.folder() / "image_encoder")
    engine = ip.Engine(pipe)
    text: dict[str, Any] = {"size": SIZES.get(name, SIZE), "steps": 2, "progress": False}
    with_reference = {
        "reference": picture(1),
        "adapter": create_adapter(pipe, encoder),
        "encoder": encoder,
        **text,
    }
    made = engine.generate("a star", seed=4, num_images=2, batch_size=2, **with_reference)
    assert made.images[0].size == text["size"]
    plain = bits(engine.generate("a star", scale=0, seed=4, **text))
    assert bits(made)[:1] != plain
    assert bits(engine.generate("a star", seed=4, **with_reference | {"scale": 0})) == plain
    alone = {"prompt": "a star", "seed": 5, **with_reference}
    other = {"prompt": "a red ring : a blue star", "seed": 6, **with_reference}
    assert bits(engine.generate(**alone)) == bits(made)[1:]
    both = engine.generate_many([other, alone], progress=False)
    assert [bits(one) for one in both] == [bits(engine.generate(**other)), bits(made)[1:]]
    again = {"base": pipe, "progress": False} | {
        key: with_reference[key] for key in ("reference", "adapter", "encoder")
    }
    assert bits(ip.repeat(made.save(tmp_path)[1], **again)) == bits(made)[1:]


@pytest.mark.parametrize("name", ["flux", "chroma", "sd3", "qwen-image", "z-image", "flux2 klein"])
def test_what_transformers_start_from(name: str) -> None:
    size = (32, 32) if name == "sd3" else (64, 64)
    text: dict[str, Any] = {"scale": 0, "size": size, "steps": 3, "progress": False}
    engine = ip.Engine(open_pipeline(name))
    changed = engine.generate("a star", init_image=picture(2).resize(size), **text)
    assert changed.images[0].size == size
    assert bits(changed) != bits(engine.generate("a star", **text))


def test_a_picture_to_edit_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    flux, start = open_pipeline("flux"), picture(2).resize((32, 16))
    kontext = diffusers.FluxKontextPipeline(**flux.components)
    small_only(monkeypatch, kontext)
    text: dict[str, Any] = {"scale": 0, "size": (32, 16), "steps": 2, "progress": False}
    made = ip.generate("a star", base=kontext, **text)
    assert made.images[0].size == (32, 16)
    assert bits(made) == bits(ip.generate("a star", base=flux, **text))
    edited = ip.generate("a star", base=kontext, init_image=start, **text)
    assert edited.images[0].size == (32, 16)
    assert bits(edited) != bits(made)
    with pytest.raises(errors.OptionError, match=r"strength 0\.5: this base has no such option"):
        ip.generate("a star", base=kontext, init_image=start, strength=0.5, **text)
    parts = {**open_pipeline("qwen-image").components, "processor": None}
    edit = diffusers.QwenImageEditPipeline(**parts)
    with pytest.raises(errors.OptionError, match=r"it edits a picture\. Give one: --init-image"):
        ip.generate("a star", base=edit, **text)


def test_bases_that_fill_a_mask_or_read_a_control_image(tmp_path: Path) -> None:
    picture_given, half = picture(2).resize(SIZE), np.zeros(SIZE, np.float32)
    half[:, :16] = 1
    text: dict[str, Any] = {"scale": 0, "size": SIZE, "steps": 3, "progress": False}
    fill = reopened("flux", diffusers.FluxFillPipeline, in_channels=24, out_channels=4)
    masked: dict[str, Any] = {"init_image": picture_given, "inpaint_mask": half}
    assert ip.generate("a star", base=fill, **masked, **text).images[0].size == SIZE
    with pytest.raises(errors.OptionError, match="Give --init-image and --inpaint-mask"):
        ip.generate("a star", base=fill, **text)
    flux = reopened("flux", diffusers.FluxControlPipeline, in_channels=8, out_channels=4)
    for base in (flux, reopened("cogview4", diffusers.CogView4ControlPipeline, in_channels=8)):
        made = ip.generate("a star", base=base, control_image=picture_given, **text)
        other = ip.generate("a star", base=base, control_image=picture(1).resize(SIZE), **text)
        assert bits(made) != bits(other)
        with pytest.raises(errors.OptionError, match=r"it reads a control image\. Give one"):
            ip.generate("a star", base=base, **text)
    changed: dict[str, Any] = {
        "control_image": picture_given,
        "init_image": picture(3).resize(SIZE),
    }
    assert bits(ip.generate("a star", base=flux, **changed, **text))
    with pytest.raises(errors.OptionError, match="--control-image without --controlnet"):
        ip.generate("a star", base=open_pipeline("flux"), control_image=picture_given, **text)


def test_own_guidance_has_its_negative_side(tmp_path: Path) -> None:
    """Qwen-Image's own scale is 4; diffusers ignores it unless a negative prompt is given."""
    engine = ip.Engine(open_pipeline("qwen-image"))
    text: dict[str, Any] = {"scale": 0, "size": SIZE, "steps": 2, "progress": False}
    made = engine.generate("a star", **text)
    own, plain = bits(made), bits(engine.generate("a star", true_cfg_scale=1.0, **text))
    assert own == bits(engine.generate("a star", true_cfg_scale=4.0, **text)) != plain
    again = {"base": engine.loaded.pipe, "progress": False}
    assert own == bits(ip.repeat(made.save(tmp_path)[0], **again))
    unstated = replace(made, recipes=[replace(made.recipe, true_cfg_scale=None)])
    older = unstated.save(tmp_path / "older")[0]  # of a version without guidance here
    assert plain == bits(ip.repeat(older, **again))
    assert own == bits(ip.repeat(older, **again, true_cfg_scale=4.0))
    flux = ip.generate("a star", base=open_pipeline("flux"), **text)
    assert flux.recipe.true_cfg_scale == 1
    ip.repeat(flux.save(tmp_path / "flux")[0], base=open_pipeline("sd3"), progress=False)
    with pytest.warns(UserWarning, match="no effect on this base: --guidance-scale 7"):
        assert own == bits(engine.generate("a star", guidance_scale=7, **text))
    assert pipeline_call.guided_by(engine.loaded.pipe) == "true_cfg_scale"
    assert pipeline_call.guided_by(open_pipeline("flux")) == "guidance_scale"


def test_the_negative_side_of_a_pipeline_without_negative_prompts() -> None:
    pipe, encoder = open_pipeline("flux2 klein"), open_encoder(bundled.folder() / "image_encoder")
    own = {"reference": picture(1), "adapter": create_adapter(pipe, encoder), "encoder": encoder}
    text: dict[str, Any] = {"size": SIZE, "steps": 2, "progress": False}
    engine = ip.Engine(pipe)
    plain = engine.generate("a star", guidance_scale=4.0, **own, **text)
    made = engine.generate("a star", guidance_scale=4.0, negative_scale=0.2, **own, **text)
    assert bits(made) != bits(plain)
    pipe.register_to_config(is_distilled=True)
    with pytest.raises(errors.OptionError, match="it has no negative side of guidance"):
        engine.generate("a star", negative_scale=0.2, **own, **text)


def test_another_size_than_asked_for_is_said() -> None:
    text: dict[str, Any] = {"scale": 0, "size": SIZE, "steps": 1, "progress": False}
    engine = ip.Engine(open_pipeline("hidream"))
    with pytest.warns(UserWarning, match="the base makes pictures of 16x16 pixels, not 32x32"):
        made = engine.generate("a star", **text)
    assert made.recipe.width == 16
    with pytest.warns(UserWarning, match="the base makes pictures of 16x16 pixels, not 32x32"):
        engine.generate_many([{"prompt": "a star", **text}] * 2, progress=False)


def test_sizes_that_a_transformer_has_no_positions_for() -> None:
    text: dict[str, Any] = {"scale": 0, "steps": 1, "progress": False}
    with pytest.raises(errors.OptionError, match="knows positions for 32x32 pixels at most"):
        ip.generate("a star", base=open_pipeline("auraflow"), size=(64, 32), **text)
    with pytest.raises(errors.OptionError, match=r"inside adapter\.use\(\)"):
        ip.generate("a star", base=open_pipeline("wan"), **text)
