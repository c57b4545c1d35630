"""A folder that holds an adapter works wherever a file does; several adapters are an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_convert import source

import imageprompt as ip
from imageprompt import cli
from imageprompt.checkpoint.read.open import locate_adapter, locate_source
from imageprompt.core import bundled
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError
from imageprompt.loading.adapter import find_adapter
from trainers import SAVERS, wrapper

ENCODER = {"vision_model.embeddings.class_embedding": torch.zeros(4)}


def plain(folder: Path, file: Path) -> Path:
    """One adapter file, and files that are not weights."""
    shutil.copy(file, folder / "my adapter.safetensors")
    (folder / "readme.md").write_text("mine")
    return folder / "my adapter.safetensors"


def published(folder: Path, file: Path) -> Path:
    """As repositories lay it out for diffusers: a subfolder, with an image encoder beside it."""
    (folder / "models" / "image_encoder").mkdir(parents=True)
    save_file(ENCODER, folder / "models" / "image_encoder" / "model.safetensors")
    shutil.copy(file, folder / "models" / "ip-adapter.safetensors")
    return folder / "models" / "ip-adapter.safetensors"


def encoder_beside(folder: Path, file: Path) -> Path:
    """The adapter's folder and its encoder's side by side."""
    for name in ("image_encoder", "ip_adapter"):
        (folder / name).mkdir()
    save_file(ENCODER, folder / "image_encoder" / "model.safetensors")
    shutil.copy(file, folder / "ip_adapter" / "a.safetensors")
    return folder / "ip_adapter" / "a.safetensors"


def trained(folder: Path, file: Path) -> Path:
    """A finished training of this project."""
    for step in (100, 200):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        shutil.copy(file, folder / "checkpoints" / f"step-{step}" / "adapter.safetensors")
    shutil.copy(file, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def checkpoint(folder: Path, file: Path) -> Path:
    """One of its checkpoints, with the state of the run."""
    shutil.copy(file, folder / "adapter.safetensors")
    torch.save({"x": torch.ones(1)}, folder / "optimizer.bin")
    return folder / "adapter.safetensors"


FOLDERS = (plain, published, encoder_beside, trained, checkpoint)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_folder_works_wherever_a_file_does(
    layout: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(layout)
    folder, target = tmp_path / "folder", tmp_path / "out.safetensors"
    folder.mkdir()
    adapter = bundled.adapter("plus")
    file = layout(folder, adapter)
    for command in (
        ["inspect", folder],
        ["validate", folder, "--base", "bundled"],
        ["convert", folder, target],
        ["diff", folder, adapter],
        ["diff", target, folder],
    ):
        assert cli.main([str(word) for word in command]) == 0
    assert ip.inspect(folder).files == (str(file),)
    assert locate_adapter(folder) == locate_adapter(str(folder)) == file
    assert find_adapter(folder, None, cached_only=True).path == file
    assert find_adapter(str(folder), None, cached_only=True).name == str(file)
    loaded = ip.Adapter.load(folder).module.state_dict()
    reference = ip.Adapter.load(adapter).module.state_dict()
    assert loaded.keys() == reference.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in reference.items())


def test_several_adapters_are_named_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for name in ("one.safetensors", "two.bin"):
        source(tmp_path).rename(folder / "deeper" / name)
    names = r"2 weight files \(deeper/one\.safetensors, deeper/two\.bin\)\. Name one"
    for call in (ip.inspect, ip.Adapter.load, locate_adapter):
        with pytest.raises(AdapterFileError, match=names):
            call(folder)
    assert cli.main(["convert", str(folder), str(tmp_path / "out.safetensors")]) == 2
    assert "Name one" in capsys.readouterr().err
    with pytest.raises(AdapterFileError, match=r"\(one\.safetensors, two\.bin\)"):
        locate_adapter(folder / "deeper")


def test_a_pipeline_names_the_adapters_in_it() -> None:
    with pytest.raises(AdapterFileError, match=r"pipeline .*base\.safetensors.*plus\.safetensors"):
        locate_adapter(bundled.folder())


def test_what_was_chosen_among_several_is_said(tmp_path: Path) -> None:
    for step in (100, 200):
        (tmp_path / f"step-{step}").mkdir()
        source(tmp_path).rename(tmp_path / f"step-{step}" / "adapter.safetensors")
    with pytest.warns(UserWarning, match="reading step-200, the newest of 2 checkpoints"):
        assert locate_adapter(tmp_path) == tmp_path / "step-200" / "adapter.safetensors"


def test_weights_in_several_files(tmp_path: Path) -> None:
    """Loaded by Adapter.load; refused where one file has to be hashed for the recipe."""
    made = SAVERS["sharded"](wrapper("sd15", "base"), tmp_path)
    assert locate_adapter(made) == made
    assert ip.Adapter.load(made).spec.variant == "base"
    with pytest.raises(OptionError, match=r"spread over \d+ files\. Convert it first"):
        find_adapter(made, None, cached_only=True)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path / "none", "no such path", "\0", "~nobody-at-all/x"):
        with pytest.raises(NotFoundError):
            locate_source(path)
    with pytest.raises(AdapterFileError, match=r"contains no weights \(empty\)"):
        locate_adapter(tmp_path)
