"""Second-stage tuning: the split, the training that ends early, the figures, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import ImagePromptError
from imageprompt.demo import scenes
from imageprompt.workflows import WORKFLOWS
from imageprompt.workflows.tune_style import _split


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
    assert result.cost["generated"] == 2 * (2 * 2 + 1)  # two references, and one control
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
