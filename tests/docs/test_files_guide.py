"""docs/files.md: its commands run, and its tables name every layout and finding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guides import DOCS, ROOT, blocks, commands, pages
from hostile import header, write
from imageprompt import cli
from imageprompt.checkpoint.formats import FORMATS
from published import PUBLISHED
from trainers import SAVERS, SITES, wrapper

PAGE = DOCS / "files.md"
GUIDE = PAGE.read_text("utf-8")
COMMANDS = commands(PAGE)
CONVERTING = [command for command in COMMANDS if command[0] == "convert"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the guide has: the output of a training, a base and an encoder."""
    from transformers import CLIPVisionConfig

    root = tmp_path_factory.mktemp("guide")
    SAVERS["accelerate_now"](wrapper("sd15", "base"), root / "output" / "checkpoint-2000")
    SITES["sd15"].unet().save_pretrained(root / "base" / "unet")
    CLIPVisionConfig(
        hidden_size=16, projection_dim=20, num_attention_heads=1, num_hidden_layers=1
    ).save_pretrained(root / "image_encoder")
    return root


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 8
    assert {command[0] for command in COMMANDS} == {"inspect", "convert", "diff", "validate"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if command[0] != "convert" and not Path("adapter.safetensors").exists():
        cli.main(CONVERTING[0])
    if command[0] == "convert":
        Path(command[2]).unlink(missing_ok=True)  # convert does not overwrite
    assert cli.main(command) == 0


def test_named_layouts_exist() -> None:
    named = set(re.findall(r"--to ([a-z-]+)", GUIDE))
    assert named == {"bin"} | {layout.name for layout in FORMATS if layout.writable} - {"standard"}


def test_every_finding_is_explained() -> None:
    """Every code in the sources has a row, and every row a code."""
    sources = "".join(p.read_text() for p in (ROOT / "src/imageprompt/checkpoint").rglob("*.py"))
    codes = set(re.findall(r'(?:Problem|_counted|_problem)\(\s*"([a-z-]+)"', sources))
    table = GUIDE.split("| finding |")[1].split("\n\n")[0]
    explained = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\|[^|]*\|", table, re.M))))
    assert explained == codes


def test_the_report_in_the_guide_is_that_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a sparse file of the published shapes; the guide shows the start of the hash."""
    monkeypatch.chdir(tmp_path)
    write(Path("unknown.safetensors"), header(PUBLISHED["ip-adapter-plus_sd15"].shapes()))
    assert cli.main(["inspect", "unknown.safetensors"]) == 0
    printed = re.sub(r"(sha256-ends:\w{8})\w+", r"\1...", capsys.readouterr().out)
    (shown,) = blocks(PAGE, "text")
    assert shown == f"$ imageprompt inspect unknown.safetensors\n{printed}"


def test_scripts_that_are_named_exist() -> None:
    """Of benchmarks and of dev, on every page."""
    for page in pages():
        text = page.read_text("utf-8")
        for name in re.findall(r"(?:python |`)((?:benchmarks|dev)/\w+\.\w+)", text):
            assert (ROOT / name).is_file(), (page, name)
