"""The stack for larger scenes: plain diffusers loads it, text and references have their effect."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import imageprompt as ip
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.demo import judge_128, scenes_128, worlds

LIMIT = 22_000_000
NAME = bundled.SD3_128
COUNT, STEPS = 4, 20
SHOWN = worlds.LARGE.references(1, COUNT)


@pytest.fixture(scope="module")
def engine() -> ip.Engine:
    return ip.Engine(NAME)


def share(pictures: list[Any], expected: list[dict[str, str]]) -> float:
    """Share of the expected words that the judge reads."""
    hits = [
        read.get(name) == word
        for read, words in zip(judge_128.classify(pictures), expected, strict=True)
        for name, word in words.items()
    ]
    return sum(hits) / len(hits)


def test_its_files_are_small_and_readable() -> None:
    files = [path for path in bundled.folder(NAME).rglob("*") if path.is_file()]
    own = [path for path in files if not path.is_symlink()]
    assert sum(path.stat().st_size for path in own) <= LIMIT
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_plain_diffusers_draws_what_the_text_says_by_its_default_call() -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(bundled.folder(NAME))
    pipe.set_progress_bar_config(disable=True)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {type(part).__module__.split(".")[0] for part in models} == {"diffusers", "transformers"}
    assert {part.dtype for part in models} == {torch.float32}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the operations are too small to split
    text = "a large striped red circle at the centre on a plain blue background"
    image = pipe(text, generator=torch.Generator().manual_seed(0)).images[0]
    torch.set_num_threads(threads)
    assert image.size == (128, 128)
    (read,) = judge_128.classify([image])
    shown = ("large", "striped", "red", "circle")
    words = [read[f"first {name}"] for name in scenes_128.OBJECT_WORDS]
    assert sum(a == b for a, b in zip(words, shown, strict=True)) >= 3
    assert (read["place"], read["style"], read["background"]) == ("centre", "plain", "blue")


def test_the_judge_reads_renders() -> None:
    assert share([one.picture for one in SHOWN], [one.words for one in SHOWN]) == 1


def test_text_alone_draws_what_it_says(engine: ip.Engine) -> None:
    drawn = list(islice(scenes_128.stream("test", seed=900), 2 * COUNT))
    requests: list[Any] = [
        {"prompt": scenes_128.caption(scene), "seed": seed, "scale": 0.0, "steps": STEPS}
        for seed, scene in enumerate(drawn)
    ]
    results = engine.generate_many(requests, progress=False)
    pictures = [result.images[0] for result in results]
    assert share(pictures, [scene.words() for scene in drawn]) >= 0.85


def test_a_size_without_positions_is_refused(engine: ip.Engine) -> None:
    with pytest.raises(OptionError, match="size 144x128: this base knows positions for 128x128"):
        engine.generate("a star", scale=0, size=(144, 128))


def test_a_reference_has_its_effect(engine: ip.Engine) -> None:
    """Chance gives fewer than one word of four."""
    requests: list[Any] = [
        {"prompt": "", "seed": seed, "reference": one.picture, "scale": 1.0, "steps": STEPS}
        for seed, one in enumerate(SHOWN)
    ]
    results = engine.generate_many(requests, progress=False)
    assert share([result.images[0] for result in results], [one.words for one in SHOWN]) >= 0.8
    assert {result.recipe.guidance_scale for result in results} == {bundled.GUIDANCE_128}


def test_what_knows_small_scenes_only_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", NAME, "--count", "1"]
    assert cli.main(["evaluate", "--adapter", "plus", "--output", str(tmp_path), *flags]) == 2
    assert "drawn ones suit bundled and bundled-sd3 only" in capsys.readouterr().err
    assert cli.main(["probe", *flags]) == 2
    assert "drawn references suit bundled and bundled-sd3 only" in capsys.readouterr().err


def test_demo_text_that_says_nothing_does_not_say_one_object() -> None:
    assert worlds.LARGE.prompt == ""


def test_demo_references_contradict_in_one_word() -> None:
    for shown in worlds.LARGE.references(3, 12):
        differ = [name for name, word in shown.words.items() if shown.expected[name] != word]
        assert differ == [shown.changed]
        assert shown.expected[shown.changed] in shown.text
        assert "photographic" not in [*shown.words.values(), *shown.expected.values()]
        assert np.asarray(shown.picture).shape == (128, 128, 3)
