"""Second-stage tuning: the split, the training that ends early, the figures, what is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import ImagePromptError
from imageprompt.demo import scenes
from imageprompt.workflows import WORKFLOWS
from imageprompt.workflows.job import Job
from imageprompt.workflows.tune_style import _split

tune_style = importlib.import_module("imageprompt.workflows.tune_style")
"""The module: the package has the workflow under its name."""


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domain")
    for index, scene in zip(range(14), scenes.stream("validation", seed=3), strict=False):
        scenes.draw(scene).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(scenes.caption(scene))
    return folder


def test_no_picture_is_for_two_things() -> None:
    for count in (12, 13, 50, 700):
        pictures = [Path(f"{index}.png") for index in range(count)]
        split = _split(pictures, 24)
        parts = [*split.train, *split.validation, *split.test]
        assert sorted(parts) == sorted(pictures)
        assert len(split.test) == min(24, count // 3)
        assert len(split.train) >= count / 2
        assert split.validation


def test_it_trains_and_measures(domain: Path, tiny_bundled: Path, tmp_path: Path) -> None:
    result = ip.workflows.tune_style(
        domain=domain,
        references=2,
        train_steps=8,
        steps=2,
        num_images=1,
        # the score does not change, so the second validation is the last one
        set=["batch_size=2", "patience=1", "learning_rate=1e-12"],
        progress=False,
    )
    measured, workflow = result.measured, WORKFLOWS["tune-style"]
    families = tuple(one[:-1] for one in workflow.measures if one.endswith("*"))
    assert all(one in workflow.measures or one.startswith(families) for one in measured)
    assert measured["trained_steps"] == 2
    for kind in ("domain", "general"):
        assert measured[f"{kind}_match_before"] == measured[f"{kind}_match_after"]
        assert measured[f"{kind}_match_change"] == [0, 0, 0]
        assert measured[f"{kind}_match_ceiling"] >= 0
    assert [one.label for one in result.pictures] == ["reference 0, before", "reference 0, after"]
    assert len(result.checks) == 2  # the held-out pictures
    assert measured["kept"] == 0  # nothing was gained
    assert measured["kept_general_1"] == measured["kept_domain"] == 0
    # two references each: before, after and one control to measure; before, the last adapter and
    # the best one with a control to choose among the domain's; before, the last and a control
    assert result.cost["generated"] == 2 * (2 * 2 + 1) + (3 * 2 + 1) + (2 * 2 + 1)
    assert result.cost["denoising_steps"] == 2 * result.cost["generated"]
    saved = result.save(tmp_path / "out")
    (adapter,) = saved.files
    before = load_file(tiny_bundled / "adapters" / "plus.safetensors")
    assert load_file(adapter).keys() == before.keys()
    assert ip.validate(adapter).ok


def test_the_guide(domain: Path, tiny_bundled: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(domain)
    (command,) = commands(DOCS / "workflows" / "tune-style.md")
    short = ["--train-steps", "2", "--references", "2", "--steps", "2", "--num-images", "1"]
    assert cli.main([*command, *short, "--set", "batch_size=2"]) == 0
    assert Path("tuned/0001-adapter.safetensors").is_file()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"domain": "nowhere"}, "no such folder"),
    "few pictures": ({"domain": "few"}, "1 pictures, where 12 are needed"),
    "unknown key": ({"set": ["learnin_rate=1"]}, "learnin_rate"),
    "a loaded adapter": ({"adapter": object()}, "training reads a file"),
    "few of all kinds": ({"general": "few"}, "1 pictures, where 12 are needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(
    name: str, domain: Path, tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few").mkdir()
    scenes.draw(next(scenes.stream("test"))).save("few/a.png")
    changes, message = REFUSED[name]
    with pytest.raises(ImagePromptError, match=message):
        ip.workflows.tune_style(**({"domain": domain} | changes), progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]


# ── how much of the training is kept ──────────────────────────────────────────────────────────────


def test_between_two_adapters(tiny_folder: Path, tmp_path: Path) -> None:
    before = tiny_folder / "adapters" / "plus.safetensors"
    adapter = ip.Adapter.load(before)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(1)
    tuned = tmp_path / "tuned.safetensors"
    adapter.save(tuned)
    ends = load_file(before), load_file(tuned)
    for share in (0.25, 1.0):
        path = tmp_path / f"{share}.safetensors"
        tune_style._between(str(before), tuned, share, path)
        made = load_file(path)
        assert made.keys() == ends[0].keys()
        for name, weights in made.items():
            wanted = ends[0][name] + share * (ends[1][name] - ends[0][name])
            assert np.allclose(weights, wanted, atol=1e-6)
    assert all(np.array_equal(made[name], ends[1][name]) for name in made)  # the whole is exact


@pytest.mark.parametrize(
    ("forgetting", "gain", "spread", "kept", "tried"),
    [
        (0.2, 0.3, 0.0, 1.0, 1),  # all of it
        (0.03, 0.3, 0.0, 0.5, 5),  # 0.1 s^2 = 0.03 at 0.548
        (0.03, 0.3, 0.1, 0.1875, 5),  # 0.1 s^2 + 0.1 s, its standard error, = 0.03 at 0.242
        (0.0, 0.3, 0.0, 0.0, 5),
        (0.03, -0.1, 0.0, 0.0, 5),  # nothing is gained
    ],
)
def test_what_is_kept_forgets_no_more_than_it_may(
    forgetting: float,
    gain: float,
    spread: float,
    kept: float,
    tried: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values are places: the loss grows with the square of the share, the gain with the share."""

    def measured(kind: str, share: float) -> dict[str, dict[str, float]]:
        change = gain * share if kind == "domain" else -0.1 * share**2
        ends = {"control": {"a": -2.0, "b": -2.0}, "ceiling": {"a": 0.0, "b": 0.0}}
        at = {"a": change + spread * share, "b": change - spread * share}
        return ends | {"after": {key: 2 * (0.5 + value) - 2 for key, value in at.items()}}

    def evaluate(*arguments: Any) -> tuple[str, float]:
        kind, _, name = arguments[3].name.partition("-")
        return kind, 0 if name == "before" else float(name.removeprefix("tuned-"))

    monkeypatch.setattr(tune_style, "_evaluate", evaluate)
    monkeypatch.setattr(tune_style, "_cost", lambda results: (0, 0))
    monkeypatch.setattr(tune_style, "_values", lambda results, adapters: measured(*results))
    monkeypatch.setattr(tune_style, "_between", lambda *arguments: None)
    inputs = tune_style.Inputs(domain="d", forgetting=forgetting)
    job = Job(WORKFLOWS["tune-style"], inputs, None, lambda *told: None)
    parts = {kind: tune_style.Split((), (), ()) for kind in ("domain", "general")}
    before, tuned = str(tmp_path / "before"), tmp_path / "tuned"
    found = tune_style._kept(inputs, job, "b", tmp_path, before, [tuned], parts)
    assert job.measured["kept"] == kept
    assert found == tmp_path / "kept" / f"tuned-{kept:g}.safetensors"
    assert sum(name.startswith("kept_general_") for name in job.measured) == tried
    assert job.measured["kept_general_1"] == pytest.approx(-0.1)
    assert bool(job.notes) == (kept == 0)
    del parts["general"]  # nothing says what is forgotten
    found = tune_style._kept(inputs, job, "b", tmp_path, before, [tuned], parts)
    assert job.measured["kept"] == float(gain > 0)
