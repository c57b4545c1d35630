"""The benchmark scripts run from end to end, on a tiny denoiser."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import convert
import gpu
import learning
import masks
import peer
import step_time
import style
import switch
import train_estimate
import train_memory
import train_step
import train_transformer
import training_checkpoint
import training_parts
import transformer_bases
import transformer_cost
from bases import BASES, SD15, Base, fill, meta_unet
from conftest import ROOT
from hosts_table import CASES
from imageprompt import cli
from imageprompt.demo import pipeline

TINY = Base(
    name="tiny",
    config={**CASES["sd15"].config, "norm_num_groups": 4, "sample_size": 8},
    cross_attention_dim=24,
    latent=8,
)


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser, and for published files of its adapters a projector, that are small."""
    real = peer.resampler_state

    def small(gen: torch.Generator, **sizes: int) -> dict[str, torch.Tensor]:
        return real(gen, **sizes | {"width": 64, "heads": 1})

    monkeypatch.setitem(BASES, "tiny", TINY)
    monkeypatch.setattr(peer, "resampler_state", small)


def _run(
    module: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str
) -> list[dict[str, float]]:
    path = tmp_path / "rows.json"
    command = ["x", "--base", "tiny", "--variant", "base", "--quick", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", [*command, "--threads", "1", *options])
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
    rows += _run(switch, monkeypatch, tmp_path, "--library")
    assert len(rows) == 8
    assert all(row["wall"] > 0 for row in rows)


@pytest.mark.parametrize(("host", "adapter"), [("flux", "xlabs"), ("sd3", "instantx-sd3")])
def test_transformer_cost(host: str, adapter: str) -> None:
    size = transformer_bases.SIZES[host]["tiny"]
    plain, theirs, ours = transformer_cost.measure(
        host, adapter, 1, size, dtype=torch.float32, rounds=1, steps=1
    )
    assert plain["added"] == 0 < ours["added"] < theirs["added"]
    assert theirs["projector"] == 5
    assert ours["projector"] == (2 if host == "flux" else 5)  # the null picture's, once
    assert ours["ratio"] > 0


def test_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script for a GPU, on the CPU at a tiny size."""
    path = tmp_path / "rows.json"
    command = ["x", "--size", "tiny", "--device", "cpu", "--steps", "2", "--warmup", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(path)])
    gpu.main()
    text, theirs, ours, instantx = json.loads(path.read_text())["rows"]
    assert text["ratio"] == 1.0
    assert text["kept"] == 0 < theirs["kept"] < ours["kept"]  # K', V' are kept
    assert ours["kept"] < instantx["kept"]


def test_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask adds almost nothing to a layer; the bytes are counted, so the bound holds here too."""
    ours, peer = masks.measure(TINY, latent=8, rounds=1, steps=1)
    assert 0 <= ours["later"] < ours["first"] <= 0.01
    assert peer["later"] > 10 * ours["later"]
    assert ours["ratio"] > 0


@pytest.mark.slow
def test_convert(tmp_path: Path, whole: bool) -> None:
    """As a script, since it measures whole processes; in part, of a checkpoint that this process
    wrote."""
    files = convert.FILES if whole else convert.FILES[:1]
    path = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "convert.py"), "--json", str(path)]
    if whole:
        command += ["--quick", "--folder", str(tmp_path)]
    else:
        training_checkpoint.write(tmp_path / files[0], training_checkpoint.QUICK)
        command += ["--source", str(tmp_path / files[0])]
    subprocess.run(command, check=True)
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4 * len(files)
    peaks = {(row["what"], row["file"]): row["peak_mb"] for row in rows}
    for file in files:
        assert peaks["imageprompt convert", file] <= 60
        assert peaks["the README's snippet", file] > 100  # it loads torch
    if whole:  # what it wrote is gone
        assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_convert_stores_compiled_modules_apart(tmp_path: Path) -> None:
    """One round more than asked for fills the store."""
    (tmp_path / "small.py").write_text("")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import small"
    seconds, peak = convert.measured([sys.executable, "-c", script], tmp_path / "caches")
    assert seconds > 0
    assert peak > 0
    assert list((tmp_path / "caches").rglob("small.*.pyc"))


