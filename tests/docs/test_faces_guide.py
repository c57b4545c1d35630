"""docs/faces.md: its commands and Python run, with a stand-in for insightface."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import imageprompt as ip
from face_finder import embedding, install, picture
from guides import DOCS, blocks, commands
from imageprompt import cli
from imageprompt.variants import VARIANTS, site_shapes
from tiny_stack import make_pipeline

PAGE = DOCS / "faces.md"
GUIDE = PAGE.read_text("utf-8")
COMMANDS = commands(PAGE)
PYTHON = blocks(PAGE, "python")


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a reader of the guide has: a base, an encoder, adapter files, a model pack, pictures."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained("base")
    pipe.image_encoder.save_pretrained("image_encoder")
    files = {"faceid-plusv2": "faceid-plus-v2", "faceid-portrait": "portrait"}
    for name, variant in files.items():
        encoder = pipe.image_encoder if "plus" in name else None
        adapter = ip.Adapter.create(variant, denoiser=pipe.unet, encoder=encoder)
        adapter.save(Path(f"ip-adapter-{name}_sd15.bin"))
    Path("packs/buffalo_l").mkdir(parents=True)
    Path("packs/buffalo_l/w600k_r50.onnx").write_bytes(b"weights")
    picture(red=(10, 10, 30, 40), blue=(50, 20, 90, 70)).save("group.jpg", "PNG")
    picture(red=(10, 10, 60, 70)).save("me.jpg", "PNG")  # JPEG would tint the face
    from safetensors.numpy import save_file

    save_file({"face": embedding("blue") / 20}, "her.safetensors")
    return pipe


def test_commands_and_snippets(pipe: Any) -> None:
    names = [command[0] for command in COMMANDS]
    assert names == ["faces", "faces", "generate", "generate", "convert"]
    for command in COMMANDS:
        assert cli.main(command) == 0
    assert len(list(Path("outputs").glob("*.png"))) == 2
    assert ip.Adapter.load("face.safetensors").spec.variant == "faceid-plus-v2"
    names_in_scope: dict[str, Any] = {"pipe": pipe}
    assert len(PYTHON) == 2
    for block in PYTHON:
        exec(block, names_in_scope)
    assert len(names_in_scope["pictures"]) == 2
    assert not names_in_scope["adapter"].attached


def test_the_table_is_that_of_the_variants() -> None:
    rows = re.findall(r"^\| (`.+?) \|(.+?)\|(.+?)\|(.+?)\|", GUIDE, re.M)
    in_guide = {
        name: (tokens.strip(), lora.strip())
        for names, _, tokens, lora in rows
        for name in re.findall(r"`([a-z0-9-]+)`", names)
    }
    in_code = {variant.name for variant in VARIANTS if variant.feature.reads_faces}
    assert set(in_guide) == in_code
    from imageprompt.checkpoint.identify.published import PUBLISHED

    for one in PUBLISHED:
        if one.variant in in_guide:
            shapes = site_shapes(one.architecture, one.host_spec, one.projector)
            has_lora = "yes" if any("_lora." in name for name in shapes) else "no"
            assert in_guide[one.variant] == (str(one.projector.tokens), has_lora)
