"""What a study says to its reader in sentences, in the command and on the page."""

from __future__ import annotations

import json
from pathlib import Path

from imageprompt.evaluation.conclusions import command_of, conclusions
from imageprompt.evaluation.report import write_report
from imageprompt.evaluation.settings import settings_of
from imageprompt.evaluation.study.results import STUDY, read_results
from studies import line, sweep, write_study


def test_best_scales_and_the_better_adapter(tmp_path: Path) -> None:
    results = read_results(write_study(tmp_path, [*sweep()]))
    better = "plus is better at dino"
    assert conclusions(results) == [
        "base: the best balance of likeness and text is at scale 0.5",
        "plus: the best balance of likeness and text is at scale 0.5",
        "base and plus: " + "; ".join(f"at scale {s}, {better}" for s in (0.25, 0.5, 0.75, 1)),
    ]


def test_few_prompts_cannot_show_which_is_better(tmp_path: Path) -> None:
    found = conclusions(read_results(write_study(tmp_path, [*sweep(prompts=6)])))
    assert found[-1] == "base and plus: 6 prompts cannot show which is better; use 7 or more"
    seven = conclusions(read_results(write_study(tmp_path, [*sweep(prompts=7)])))
    assert "plus is better at dino" in seven[-1]


def test_a_difference_that_may_be_chance(tmp_path: Path) -> None:
    same = [*sweep({"base": 0.0, "plus": 0.0})]
    found = conclusions(read_results(write_study(tmp_path, same)))
    assert found[-1].endswith("no scale tells them apart; the differences may be chance")


def test_no_axes_and_few_scales(tmp_path: Path) -> None:
    lines = [line(scale=s, prompt=f"p{n}", dino=n, clip_t=n) for s in (0.5, 1) for n in range(5)]
    few = conclusions(read_results(write_study(tmp_path / "few", lines)))
    assert few == ["plus: too few scales for a best balance"]
    assert conclusions(read_results(write_study(tmp_path / "one", lines[:5]))) == []
    for one in lines:
        del one["metrics"]["clip-t"]
    assert conclusions(read_results(write_study(tmp_path / "none", lines))) == []


def test_the_page_says_how_to_use_what_was_found(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [*sweep(prompts=7, seeds=1)])
    plus = next(one for one in settings_of(read_results(folder)) if one.adapter == "plus")
    assert command_of(read_results(folder), plus) is None  # the study does not say its files
    stated = json.loads((folder / STUDY).read_text())
    stated["adapters"] = [{"name": "base"}, {"name": "plus"}]
    files = [{"adapter": "base"}, {"adapter": "my plus.safetensors", "preset": "style"}]
    stated["config"] |= {"adapters": files, "base": "sd15"}
    (folder / STUDY).write_text(json.dumps(stated))
    results = read_results(folder)
    assert command_of(results, plus) == (
        "imageprompt generate --reference PICTURE --prompt TEXT --base sd15 "
        "--adapter 'my plus.safetensors' --preset style --scale 0.25"
    )
    page = write_report(folder).read_text(encoding="utf-8")
    assert "To use it: <code>imageprompt generate --reference PICTURE" in page
    assert "<p>base and plus: at scale 0.25, plus is better at dino;" in page
