"""The whole way: an example config, training, an interruption, the rest, a file that loads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import imageprompt as ip
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.demo.scenes import draw_folder
from imageprompt.training.loop.checkpoints import steps_in
from tiny_stack import SIDE, make_pipeline, make_xl_pipeline

STEPS = 8
PATIENCE = 120


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned scenes, as `imageprompt demo --draw` writes them."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    assert cli.main(["demo", "--draw", str(folder), "--count", "24"]) == 0
    return folder


@pytest.fixture
def config(
    scenes: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """tiny-base as it is written, but for a smaller base and few steps."""
    assert cli.main(["train", "--example", "tiny-base"]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    return path


def changes(scenes: Path, tiny_folder: Path, output: Path, **more: Any) -> list[str]:
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
    return ["train", str(config), *(word for one in sets for word in ("--set", one)), *flags]


def interrupted(arguments: list[str], output: Path) -> int:
    """Start the command, send SIGTERM after its first checkpoint; its exit code."""
    with subprocess.Popen([sys.executable, "-m", "imageprompt", *arguments]) as process:
        deadline = time.monotonic() + PATIENCE
        while max(steps_in(output / "checkpoints"), default=0) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE)


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_file_that_everybody_loads(
    config: Path,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    through, halves = tmp_path / "through", tmp_path / "halves"
    result = ip.train(config, changes(scenes, tiny_folder, through), progress=False)
    assert (result.adapter, result.step) == (through / "adapter.safetensors", STEPS)
    assert (result.signal, result.quarantined) == (None, ())

    # many steps, so that the signal comes before the end; the rate does not fall for that reason
    sets = changes(scenes, tiny_folder, halves, schedule="constant")
    assert interrupted(command(config, [*sets, "steps=100000"]), halves) == 128 + signal.SIGTERM
    stopped_at = steps_in(halves / "checkpoints")[0]
    assert not (halves / "adapter.safetensors").exists()

    assert cli.main(command(config, sets)) == 2
    assert "--resume" in capsys.readouterr().err
    last = [*sets, f"steps={stopped_at + 3}"]
    assert cli.main(command(config, last, "--resume")) == 2
    assert "steps: 100000 became" in capsys.readouterr().err
    assert cli.main(command(config, last, "--resume", "--allow-changes")) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(halves / "adapter.safetensors")
    assert f"going on from step {stopped_at} with changes" in said.err
    never = ip.train(
        config,
        changes(scenes, tiny_folder, tmp_path / "n", schedule="constant", steps=stopped_at + 3),
        progress=False,
    )
    ours, theirs = load_file(halves / "adapter.safetensors"), load_file(never.adapter or "")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    figures = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert [line["step"] for line in figures if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in figures if "score" in line] == [4, 8]
    assert [sheet.name for sheet in result.sheets] == ["step-4.png", "step-8.png"]
    with Image.open(result.sheets[0]) as sheet:
        assert sheet.width > 3 * SIDE
    assert result.best == through / "best.safetensors"

    assert cli.main(["inspect", str(result.adapter)]) == 0
    assert cli.main(["validate", str(result.adapter), "--base", str(tiny_folder)]) == 0
    adapter = ip.Adapter.load(result.adapter or "")
    assert adapter.spec.variant == "base"
    pipe = load(tiny_folder)
    pipe.load_ip_adapter(
        str(through), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    reference = Image.open(scenes / "held-out" / "000000.png")
    made = pipe("a", ip_adapter_image=reference, num_inference_steps=2, height=SIDE, width=SIDE)
    assert made.images[0].size == (SIDE, SIDE)


def load(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_dry_run_says_what_would_be_and_trains_nothing(
    config: Path,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = changes(scenes, tiny_folder, tmp_path / "out", cache=tmp_path / "cache", adapter="null")
    assert cli.main(command(config, sets, "--dry-run", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    adapter = ip.Adapter.create(
        "base", denoiser=load(tiny_folder).unet, encoder=load(tiny_folder).image_encoder
    )
    count = sum(weight.numel() for weight in adapter.parameters())
    assert told["trained_parameters"] == count
    assert told["trained_bytes"] == 20 * count
    assert (told["steps"], told["pictures_a_step"], told["epochs"]) == (STEPS, 3, 1)
    assert told["cache_bytes"] > 0
    assert told["activation_bytes"] > 0
    assert cli.main(command(config, sets, "--dry-run")) == 0
    assert f"{count:,} parameters" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["survey"]


@pytest.mark.parametrize(("tokens", "kept"), [(4, True), (2, False)])
def test_a_run_may_begin_with_an_adapter_of_other_tokens(
    tokens: int,
    kept: bool,
    scenes: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tiny_folder / "adapters" / "plus.safetensors"
    keys = dict(one.split("=", 1) for one in changes(scenes, tiny_folder, tmp_path / "out"))
    keys = {name: value for name, value in keys.items() if "." not in name}
    keys |= {"variant": "plus", "adapter": str(file), "tokens": tokens, "steps": 1}
    keys |= {"validate_every": 0, "learning_rate": 1e-12, "ema": 0, "trackers": []}
    result = ip.train(keys, progress=False)
    assert result.adapter is not None
    before, after = load_file(file), load_file(result.adapter)
    assert after["image_proj.latents"].shape[1] == tokens
    name = "image_proj.proj_in.weight"
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    told = "image_proj.latents made anew" in capsys.readouterr().err
    assert told is not kept


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"variant": "base", "adapter": "plus"}, "it is of variant plus"),
        ({"variant": "plus", "adapter": "plus", "depth": 3}, "Only the number of tokens"),
        ({"validate_every": 1}, "validation.references"),
        (
            {"variant": "faceid", "validate_every": 1, "validation": {"references": ["a.png"]}},
            "references of faces need identity embeddings",
        ),
    ],
)
def test_what_cannot_go_well_is_refused_before_it_begins(
    keys: dict[str, Any], words: str, scenes: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    if "adapter" in keys:
        keys = keys | {"adapter": str(tiny_folder / "adapters" / f"{keys['adapter']}.safetensors")}
    needed = {"base": str(tiny_folder), "data": str(scenes / "train"), "resolution": SIDE}
    with pytest.raises(OptionError, match=words):
        ip.train(needed | {"output": str(tmp_path / "out"), "validate_every": 0} | keys)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["faceid", "faceid-plus", "faceid-plus-v2"])
def test_faces_train_from_a_list_with_identity_embeddings(
    variant: str, scenes: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", rng.standard_normal(512).astype(np.float32))
        picture = scenes / "train" / f"{number:06}.png"
        rows.append({"image_file": str(picture), "text": "a", "id_embed_file": f"{number}.npy"})
    (tmp_path / "faces.json").write_text(json.dumps(rows))
    config: dict[str, Any] = {"base": str(tiny_folder), "variant": variant, "resolution": SIDE}
    config |= {"data": str(tmp_path / "faces.json"), "output": str(tmp_path / "out"), "steps": 4}
    config |= {"batch_size": 2, "checkpoint_every": 2, "validate_every": 2, "warmup": 0}
    config |= {"learning_rate": 1e-2, "trackers": [], "gradient_checkpointing": True}
    wishes = {"references": config["data"], "count": 2, "steps": 2}
    result = ip.train(config | {"validation": wishes}, progress=False)
    assert len(result.sheets) == 2
    assert result.adapter is not None
    assert cli.main(["validate", str(result.adapter)]) == 0
    file = load_file(result.adapter)
    ups = [name for name in file if name.endswith("to_q_lora.up.weight")]
    assert ups
    assert all(float(file[name].abs().max()) > 0 for name in ups)  # they begin as zeros
    # the newest checkpoint is lost: the rest of the way is gone again, to the same end
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-4")
    result.adapter.unlink()
    again = ip.train(config | {"validation": wishes}, resume=True, progress=False)
    assert again.adapter is not None
    assert all(torch.equal(load_file(again.adapter)[name], value) for name, value in file.items())


@pytest.fixture(scope="module")
def other_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL with sizes among its conditions, and a base that predicts v, as SD 2 does."""
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("bases")
    make_xl_pipeline().save_pretrained(folder / "xl")
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    pipe.save_pretrained(folder / "v")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:captions longer than 16 tokens")  # tiny ones know no words
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
    wishes = {"references": str(scenes / "held-out"), "count": 1, "steps": 2}
    result = ip.train(config | {"validation": wishes}, progress=False)
    assert result.adapter is not None
    assert len(result.sheets) == 1
    assert all(value.dtype == torch.float32 for value in load_file(result.adapter).values())
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines if "loss" in line)


def test_two_runs_in_one_folder(scenes: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from imageprompt.training.loop.run_control import locked

    needed = {"base": str(tiny_folder), "data": str(scenes / "train"), "output": str(tmp_path)}
    with locked(tmp_path), pytest.raises(OptionError, match="another run is training there"):
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