TINY_PARTS = training_parts.Parts(
    TINY,
    vae={
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    },
    text={
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    vision={**training_parts.VIT_H, "num_hidden_layers": 1, "image_size": 28},
)


def test_train_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both train, and every candidate is timed."""
    monkeypatch.setitem(training_parts.PARTS, "tiny", TINY_PARTS)
    path = tmp_path / "rows.json"
    command = ["x", "--base", "tiny", "--side", "16", "--quick", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(path)])
    train_step.main()
    rows = json.loads(path.read_text())["rows"]
    names = ["reference", "ours, no cache", "ours, cached", "encoding alone"]
    assert [row["what"] for row in rows] == names
    assert all(row["cpu"] > 0 for row in rows)
    assert "pays off after" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["reference", "ours", "ours, checkpointing"])
def test_train_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process of the benchmark does; a step changes the weights, and so the loss."""
    monkeypatch.setitem(training_parts.PARTS, "tiny", replace(TINY_PARTS, options={"depth": 4}))
    candidate = replace(train_memory.CANDIDATES[name], base="tiny", side=16)
    row = train_memory.work(candidate, 1)
    assert row["peak"] > 0
    assert all(0 < loss < 100 for loss in row["losses"])
    assert len(set(row["losses"])) == 2


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # of the plain loop's autocast
@pytest.mark.parametrize("host", ["sd3", "flux"])
def test_train_transformer(host: str) -> None:
    """What one process of the benchmark does; both learn."""
    size = train_transformer.SIZES[host]["tiny"]
    for name in ("plain loop", "ours, checkpointing, int8"):
        row = train_transformer.work(host, size, TINY_PARTS, name, 1)
        assert row["peak"] > 0
        assert all(0 < loss < 100 for loss in row["losses"])
        assert len(set(row["losses"])) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_train_estimate(checkpointing: bool) -> None:
    """What is counted on one or two blocks of a kind is what all of them take."""
    options = {"checkpointing": checkpointing, "int8": True}
    found = train_estimate.whole("tiny", 64, **options)
    size = replace(train_estimate.SIZES["flux"]["tiny"], side=4)
    assert found == train_estimate.count(replace(size, blocks=2, single=2), **options)


def _report(
    module: object,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    steps: int = 2,
) -> object:
    path = tmp_path / "report.json"
    monkeypatch.setattr(pipeline, "STEPS", steps)
    monkeypatch.setattr(sys, "argv", ["x", *options, "--json", str(path)])
    module.main()
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_learning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands run in this process, which has imported everything."""

    def command(*words: str, folder: Path) -> str:
        capsys.readouterr()
        with monkeypatch.context() as here:
            here.chdir(folder)
            assert cli.main(list(words)) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(learning, "command", command)
    monkeypatch.setattr(learning, "CHECKPOINTS", 2)
    options = ["--steps", "4", "--scenes", "24", "--references", "1"]
    options += ["--set", "warm_start_steps=10", "--set", "batch_size=4"]
    rows = _report(learning, options, monkeypatch, tmp_path, steps=8)
    assert len(rows) == 4
    assert all(0 <= row["all"] <= row["colour"] <= 1 for row in rows)


def test_a_command_of_learning_is_a_process(tmp_path: Path) -> None:
    assert learning.command("--version", folder=tmp_path).startswith("imageprompt ")
    with pytest.raises(subprocess.CalledProcessError):
        learning.command("inspect", "no-such-file", folder=tmp_path)


@pytest.mark.slow
def test_style(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--steps", "2", "--pictures", "8", "--references", "2"]
    rows = _report(style, options, monkeypatch, tmp_path)
    assert len(rows) == 4
    assert all(0 <= row["all"] <= row["colour"] <= 1 for row in rows.values())


def test_random_weights_are_realistic() -> None:
    """Random weights of the full-size denoisers: unit gain, no two layers or rows alike."""
    model = torch.nn.Sequential(torch.nn.Linear(2000, 900), torch.nn.Linear(2000, 900))
    fill(model)
    assert abs(model[0].weight.std() * 2000**0.5 - 1) < 0.05
    assert not torch.equal(model[0].weight, model[1].weight)
    assert not torch.equal(model[0].weight[0], model[0].weight[1])
    count = sum(p.numel() for p in meta_unet(SD15).parameters())
    assert count == 859_520_964  # the published UNet
