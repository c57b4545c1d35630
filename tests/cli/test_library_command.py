"""imageprompt library: what its commands print and refuse; docs/library.md keeps its word."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imageprompt import cli
from imageprompt.library import Library
from imageprompt.library.style_file import KIND

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for line in "".join(BLOCKS).splitlines()]
JOBS = ("add", "list", "show", "search", "mix", "export", "import", "remove")


@pytest.fixture
def folder(tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the guide is: some pictures, an empty library, a stack that is fast."""
    for name, colour in (("vase", "blue"), ("plate", "navy"), ("street", "grey")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEPROMPT_LIBRARY", str(tmp_path / "library"))
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `imageprompt library ...` and returns its JSON."""

    def run(*arguments: str) -> Any:
        assert cli.main(["library", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `imageprompt library ...` ends in."""
    assert cli.main(["library", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("imageprompt: error: ")


def test_the_guides_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = set()
    for command in COMMANDS:
        assert cli.main(command) == 0, command
        used.add(command[1] if command[0] == "library" else command[0])
        assert capsys.readouterr().out
    assert used == {*JOBS, "generate"}
    assert Library().names() == ["faded", "film", "porcelain"]
    with Image.open("styles.png") as sheet, Image.open("porcelain.png") as small:
        assert sheet.width > small.width == 256
    assert [path.name for path in (folder / "outputs").iterdir()] == ["0001.png"]


def test_the_guide_names_what_is_in_a_file(folder: Path, said: Any) -> None:
    style = said("add", "one", "vase.png")
    table = GUIDE.split("| tensor |")[1].split("\n\n")[0]
    assert set(style["tensors"]) <= set(re.findall(r"`([a-z_]+)`", table))
    assert KIND == "image-style"


@pytest.mark.parametrize("job", ["", *JOBS])
def test_help_has_examples(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["library", *job.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  imageprompt library {job}".rstrip() in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_what_needs_no_torch_loads_none(folder: Path, said: Any) -> None:
    said("add", "one", "vase.png", "--tag", "blue")
    commands = (
        ["list", "--sheet", "a.png"],
        ["list", "--tag", "blue", "--json"],
        ["show", "one", "--thumbnail", "b.png"],
        ["search", "blue"],
        ["export", "one", "c.safetensors"],
        ["import", "c.safetensors", "--as", "two"],
        ["remove", "one"],
    )
    code = (
        "import sys\nfrom imageprompt.cli import main\n"
        f"codes = [main(['library', *command]) for command in {commands}]\n"
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Library().names() == ["two"]


def test_json_of_every_job(folder: Path, said: Any) -> None:
    added = said("add", "one", "vase.png", "plate.png", "--weights", "1,0.5", "--framing", "pad")
    assert added["recipe"] == {"weights": "1, 0.5", "framing": "pad", "base": "bundled"}
    assert (added["adapter"]["name"], added["encoder"]["name"]) == ("plus", "bundled/image_encoder")
    said("add", "two", "street.png", "--noise", "0.3", "--negative-reference", "vase.png")
    assert [style["name"] for style in said("list")] == ["one", "two"]
    assert said("show", "one") == added
    found = said("search", "street.png")
    assert (found["found"][0]["style"], found["found"][0]["by"]) == ("two", "picture")
    mixed = said("mix", "one", "two:3", "--as", "both")
    assert mixed["recipe"]["mix"] == {"one": 0.25, "two": 0.75}
    assert mixed["recipe"]["of"] == "features"
    assert said("export", "one", "one.safetensors") == {"path": "one.safetensors"}
    assert said("import", "one.safetensors", "--force")["hash"] == added["hash"]
    assert said("remove", "one", "both") == {"removed": ["one", "both"]}


@pytest.mark.filterwarnings("default:mixed by tokens")
def test_a_mix_of_tokens_is_told(
    folder: Path, said: Any, capsys: pytest.CaptureFixture[str], tiny_bundled: Path
) -> None:
    here = tiny_bundled / "adapters" / "base.safetensors"
    moved = folder / "moved.safetensors"
    moved.write_bytes(here.read_bytes())
    for name in ("vase", "plate"):
        said("add", name, f"{name}.png", "--adapter", str(moved))
    moved.unlink()
    assert cli.main(["library", "mix", "vase", "plate", "--as", "both"]) == 0
    shown = capsys.readouterr()
    assert "mix 0.5 vase + 0.5 plate, of tokens" in shown.out
    assert "warning: mixed by tokens: their adapter is not at hand\n" in shown.err
    assert (
        said("mix", "vase", "plate", "--as", "c", "--adapter", "base")["recipe"]["of"] == "features"
    )


WRONG = [
    (("show", "nothing"), "style 'nothing': it is not in .*library add NAME PICTURE"),
    (("add", "a/b", "vase.png"), "cannot have / in it"),
    (("add", "a"), "no reference picture: .*--face-embeddings"),
    (("add", "a", "nothing.png"), "no such file"),
    (("add", "a", "vase.png", "--weights", "1,2"), r"2 weight\(s\) for 1"),
    (("add", "a", "vase.png", "--framing", "fold"), "framing|fold"),
    (("add", "a", "vase.png", "--fusion", "blend"), "blend"),
    (("add", "a", "vase.png", "--adapter", "nothing"), "no such path"),
    (("add", "a", "vase.png", "--faces", "pack"), "a face encoder for a plus adapter"),
    (("add", "a", "vase.png", "--tag", "a,b"), "without commas"),
    (("import", "vase.png"), "not a style file: it is a picture"),
    (("export", "nothing", "x.safetensors"), "is not in"),
    (("mix", "a:0.5", "b:0.5", "--as", "c"), "style 'a': it is not in"),
    (("mix", "a:1", "a:2", "--as", "c"), "one of them is named twice"),
    (("search", "blue", "--text-encoder", "nowhere"), "nowhere"),
    (("search", "blue", "--limit", "0"), "limit 0: a whole number above 0"),
    (("remove", "nothing"), "is not in"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_makes_no_sense(
    arguments: tuple[str, ...], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(says, failed(capsys, *arguments))
    assert Library().names() == []


def test_a_sheet_is_a_picture(folder: Path, said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said("add", "one", "vase.png")
    assert "it ends in .png or .jpg" in failed(capsys, "list", "--sheet", "sheet.gif")
    assert "it ends in .png or .jpg" in failed(capsys, "show", "one", "--thumbnail", "no/x.png")


def test_an_empty_library_is_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["library", "list", "--sheet", "sheet.png"]) == 0
    assert "no styles in" in capsys.readouterr().out
    assert cli.main(["library", "search", "anything"]) == 0
    assert "0 found" in capsys.readouterr().out
    assert not (folder / "library").exists()
    assert not (folder / "sheet.png").exists()
