"""The benchmark scripts run from end to end, on a denoiser small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import step_time
import switch
from bases import BASES, SD15, Base, fill, meta_unet
from conftest import ROOT
from hosts_table import CASES

TINY = Base(
    name="tiny",
    config={**CASES["sd15"].config, "norm_num_groups": 4, "sample_size": 8},
    text_width=24,
    latent=8,
)


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASES, "tiny", TINY)


def _run(module: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, float]]:
    path = tmp_path / "rows.json"
    command = ["x", "--base", "tiny", "--variant", "base", "--quick", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", [*command, "--threads", "1"])
    module.main()
    return json.loads(path.read_text())["rows"]


def test_step_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(step_time, monkeypatch, tmp_path)
    names = [row["what"] for row in rows]
    assert names == ["text only", "diffusers", "imageprompt", "same, scale 0"]
    assert rows[0]["ratio"] == 1.0
    assert all(row["ms"] > 0 for row in rows)
    assert "imageprompt" in capsys.readouterr().out


def test_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = _run(switch, monkeypatch, tmp_path)
    assert len(rows) == 6
    assert all(row["wall"] > 0 for row in rows)


@pytest.mark.slow
def test_convert(tmp_path: Path) -> None:
    """As a script, in processes of its own: what it measures is whole processes."""
    path = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "convert.py"), "--quick"]
    subprocess.run([*command, "--folder", str(tmp_path), "--json", str(path)], check=True)
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 8
    peaks = {(row["what"], row["file"]): row["peak_mb"] for row in rows}
    for file in ("pytorch_model.bin", "model.safetensors"):
        assert peaks["imageprompt convert", file] <= 60
        assert peaks["the README's snippet", file] > 100  # it loads torch
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_fast_weights_are_sane() -> None:
    """Random weights of the full-size denoisers: unit gain, no two layers alike, none empty."""
    model = torch.nn.Sequential(torch.nn.Linear(2000, 900), torch.nn.Linear(2000, 900))
    fill(model)
    assert abs(model[0].weight.std() * 2000**0.5 - 1) < 0.05
    assert not torch.equal(model[0].weight, model[1].weight)
    assert not torch.equal(model[0].weight[0], model[0].weight[1])
    count = sum(p.numel() for p in meta_unet(SD15).parameters())
    assert count == 859_520_964  # the published UNet
