"""Requests as data: JSON schema, flags, limits; each check runs once, each file is read once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import forked
import imageprompt as ip
from imageprompt.control import Controls
from imageprompt.core.errors import OptionError, PictureError, ScaleError
from imageprompt.core.schema import json_schema, options, validate
from imageprompt.encoding.images import open_image
from imageprompt.encoding.options import EncodeOptions
from imageprompt.generation import generate
from imageprompt.generation.option_values import (
    number_or_word,
    parse_layout,
    parse_numbers,
    parse_scale,
    parse_size,
)
from imageprompt.generation.reference import REFERENCE_FIELDS, Reference
from imageprompt.generation.request import REQUEST_FIELDS, Request
from imageprompt.loading import recipe as recipes
from imageprompt.loading.recipe import Recipe, limits

# ── JSON ────────────────────────────────────────────────────────────────────────────────────────


def schema(kind: type) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydantic warns of defaults that JSON cannot express
        return json_schema(kind)


def test_the_schema_of_a_request() -> None:
    found = schema(Request)
    properties = found["properties"]
    assert properties["steps"]["minimum"] == 1
    assert properties["steps"]["maximum"] == 1000
    assert properties["num_images"]["default"] == 1
    assert properties["prompt"]["type"] == "string"
    assert {"type": "string"} in properties["base"]["anyOf"]
    assert properties["references"]["items"] == {"$ref": "#/$defs/Reference"}
    for internal in ("progress", "on_image", "on_progress", "replayed_from", "changed"):
        assert internal not in properties
    reference = found["$defs"]["Reference"]["properties"]
    assert reference["scale"]["default"] == 0.8
    assert {"type": "array", "items": {"type": "string"}} in reference["reference"]["anyOf"]
    assert reference["lora"]["maximum"] == 2
    assert reference["scaling"]["enum"][0] == "V only"
    for internal in ("controls", "replayed_from", "tokens_from_recipe"):
        assert internal not in reference
    assert all("description" in entry for entry in reference.values())
    assert json.loads(json.dumps(found)) == found


def test_a_request_from_json() -> None:
    data = {
        "prompt": "a star",
        "seed": 7,
        "size": [512, 768],
        "references": [
            {"reference": ["a.png", "b.png"], "weights": [0.7, 0.3], "scale": {"style": 1.0}},
            {"style": "ink", "schedule": "0-0.4", "face": "all"},
        ],
    }
    request = validate(Request, data, what="request")
    assert (request.seed, request.size) == (7, (512, 768))
    first, second = request.references
    assert first == Reference(reference=["a.png", "b.png"], weights=[0.7, 0.3], scale={"style": 1})
    assert second == Reference(style="ink", schedule="0-0.4", face="all")
    for wrong, key in (
        ({"steps": 0}, "steps"),
        ({"seed": "x"}, "seed"),
        ({"references": [{"lora": 3}]}, "references.0.lora"),
        ({"references": {}}, "references"),
    ):
        with pytest.raises(OptionError, match=f"request: {key}"):
            validate(Request, data | wrong, what="request")


def test_every_option_of_generate_is_a_flag_with_help() -> None:
    flags = {field.name: field for kind in (Request, Reference) for field in options(kind)}
    assert set(flags) == {*REQUEST_FIELDS, *REFERENCE_FIELDS} - {"progress"}
    assert all(field.option.help and field.option.group for field in flags.values())
    repeatable = {name for name, field in flags.items() if field.option.repeat}
    assert repeatable == {
        *("reference", "content", "mask", "reference_mask"),
        *("negative_reference", "face_embeddings"),
    }


def test_the_schema_of_a_recipe() -> None:
    found = schema(Recipe)
    assert found["additionalProperties"] is False
    assert found["properties"]["seed"]["maximum"] == limits.SEED.high
    assert found["properties"]["references"]["maxItems"] == limits.MAX_REFERENCES
    assert set(found["$defs"]) == {"AssetRecord", "ReferenceMetadata"}


# ── text of flags ───────────────────────────────────────────────────────────────────────────────


def test_texts_of_flags(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"style": 0.5}')
    assert parse_scale("0.8") == 0.8
    assert parse_scale("style=1, layout=0.2") == {"style": 1.0, "layout": 0.2}
    assert parse_scale("3:1.0,6:0.5") == "3:1.0,6:0.5"
    assert parse_scale('["mid_block"]') == ["mid_block"]
    assert parse_scale(str(tmp_path / "s.json")) == {"style": 0.5}
    assert parse_numbers("0.7,0.3") == [0.7, 0.3]
    assert (parse_size("128"), parse_size("512X768")) == ((128, 128), (512, 768))
    assert (parse_layout("auto"), parse_layout("positive,negative")) == (
        "auto",
        ["positive", "negative"],
    )
    assert (number_or_word("0"), number_or_word("all")) == (0, "all")


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_scale, "much", "not a number.*style=1,layout=0.2"),
        (parse_scale, "style=1,style=2", "names 'style' twice"),
        (parse_scale, "style=x", "not a number"),
        (parse_scale, "{x", "not valid JSON"),
        (parse_scale, "[" * 100_000, "not valid JSON"),
        (parse_scale, "none.json", "cannot be read"),
        (parse_numbers, "0.7;0.3", "not a number.*0.7,0.3"),
        (parse_size, "12x", "512x768"),
        (parse_size, "1x2x3", "512x768"),
        (parse_size, "²", "512x768"),
        (parse_layout, "7", "Did you mean --guidance-scale 7?"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_texts_that_make_no_sense(parse: Callable[[str], Any], text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        parse(text)
    assert len(str(caught.value)) < 400


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"prompt": "x" * 20_001}, OptionError, "longer than 20000"),
        ({"strength": 0.5}, OptionError, "--strength without --init-image: has no effect"),
        ({"library": 7}, OptionError, "not the path of a folder"),
        ({"guidance": [{}]}, OptionError, "branches are"),
        ({"subtract_text": "x" * 300}, OptionError, "longer than 200"),
        ({"framing": "fold"}, OptionError, "fold"),
        ({"mask": []}, OptionError, "the list is empty"),
        ({"weights": [1.0]}, OptionError, "1 weight.s. for 2 reference"),
        ({"scale": 3}, ScaleError, r"scale.*3"),
        ({"style": "ink"}, OptionError, "--reference and --style: cannot be combined"),
        ({"also": [Reference()]}, PictureError, "--also without a reference"),
        ({"also": ["b.png"]}, OptionError, "not a list of Reference"),
        ({"also": [Reference(reference="a")] * 16}, OptionError, "17 references.* more than 16"),
        ({"reference": None, "preset": "style"}, PictureError, "--preset without a reference"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_is_refused_before_any_file_is_opened(
    change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    arguments = {"reference": ["no-such-a.png", "no-such-b.png"], **change}
    with pytest.raises(kind, match=words) as caught:
        generate(**arguments)
    assert "\n" not in str(caught.value)


def test_the_limits_hold_for_written_recipes_too(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that `repeat` would not accept is refused before anything is denoised."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.scheduler.register_to_config(odd=10**9)
    monkeypatch.setattr(pipe.unet, "forward", None)
    with pytest.raises(OptionError, match="scheduler: not a number from -100000 to 100000"):
        generate("a star", scale=0, base=pipe, steps=2, progress=False)


# ── once ────────────────────────────────────────────────────────────────────────────────────────


def test_each_check_runs_once_and_each_file_is_read_once(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(name: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def counted(*arguments: Any, **options: Any) -> Any:
            if name != "controls" or arguments[0] is None:  # else they are made already
                calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, attribute, counted)

    count("options", EncodeOptions, "of")
    count("controls", Controls, "of")
    count("recipe", recipes.recipe, "validate_recipe")
    count("reference", Reference, "check")
    opened: list[str] = []
    stream = open_image._stream
    monkeypatch.setattr(
        open_image, "_stream", lambda source, label: opened.append(label) or stream(source, label)
    )
    for name in ("a", "b"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
    generate(
        "a star",
        [tmp_path / "a.png", tmp_path / "b.png"],
        framing="pad",
        mask=Image.new("L", (16, 16), 255),
        steps=1,
        num_images=3,
        batch_size=2,
        progress=False,
    )
    assert sorted(calls) == ["controls", "options", "recipe", "reference"]
    assert len(opened) == 2


MODULES = """
import json, sys
from imageprompt import cli
base, output, *runs = sys.argv[1:]
for flags in runs:
    command = ["generate", "--steps", "1", "--output", output, "--base", base]
    assert cli.main([*command, *json.loads(flags)]) == 0
    print("loaded:", *(name for name in sys.modules if name.startswith("imageprompt")))
"""


def test_a_run_loads_only_what_it_needs(tiny_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    out = tmp_path / "out"
    runs = [["--reference", str(tmp_path / "a.png")], ["--recipe", str(out / "0001.png")]]
    done = forked.run(MODULES, str(tiny_folder), str(out), *map(json.dumps, runs))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found, replayed = (set(line.split()) for line in lines if line.startswith("loaded:"))
    assert 20 < len(found - {"loaded:"}) <= 96
    unneeded = ("library", "training", "evaluation", "demo", "generation.replay")
    unneeded += ("generation.start_images", "loading.controlnet", "loading.recipe.reading")
    assert not {name for name in found for one in unneeded if name.startswith(f"imageprompt.{one}")}
    assert "imageprompt.generation.replay" in replayed


def test_reprs() -> None:
    assert repr(ip.Reference(reference="a.png", scale=0.5)) == (
        "Reference(reference='a.png', scale=0.5)"
    )
    assert repr(ip.Reference()) == "Reference()"
