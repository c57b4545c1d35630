"""Recipes: what is written comes back the same; what a stranger wrote is believed in nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imageprompt import recipe as module
from imageprompt.errors import OptionError
from imageprompt.recipe import Recipe, Source, read_picture, write_picture

RECIPE = Recipe(
    prompt="a cat in a hat — 猫",
    negative_prompt="",
    scale=0.8,
    seed=1,
    index=2,
    num_images=4,
    batch_size=4,
    steps=20,
    guidance_scale=3.0,
    width=64,
    height=64,
    dtype="float32",
    device="cpu",
    scheduler={"_class_name": "DDIMScheduler", "trained_betas": None, "beta_start": 1e-4},
    base=Source(name="bundled", hash="0" * 16),
    adapter=Source(name="plus", hash="1" * 64, spec={"variant": "plus", "projector": {"depth": 2}}),
    encoder=Source(name=None, hash="2" * 16),
    references=(Source(name="cat.png", hash="3" * 64),),
    versions={"torch": "2.13.0"},
)


def write(folder: Path, text: str, tokens: str | None = None) -> Path:
    info = PngInfo()
    info.add_itxt(module.RECIPE_KEY, text, zip=True)
    if tokens is not None:
        info.add_itxt(module.TOKENS_KEY, tokens, zip=True)
    path = folder / "stranger.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(RECIPE.to_json()), **changes})


def test_round_trip_through_json() -> None:
    assert Recipe.from_json(RECIPE.to_json(), "x") == RECIPE
    sites = replace(RECIPE, scale={"style": 1.0, "mid_block": 0.2}, guidance_scale=None)
    assert Recipe.from_json(sites.to_json(), "x") == sites
    words = replace(RECIPE, adapter=None, encoder=None, references=())
    assert Recipe.from_json(words.to_json(), "x") == words


@pytest.mark.parametrize("size", [0, 1000, module.MAX_TOKEN_BYTES])
def test_round_trip_through_a_picture(size: int, tmp_path: Path) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    tokens = os.urandom(size) if size else None
    path = tmp_path / "picture.png"
    write_picture(path, image, RECIPE, tokens)
    assert read_picture(path) == (RECIPE, tokens)
    assert Image.open(path).convert("RGB").tobytes() == image.tobytes()


def test_tokens_that_are_too_large_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(path, Image.new("RGB", (8, 8)), RECIPE, b"x" * (module.MAX_TOKEN_BYTES + 1))
    assert read_picture(path) == (RECIPE, None)


LIES = {
    "format": [2, "1", None],
    "prompt": [None, 7, "x" * 30_000],
    "scale": [-0.1, 2.1, True, "1", [1], {"style": 3}, {"x" * 300: 1}],
    "seed": [-1, 2**63, 1.5, "1", True],
    "index": [-1, 4],
    "num_images": [0, 10**9],
    "batch_size": [0, 65, None],
    "steps": [0, 10**9, 2.5],
    "guidance_scale": [-1, 10**6, "7"],
    "width": [0, 100_000, -64, 64.0],
    "dtype": ["float8", "complex128", 7],
    "device": ["cuda:999", "meta", "cpu; rm", None],
    "scheduler": [
        None,
        {},
        {"_class_name": "os.system"},
        {"_class_name": "DDIMScheduler", "num_train_timesteps": 10**12},
        {"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 20_000},
        {"_class_name": "DDIMScheduler", "x": {"nested": 1}},
    ],
    "base": [
        None,
        "bundled",
        {"name": "bundled"},
        {"name": "https://example.org/x", "hash": "0" * 16},
        {"name": "//server/share", "hash": "0" * 16},
        {"name": "x", "hash": "../../etc"},
        {"name": "x", "hash": "0" * 16, "run": "me"},
    ],
    "adapter": [{"name": 7, "hash": "0" * 16}, "plus"],
    "references": [None, {}, ["cat.png"], [{"name": "a", "hash": "0" * 64}] * 2000],
    "versions": [None, {"torch": 2}, {"x" * 100: "1"}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in LIES.items() for value in values]
)
def test_impossible_values_are_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, changed(**{key: value}))
    with pytest.raises(OptionError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert "stranger.png" in message
    assert key.replace("_", " ") in message.replace("_", " ")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("key", [k for k in json.loads(RECIPE.to_json()) if k != "format"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    data = json.loads(RECIPE.to_json())
    del data[key]
    with pytest.raises(OptionError, match=key):
        read_picture(write(tmp_path, json.dumps(data)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "recipe in"),
        ("{", "recipe in"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "recipe in"),
        (changed(scale=float("nan")), "NaN"),
        (changed(extra=1), "unknown key 'extra'"),
        (changed(step=1), "not 'steps'"),
        (changed(prompt="x" * 300_000), "more than 256 kB"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        read_picture(write(tmp_path, text))
    assert len(str(caught.value)) < 400


def test_damaged_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="damaged"):
        read_picture(write(tmp_path, RECIPE.to_json(), "not base64!"))


def test_files_without_a_recipe_are_refused(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.png", tmp_path / "text.png"
    Image.new("RGB", (8, 8)).save(plain)
    text.write_text("<html>")
    for path, reason in (
        (plain, "no imageprompt recipe"),
        (text, "cannot be read as a PNG"),
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(OptionError, match=reason):
            read_picture(path)


def test_a_text_chunk_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read as a PNG"):
        read_picture(write(tmp_path, RECIPE.to_json(), "A" * 50_000_000))
