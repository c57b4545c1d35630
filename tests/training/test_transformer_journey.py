"""The commands with every host that is a transformer: train, look at it, generate with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imageprompt import cli
from imageprompt.core import bundled
from whole_pipelines import HOSTS, SIZE, SIZES, open_pipeline, small_only

CONFIG = """
base: {base}
encoder: {encoder}
variant: plus
tokens: 2
depth: 1
heads: 1
width: 8
data: {data}
cache: {cache}
output: {output}
resolution: {resolution}
steps: 2
batch_size: 2
learning_rate: 1e-2
validate_every: {validate_every}
validation: {{references: {data}, count: 2, steps: 2}}
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(3)
    for number in range(3):
        pixels = draw.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red star")
    return folder


@pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:the base makes pictures of",  # HiDream's are of one area
)
@pytest.mark.sample(5)
@pytest.mark.parametrize("name", HOSTS)
def test_an_adapter_of_every_host(
    name: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe = open_pipeline(name)
    small_only(monkeypatch, pipe)
    base, output = tmp_path / "base", tmp_path / "run"
    pipe.save_pretrained(base)
    width, height = (256, 256) if name == "hidream" else SIZES.get(name, SIZE)
    encoder = bundled.folder() / "image_encoder"
    config = tmp_path / "config.yaml"
    config.write_text(
        CONFIG.format(
            base=base,
            encoder=encoder,
            data=pictures,
            cache=tmp_path / "cache",
            output=output,
            resolution=32 if name == "hidream" else width,
            validate_every=0 if name == "wan" else 2,  # generate makes no videos
        )
    )
    if name == "wan":
        assert cli.main(["train", str(config), "--set", "validate_every=2"]) == 2
        assert "not a text-to-image pipeline" in capsys.readouterr().err
    assert cli.main(["train", str(config)]) == 0
    adapter = output / "adapter.safetensors"
    assert cli.main(["validate", str(adapter)]) == 0
    if name == "wan":
        return
    assert len(list(output.rglob("*.png"))) >= 1
    command = ["generate", "--base", str(base), "--adapter", str(adapter), "--steps", "2"]
    command += ["--encoder", str(encoder), "--reference", str(pictures / "0.png")]
    command += ["--prompt", "a star", "--size", f"{width}x{height}", "--output", str(tmp_path)]
    assert cli.main(command) == 0
    with Image.open(next(tmp_path.glob("*.png"))) as made:
        assert made.size == (width, height)
