"""From end to end: an example config, training, an interruption, resuming, a file that loads."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import forked
import imageprompt as ip
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.demo.datasets import draw_folder
from imageprompt.training.loop.checkpoints import steps_in
from tiny_stack import SIDE, make_pipeline, make_xl_pipeline

STEPS = 8
TIMEOUT = 120


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned scenes, as `imageprompt demo --draw` writes them."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    assert cli.main(["demo", "--draw", str(folder), "--num-scenes", "24"]) == 0
    return folder


@pytest.fixture
def config(
    scenes: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """The example tiny-base."""
    assert cli.main(["train", "--example", "tiny-base"]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    return path


def overrides(scenes: Path, tiny_folder: Path, output: Path, **more: Any) -> list[str]:
    keys = {
        "base": tiny_folder,
        "data": scenes / "train",
        "cache": scenes.parent / "cache",
        "output": output,
        "resolution": SIDE,
        "steps": STEPS,
        "batch_size": 3,
        "warm_start_steps": 10,
        "checkpoint_every": 2,
        "validate_every": 4,
        "log_every": 2,
        "validation.references": scenes / "held-out",
        "validation.count": 2,
        "validation.steps": 2,
    }
    return [f"{key}={value}" for key, value in (keys | more).items()]


def command(config: Path, sets: list[str], *flags: str) -> list[str]:
    return ["train", str(config), *(word for key in sets for word in ("--set", key)), *flags]


COUNT_MODULES = """
import pathlib, sys
from imageprompt import cli
code = cli.main(sys.argv[2:])
own = [name for name in sys.modules if name.partition(".")[0] == "imageprompt"]
pathlib.Path(sys.argv[1]).write_text("\\n".join(own))
sys.exit(code)
"""
MAX_MODULES = 131
"""Beside the metric that validation scores with: four modules."""


def interrupt(arguments: list[str], output: Path) -> int:
    """Start the command, send SIGTERM after its first checkpoint, return its exit code."""
    program = forked.Program(COUNT_MODULES, str(output.with_suffix(".modules")), *arguments)
    deadline = time.monotonic() + TIMEOUT
    while max(steps_in(output / "checkpoints"), default=0) < 2:
        assert program.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    program.process.terminate()
    code = program.wait().returncode
    check_modules(output)
    return code


def run_to_end(arguments: list[str], output: Path) -> Path:
    """Run the command in its own process; the adapter's file."""
    program = forked.Program(COUNT_MODULES, str(output.with_suffix(".modules")), *arguments)
    assert program.wait().returncode == 0
    check_modules(output)
    return output / "adapter.safetensors"


