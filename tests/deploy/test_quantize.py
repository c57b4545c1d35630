"""quantize: fewer bits, calibrated with image prompts in use; the runner reads what it writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.deploy.quantize import calibration, run
from imageprompt.deploy.quantize.backends import QUANTIZERS, NotQuantizable
from imageprompt.deploy.quantize.run import quantize
from imageprompt.generation.exported.manifest import DENOISER, Manifest
from imageprompt.generation.exported.open import Exported
from tiny_stack import save_stack

openvino = pytest.importorskip("openvino", reason="needs the extra deploy")
pytest.importorskip("nncf", reason="needs the extra deploy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack with the smallest denoiser as an exported base: it is compiled a dozen times."""
    from imageprompt.deploy.export import export

    base = save_stack(tmp_path_factory.mktemp("stack") / "base", one_layer=True)
    folder = tmp_path_factory.mktemp("exported") / "full"
    export(base, base / "adapters" / "plus.safetensors", to="openvino", output=folder, parts=())
    return folder


def pictures(folder: Path, count: int) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = draw.integers(0, 255, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24), 0).save(folder / f"{number}.png")
    return folder


def test_w8a8_by_the_command(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Calibrated with prompts in use at all timesteps; the folder is read like any other."""
    kept: list[dict[str, Any]] = []
    real = calibration.record

    def recorded(*arguments: Any) -> Any:
        kept.extend(real(*arguments))
        return kept

    monkeypatch.setattr(run, "record", recorded)
    monkeypatch.setattr(calibration, "CALLS", 8)  # one of each reference
    output = tmp_path / "fast"
    export, _, command, generate = commands(DOCS / "quantize.md")
    assert export == ["export", "--to", "openvino", "--output", "exported"]
    assert generate[:5] == ["generate", "--runtime", "openvino", "--exported", "fast"]
    shutil.copytree(exported, tmp_path / "exported")
    pictures(tmp_path / "pictures", 16)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--pictures", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["precision"] == "w8a8"
    weights = [(folder / "denoiser.bin").stat().st_size for folder in (output, exported)]
    assert weights[0] < 0.9 * weights[1]  # its norms and biases are as large as its weights
    assert found["bytes"] > weights[0]
    assert found["calibrated_with"] == len(kept) >= calibration.LEAST
    assert 0 < found["error"] < 0.5
    assert found["psnr"] > 15
    # with image prompts in use, at many timesteps and scales
    assert len({float(call["timestep"][0]) for call in kept}) == calibration.STEPS
    assert all(call["key_0"].abs().sum() > 0 for call in kept)
    assert {round(float(call["scales"].max()), 3) for call in kept} == {*calibration.SCALES}
    manifest = Manifest.read(output)
    manifest.check_files(output)
    before = Manifest.read(exported)
    assert manifest == replace(
        before, precision="w8a8", parts=manifest.parts, parity=manifest.parity
    )
    loaded = Exported.of("openvino", output).load(
        before.base.name, Path(str(before.base.name)), dtype=None, device=None, bars=False
    )
    assert loaded.pipe("a star", num_inference_steps=1, output_type="np").images.shape[0] == 1
    with pytest.raises(OptionError, match="in w8a8 already"):
        quantize(output, to="int8", output=tmp_path / "again")


def test_weights_alone_are_not_calibrated(exported: Path, tmp_path: Path) -> None:
    found = quantize(exported, to="int8", output=tmp_path / "int8", pictures=0)
    with pytest.warns(UserWarning, match="scenes are drawn, unlike what this base generates"):
        quantize(exported, to="int8", output=tmp_path / "shown", pictures=1)
    assert found.calibrated_with == 0
    assert found.bytes < found.bytes_before
    assert 0 < found.error < 0.3
    assert found.psnr is None
    assert "rms difference" in str(found)
    assert Manifest.read(tmp_path / "int8").parts[DENOISER].inputs
    source, target = exported / "denoiser.xml", tmp_path / "int4.xml"
    with pytest.raises(NotQuantizable, match="group size"):  # these layers are too narrow
        QUANTIZERS["openvino"].write(source, target, "int4", [])
    assert not target.exists()


def test_bad_options(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = pictures(tmp_path / "few", 6)
    with pytest.raises(OptionError, match="3 references to calibrate with"):
        quantize(exported, to="w8a8", output=tmp_path / "out", references=few)
    with pytest.raises(OptionError, match="holds other files"):
        quantize(exported, to="int8", output=few)
    manifest = Manifest.read(exported)
    for change, words in (
        ({"backend": "onnx", "runtime": "onnxruntime"}, "precision 'w8a8' with onnx"),
        ({"backend": "pt2", "runtime": "pt2"}, "nothing here quantises"),
    ):
        folder = tmp_path / str(change["backend"])
        folder.mkdir()
        replace(manifest, **change).write(folder)
        with pytest.raises(OptionError, match=words):
            quantize(folder, to="w8a8", output=tmp_path / "out")
    assert cli.main(["quantize", str(few), "--to", "int8", "--output", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no exported base" in line
    assert not (tmp_path / "out").exists()
