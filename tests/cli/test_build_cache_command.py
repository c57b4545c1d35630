"""`imageprompt build-cache`: what it prints, leaves and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imageprompt.cli import main
from imageprompt.training.cache.build import device_of_rank
from training_data import write_folder


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", 6, broken=[3])
    path = tmp_path / "config.yaml"
    path.write_text(
        f"base: {tiny_folder}\nvariant: plus\ndata: {tmp_path / 'data'}\nresolution: 16\n"
        f"output: {tmp_path / 'out'}\ncache: {tmp_path / 'cache'}\n"
    )
    return path


def test_a_dry_run_prints_the_disk_space_and_encodes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-cache", str(config), "--dry-run"]) == 0
    printed = capsys.readouterr().err
    assert "5 image features to encode: " in printed
    assert "0.02 MB in total in" in printed
    assert not list((config.parent / "cache").glob("moments/*/*"))


def test_it_reports_what_it_did_and_what_is_broken(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-cache", str(config)]) == 0
    out = capsys.readouterr().out
    assert "pictures: 5 encoded, 0 already there" in out
    assert "003.png" in out
    assert "6 samples, 1 broken" in out
    assert main(["build-cache", str(config), "--json", "--verify"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["encoded"] == {"moments": 0, "text": 0, "features": 0}
    assert report["existing"] == {"moments": 5, "text": 4, "features": 5}
    assert report["damaged"] == []
    assert Path(report["path"]).is_file()
    assert not (config.parent / "out").exists()


def test_processes_of_one_machine_take_an_accelerator_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank() == "cuda:1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cache=null", "names no folder"),
        ("catch=x", "Did you mean 'cache'"),
        ("data=nowhere", "not a folder, and not named like a list"),
        ("data.path=x", "not a folder, and not named like a list"),
        ("data={path: x, captoin: y}", "Did you mean 'data.caption'"),
        ("views=0", "an unlimited number of random crops"),
        ("resolution=20", "multiple of 8"),
    ],
)
def test_what_it_refuses_is_one_line(
    change: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-cache", str(config), "--set", "crop=random", "--set", change]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