def check_modules(output: Path) -> None:
    """A training run loads only the modules that it uses."""
    modules = output.with_suffix(".modules").read_text().splitlines()
    metric = [name for name in modules if name.startswith("imageprompt.evaluation")]
    assert len(metric) <= 4
    assert len(modules) - len(metric) <= MAX_MODULES, len(modules)
    assert "imageprompt.training.cache.encode" not in modules  # the cache is filled


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_file_that_diffusers_loads(
    config: Path,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    capsys.readouterr()
    result = ip.train(config, overrides(scenes, tiny_folder, whole))
    assert (result.adapter, result.step) == (whole / "adapter.safetensors", STEPS)
    assert (result.signal, result.quarantined) == (None, ())
    lines = capsys.readouterr().err.splitlines()
    error = re.compile(
        r"warm start: caption error [\d.]+%$|warm start has not converged \(caption error \d+ %\);"
        " use more warm_start_steps$"
    )
    assert sum(bool(error.match(line)) for line in lines) == 1
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == [
        *("step 2/8", "step 4/8", "step 6/8", "step 8/8")
    ]
    score = re.compile(r"validation at step 8: score -?\d\.\d{4}, pictures in (.*)$")
    (sheet,) = (found[1] for line in lines if (found := score.match(line)))
    assert Path(sheet) == whole / "validation" / "step-8.png"

    # many steps, so that the signal comes before the end; at a constant rate the result is the same
    sets = overrides(scenes, tiny_folder, halves, schedule="constant")
    assert interrupt(command(config, [*sets, "steps=100000"]), halves) == 128 + signal.SIGTERM
    stopped_at = steps_in(halves / "checkpoints")[0]
    assert not (halves / "adapter.safetensors").exists()

    assert cli.main(command(config, sets)) == 2
    message = f"already contains a run (step {stopped_at}). Continue with --resume"
    assert message in capsys.readouterr().err
    last = [*sets, f"steps={stopped_at + 3}"]
    assert cli.main(command(config, last, "--resume")) == 0
    assert capsys.readouterr().out.strip() == str(halves / "adapter.safetensors")
    through = tmp_path / "uninterrupted"
    same = overrides(scenes, tiny_folder, through, schedule="constant", steps=stopped_at + 3)
    uninterrupted = run_to_end(command(config, same), through)
    assert (through / "validation" / "step-4.png").is_file()  # so its modules are counted as well
    ours = load_file(halves / "adapter.safetensors")
    theirs = load_file(uninterrupted)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    changed = [*last, "clip=0.5"]
    assert cli.main(command(config, changed, "--resume")) == 2
    assert "(clip: 1.0 became 0.5)" in capsys.readouterr().err
    assert cli.main(command(config, changed, "--resume", "--allow-changes")) == 0
    message = f"continuing from step {stopped_at + 3} with changes: clip: 1.0 became 0.5"
    assert message in capsys.readouterr().err

    metrics = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in metrics if "score" in line] == [4, 8]
    assert [sheet.name for sheet in result.sheets] == ["step-4.png", "step-8.png"]
    with Image.open(result.sheets[0]) as picture:
        assert picture.width > 2 * 128  # references, and one column
    assert result.best == whole / "best.safetensors"

    assert cli.main(["inspect", str(result.adapter)]) == 0
    assert cli.main(["validate", str(result.adapter), "--base", str(tiny_folder)]) == 0
    adapter = ip.Adapter.load(result.adapter or "")
    assert adapter.spec.variant == "base"
    pipe = load(tiny_folder)
    pipe.load_ip_adapter(
        str(whole), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    reference = Image.open(scenes / "held-out" / "000000.png")
    made = pipe("a", ip_adapter_image=reference, num_inference_steps=2, height=SIDE, width=SIDE)
    assert made.images[0].size == (SIDE, SIDE)


def load(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_dry_run_reports_the_plan_and_trains_nothing(
    config: Path,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = overrides(
        scenes, tiny_folder, tmp_path / "out", cache=tmp_path / "cache", adapter="null"
    )
    assert cli.main(command(config, sets, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    adapter = ip.Adapter.create(
        "base", denoiser=load(tiny_folder).unet, encoder=load(tiny_folder).image_encoder
    )
    count = sum(weight.numel() for weight in adapter.parameters())
    assert plan["trained_parameters"] == count
    assert plan["trained_bytes"] == 20 * count
    assert (plan["steps"], plan["pictures_per_step"], plan["epochs"]) == (STEPS, 3, 1)
    assert plan["cache_bytes"] > 0
    assert plan["activation_bytes"] > 0
    assert cli.main(command(config, sets, "--dry-run")) == 0
    assert f"{count:,} parameters" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["survey"]


@pytest.mark.parametrize(("tokens", "same"), [(4, True), (2, False)])
def test_a_run_may_start_from_an_adapter_with_other_tokens(
    tokens: int,
    same: bool,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tiny_folder / "adapters" / "plus.safetensors"
    keys = dict(one.split("=", 1) for one in overrides(scenes, tiny_folder, tmp_path / "out"))
    keys = {name: value for name, value in keys.items() if "." not in name}
    keys |= {"variant": "plus", "adapter": str(file), "tokens": tokens, "steps": 1}
    keys |= {"validate_every": 0, "learning_rate": 1e-12, "ema": 0, "trackers": []}
    result = ip.train(keys, progress=False)
    assert result.adapter is not None
    before, after = load_file(file), load_file(result.adapter)
    assert after["image_proj.latents"].shape[1] == tokens
    name = "image_proj.proj_in.weight"
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    initialised = "image_proj.latents initialised anew" in capsys.readouterr().err
    assert initialised is not same


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"variant": "base", "adapter": "plus"}, "the file is of variant plus"),
        ({"variant": "plus", "adapter": "plus", "depth": 3}, "Only the number of tokens"),
        ({"validate_every": 1}, "validation.references"),
        (
            {"variant": "faceid", "validate_every": 1, "validation": {"references": ["a.png"]}},
            "references of faces need identity embeddings",
        ),
    ],
)
def test_impossible_configs_are_refused_before_training(
    keys: dict[str, Any], words: str, scenes: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    if "adapter" in keys:
        keys = keys | {"adapter": str(tiny_folder / "adapters" / f"{keys['adapter']}.safetensors")}
    needed = {"base": str(tiny_folder), "data": str(scenes / "train"), "resolution": SIDE}
    with pytest.raises(OptionError, match=words):
        ip.train(needed | {"output": str(tmp_path / "out"), "validate_every": 0} | keys)


@pytest.mark.sample(3)
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["faceid", "faceid-plus", "faceid-plus-v2"])
def test_faces_train_from_a_list_with_identity_embeddings(
    variant: str, scenes: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", rng.standard_normal(512).astype(np.float32))
        name = f"{number:06}.png"
        shutil.copy(scenes / "train" / name, tmp_path)
        rows.append({"image_file": name, "text": "a", "id_embed_file": f"{number}.npy"})
    (tmp_path / "faces.json").write_text(json.dumps(rows))
    config: dict[str, Any] = {"base": str(tiny_folder), "variant": variant, "resolution": SIDE}
    config |= {"data": str(tmp_path / "faces.json"), "output": str(tmp_path / "out"), "steps": 4}
    config |= {"batch_size": 2, "checkpoint_every": 2, "validate_every": 2, "warmup": 0}
    config |= {"learning_rate": 1e-2, "trackers": [], "gradient_checkpointing": True}
    validation = {"references": config["data"], "count": 2, "steps": 2}
    result = ip.train(config | {"validation": validation}, progress=False)
    assert len(result.sheets) == 2
    assert result.adapter is not None
    assert cli.main(["validate", str(result.adapter)]) == 0
    file = load_file(result.adapter)
    ups = [name for name in file if name.endswith("to_q_lora.up.weight")]
    assert ups
    assert all(float(file[name].abs().max()) > 0 for name in ups)  # they start as zeros
    # the newest checkpoint is lost: the steps after the one before are repeated exactly
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-4")
    result.adapter.unlink()
    resumed = ip.train(config | {"validation": validation}, resume=True, progress=False)
    assert resumed.adapter is not None
    assert all(torch.equal(load_file(resumed.adapter)[name], value) for name, value in file.items())


@pytest.fixture(scope="module")
def other_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL, with sizes among its conditions, and a base that predicts v like SD 2."""
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("bases")
    make_xl_pipeline().save_pretrained(folder / "xl")
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    pipe.save_pretrained(folder / "v")
    return folder


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:captions longer than 16 tokens"
)  # the tiny tokenizer has no words
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("xl", {"mixed_precision": "bf16", "buckets": True, "online": True, "cache": "cache"}),
        ("xl", {"crop": "random", "flip": True, "accumulate": 2, "cache": "cache"}),
        ("v", {"mixed_precision": "fp16", "ema": 0, "min_snr": 5, "noise_offset": 0.05}),
    ],
)
def test_other_bases_train_and_are_validated(
    base: str, options: dict[str, Any], other_bases: Path, scenes: Path, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"base": str(other_bases / base), "variant": "plus", "tokens": 4}
    config |= {"data": str(scenes / "train"), "output": str(tmp_path / "out"), "depth": 1}
    config |= {"resolution": SIDE, "steps": 2, "batch_size": 2, "log_every": 1, "trackers": []}
    config |= {"validate_every": 2, "gradient_checkpointing": True} | options
    if "cache" in config:
        config["cache"] = str(tmp_path / config["cache"])
    validation = {"references": str(scenes / "held-out"), "count": 1, "steps": 2}
    result = ip.train(config | {"validation": validation}, progress=False)
    assert result.adapter is not None
    assert len(result.sheets) == 1
    assert all(value.dtype == torch.float32 for value in load_file(result.adapter).values())
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines if "loss" in line)


def test_two_runs_in_one_folder(scenes: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from imageprompt.training.loop.distributed import run_lock

    needed = {"base": str(tiny_folder), "data": str(scenes / "train"), "output": str(tmp_path)}
    with run_lock(tmp_path), pytest.raises(OptionError, match="another run is training there"):
        ip.train(needed)


def test_drawn_scenes_are_the_same_every_time(scenes: Path, tmp_path: Path) -> None:
    folders = draw_folder(tmp_path, 2)
    assert [folder.name for folder in folders] == ["train", "held-out"]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["000000.png", "000000.txt", "000001.png", "000001.txt"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (scenes / "train" / name).read_bytes()
    with pytest.raises(OptionError, match="count 0"):
        draw_folder(tmp_path, 0)
    assert any((tmp_path / "held-out").iterdir())


def test_pictures_with_one_caption_train_without_a_warm_start(
    scenes: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many fine-tuning sets have it; the projector must not forget pictures for the caption."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        shutil.copy(scenes / "train" / f"{number:06}.png", data)
        (data / f"{number:06}.txt").write_text("a photo")
    keys: dict[str, Any] = {"base": str(tiny_folder), "data": str(data), "resolution": SIDE}
    keys |= {"output": str(tmp_path / "out"), "steps": 2, "batch_size": 2, "trackers": []}
    result = ip.train(keys | {"warm_start": "captions", "warm_start_steps": 10})
    assert result.adapter is not None
    assert "warm start skipped: all pictures have the same caption" in capsys.readouterr().err
    without = ip.train(keys | {"output": str(tmp_path / "without")}, progress=False)
    ours, theirs = load_file(result.adapter), load_file(without.adapter or "")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
