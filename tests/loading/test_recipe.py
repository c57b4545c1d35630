"""Recipes: what is written comes back the same; what a stranger wrote is believed in nothing."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, Field, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imageprompt.control import Controls, Schedule
from imageprompt.core.errors import OptionError
from imageprompt.loading import recipe as module
from imageprompt.loading.recipe import (
    AssetRecord,
    Recipe,
    ReferenceMetadata,
    png,
    read_picture,
    write_picture,
)
from imageprompt.loading.recipe.reading import read_recipe

METADATA = ReferenceMetadata(
    adapter=AssetRecord(
        name="plus", hash="1" * 64, spec={"variant": "plus", "projector": {"depth": 2}}
    ),
    encoder=AssetRecord(name=None, hash="2" * 16),
    pictures=(
        AssetRecord(name="cat.png", hash="3" * 64),
        AssetRecord(name="dog.png", hash="3" * 64),
    ),
    mask=AssetRecord(name="left.png", hash="4" * 64),
    negative_reference=(AssetRecord(name="noise.png", hash="4" * 64),),
    controls=Controls(preset="style transfer", schedule=Schedule.parse("0-0.4")).as_dict(),
    encode_options={
        "fusion": "weighted",
        "weights": [0.7, 0.3],
        "framing": "crop:top",
        "noise": "fade:0.2",
    },
)
RECIPE = Recipe(
    prompt="a cat in a hat — 猫",
    negative_prompt="",
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
    base=AssetRecord(name="bundled", hash="0" * 16),
    references=(
        METADATA,
        replace(
            METADATA,
            style=AssetRecord(name="ink", hash="5" * 64),
            pictures=(),
            lora_mode="merged",
            face_embeddings=(AssetRecord(name="me.npy", hash="6" * 64),),
        ),
    ),
    init_image=AssetRecord(name="start.png", hash="6" * 64),
    guidance=("negative", "positive", "positive"),
    strength=0.6,
    inpaint_mask=AssetRecord(name="hole.png", hash="7" * 64),
    controlnet=AssetRecord(name="./canny", hash="8" * 16),
    control_image=AssetRecord(name="edges.png", hash="9" * 64),
    control_scale=0.5,
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
    assert read_recipe(RECIPE.to_json(), "x") == RECIPE
    sites = Controls(scale={"style": 1.0, "mid_block": 0.2}).as_dict()
    by_site = replace(RECIPE, references=(replace(METADATA, controls=sites),), guidance_scale=None)
    assert read_recipe(by_site.to_json(), "x") == by_site
    words = replace(RECIPE, references=())
    assert read_recipe(words.to_json(), "x") == words
    assert (words.adapter, words.encoder, words.scale) == (None, None, 0.0)


FORMAT_1 = {
    **{name: json.loads(RECIPE.to_json())[name] for name in (
        *("prompt", "negative_prompt", "seed", "index", "num_images", "batch_size", "steps"),
        *("guidance_scale", "width", "height", "dtype", "device", "scheduler", "base", "versions"),
    )},
    "scale": {"style": 0.5},
    "adapter": {"name": "plus", "hash": "1" * 64},
    "encoder": {"name": None, "hash": "2" * 16},
    "references": [{"name": "cat.png", "hash": "3" * 64}],
    "format": 1,
}  # fmt: skip


def test_format_1_is_still_read() -> None:
    """One adapter with a scale was all that it knew."""
    read = read_recipe(json.dumps(FORMAT_1), "x")
    assert read.references == (
        ReferenceMetadata(
            adapter=AssetRecord(name="plus", hash="1" * 64),
            encoder=AssetRecord(name=None, hash="2" * 16),
            pictures=(AssetRecord(name="cat.png", hash="3" * 64),),
            controls={"scale": {"style": 0.5}},
        ),
    )
    assert (read.scale, read.format, read.init_image) == ({"style": 0.5}, 3, None)
    words = read_recipe(json.dumps({**FORMAT_1, "adapter": None, "scale": 0}), "x")
    assert words.references == ()
    for wrong, reason in (({"scale": 3}, "scale"), ({"shown": []}, "unknown key 'shown'")):
        with pytest.raises(OptionError, match=reason):
            read_recipe(json.dumps(FORMAT_1 | wrong), "x")
    with pytest.raises(OptionError, match="missing: references"):
        read_recipe(json.dumps({k: FORMAT_1[k] for k in FORMAT_1 if k != "references"}), "x")


STORED = Path(__file__).parent / "recipes"
"""Written by the code that wrote these formats, for pictures of the bundled stack."""


def stored(version: int) -> str:
    return (STORED / f"format-{version}.json").read_text(encoding="utf-8")


def test_stored_recipes_of_format_1_and_2_are_read_exactly() -> None:
    old = json.loads(stored(1))
    read = read_recipe(stored(1), "x")
    gone = {"scale", "adapter", "encoder", "references", "format"}
    for name in old.keys() - gone:
        value = getattr(read, name)
        assert (asdict(value) if name == "base" else value) == old[name], name
    (entry,) = read.references
    assert asdict(entry.adapter) == old["adapter"]
    assert entry.encoder is not None
    assert asdict(entry.encoder) == old["encoder"]
    assert [asdict(record) for record in entry.pictures] == old["references"]
    assert (entry.controls, read.scale) == ({"scale": old["scale"]}, old["scale"])

    old = json.loads(stored(2))
    assert old["shown"][0]["how"]["prepare"] == "crop:top"
    read = read_recipe(stored(2), "x")
    new = json.loads(read.to_json())
    assert new["format"] == 3
    assert {name: new[name] for name in old.keys() - {"shown", "format"}} == {
        name: old[name] for name in old.keys() - {"shown", "format"}
    }
    assert len(read.references) == 2
    for entry, was in zip(new["references"], old["shown"], strict=True):
        how = dict(was["how"])
        if "prepare" in how:
            how["framing"] = how.pop("prepare")
        assert entry == {
            **{name: was[name] for name in ("adapter", "encoder", "faces", "style", "mask")},
            "pictures": was["references"],
            "face_embeddings": was["embeddings"],
            "negative_reference": was["negative"],
            "reference_mask": was["reference_mask"],
            "controls": was["controls"],
            "encode_options": how,
            "lora_mode": "live",
        }
    assert read_recipe(read.to_json(), "x") == read


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        (1, {"seed": -1}, "seed: not a whole number"),
        (1, {"references": 7}, "pictures: not a list"),
        (1, {"encoder": "x"}, "encoder: not an object"),
        (1, {"shown": []}, "unknown key 'shown'"),
        (2, {"references": []}, "unknown key 'references'"),
        (2, {"shown": None}, "shown: not a list"),
        (2, {"shown": ["plus"]}, "shown: not an object"),
        (2, {"shown": [{"pictures": []}]}, "shown: unknown key 'pictures'"),
        (2, {"shown": [{"lora_mode": "live"}]}, "shown: unknown key 'lora_mode'"),
        (2, {"shown": [{"adapter": {}}]}, "shown: missing: references"),
        (2, {"shown": [{"references": []}]}, "references.0.adapter: the key is missing"),
        (2, {"shown": [{"references": [], "how": {"lora_mode": "x"}}]}, "lora_mode|adapter"),
        (2, {"shown": [{"references": [], "how": 7}]}, "adapter"),
        (2, {"guidance": [{}]}, "guidance: branches are"),
    ],
)
def test_earlier_formats_are_checked_as_strictly(
    version: int, change: dict[str, Any], words: str
) -> None:
    text = json.dumps({**json.loads(stored(version)), **change})
    with pytest.raises(OptionError, match=words) as caught:
        read_recipe(text, "old.png")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_old_lora_mode_is_read() -> None:
    old = json.loads(stored(2))
    old["shown"][1]["how"] = {"lora_mode": "merged", "face": 1}
    entry = read_recipe(json.dumps(old), "x").references[1]
    assert (entry.lora_mode, entry.encode_options) == ("merged", {"face": 1})


def test_messages_name_the_place_and_the_near_key() -> None:
    entry = {**ENTRY, "adaptr": 1}
    for change, words in (
        ({"references": [entry]}, r"references\.0: unknown key 'adaptr'; did you mean 'adapter'\?"),
        ({"base": {"name": None, "hash": 7}}, r"base\.hash: a hash is 16 or 64 hex digits"),
        ({"base": {"name": None, "hsah": "0" * 16}}, r"base"),
        ({"index": 9}, "index 9: only 4 pictures were made"),
    ):
        with pytest.raises(OptionError, match=words):
            read_recipe(changed(**change), "x")


def test_a_recipe_that_could_not_be_read_is_not_written() -> None:
    assert RECIPE.check() is RECIPE
    with pytest.raises(OptionError, match="steps: not a whole number from 1 to 1000"):
        replace(RECIPE, steps=0).check()
    metadata = replace(METADATA, controls={"scale": 3})
    with pytest.raises(OptionError, match=r"references\.0\.controls"):
        replace(RECIPE, references=(metadata,)).check()


@pytest.mark.parametrize("size", [0, 1000, png.MAX_TOKEN_BYTES])
def test_round_trip_through_a_picture(size: int, tmp_path: Path) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    tokens = [None, os.urandom(size) if size else None]
    path = tmp_path / "picture.png"
    write_picture(path, image, RECIPE, tokens)
    assert read_picture(path) == (RECIPE, tokens)
    assert Image.open(path).convert("RGB").tobytes() == image.tobytes()


def test_tokens_that_are_too_large_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    large = b"x" * (png.MAX_TOKEN_BYTES + 1)
    write_picture(path, Image.new("RGB", (8, 8)), RECIPE, [b"small", large])
    assert read_picture(path) == (RECIPE, [b"small", None])


ENTRY = json.loads(RECIPE.to_json())["references"][0]
OF_A_REFERENCE = ("adapter", "pictures", "mask", "controls", "encode_options", "lora_mode")


def _needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


LIES = {
    "format": [4, 0, "1", None, True],
    "prompt": [None, 7, "x" * 30_000],
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
    "references": [None, {}, ["plus"], [{}] * 100, [ENTRY] * 17],
    "adapter": [{"name": 7, "hash": "0" * 16}, "plus", None],
    "pictures": [None, {}, ["cat.png"], [{"name": "a", "hash": "0" * 64}] * 2000],
    "mask": ["left.png", {"name": "https://example.org/x", "hash": "0" * 64}],
    "controls": [
        None,
        [],
        {"scale": -0.1},
        {"scale": True},
        {"scale": "much"},
        {"scale": {"style": 3}},
        {"preset": "no such"},
        {"preset": "linear", "composition": 1.0},
        {"schedule": "0.5-0.1"},
        {"schedule": 7},
        {"scaling": "K"},
        {"run": "me"},
    ],
    "encode_options": [
        None,
        [],
        {"run": "me"},
        {"fusion": "no such"},
        {"weights": [1, "x"]},
        {"weights": [[[[1]]]]},
        {"framing": "fold"},
        {"framing": {"how": "crop"}},
        {"noise": 7},
        {"noise_seed": -1},
        {"subtract_text": 7},
        {"subtract_text": "x" * 300},
        {"face": "smallest"},
        {"face": True},
        {"face_strength": "much"},
        {"lora_mode": "live"},
    ],
    "lora_mode": ["dead", None, 7, ["live"]],
    "init_image": ["start.png", {"name": "x"}],
    "guidance": [None, 7, [], ["up"], [{}], ["positive"] * 100, "x" * 100, "not a layout"],
    "strength": [-0.1, 1.1, "1", True],
    "inpaint_mask": [[]],
    "controlnet": [{"name": "//server/share", "hash": "0" * 16}],
    "control_scale": [-1, 3],
    "versions": [None, {"torch": 2}, {"x" * 100: "1"}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in LIES.items() for value in values]
)
def test_impossible_values_are_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    lie = {"references": [{**ENTRY, key: value}]} if key in OF_A_REFERENCE else {key: value}
    path = write(tmp_path, changed(**lie))
    with pytest.raises(OptionError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert "stranger.png" in message
    assert key.replace("_", " ") in message.replace("_", " ")
    assert "\n" not in message
    assert len(message) < 400


NEEDED = [f.name for of in (Recipe, ReferenceMetadata) for f in fields(of) if _needed(f)]


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    data = json.loads(RECIPE.to_json())
    del (data["references"][0] if key in ENTRY else data)[key]
    with pytest.raises(OptionError, match=key):
        read_picture(write(tmp_path, json.dumps(data)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "recipe in"),
        ("{", "recipe in"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "recipe in"),
        (changed(strength=float("nan")), "NaN"),
        (changed(extra=1), "unknown key 'extra'"),
        (changed(step=1), "did you mean 'steps'"),
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
        (tmp_path, "it is a folder, not a file"),
    ):
        with pytest.raises(OptionError, match=reason):
            read_picture(path)


def test_a_text_chunk_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read as a PNG"):
        read_picture(write(tmp_path, RECIPE.to_json(), "A" * 50_000_000))
