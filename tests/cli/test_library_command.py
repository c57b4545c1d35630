"""imageprompt library: what its commands print and refuse; the commands of docs/library.md."""

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
    """The current folder: some pictures, an empty library, a fast stack."""
    for name, colour in (("vase", "blue"), ("plate", "navy"), ("street", "grey")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEPROMPT_LIBRARY", str(tmp_path / "library"))
    return tmp_path


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `imageprompt library ...` and returns its JSON."""

    def run(*arguments: str) -> Any:
        assert cli.main(["library", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The only line of a failing `imageprompt library ...`."""
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


def test_the_guide_names_what_is_in_a_file(folder: Path, run_json: Any) -> None:
    style = run_json("add", "one", "vase.png")
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


def test_what_needs_no_torch_loads_none(folder: Path, run_json: Any) -> None:
    run_json("add", "one", "vase.png", "--tag", "blue")
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


def test_json_of_every_job(folder: Path, run_json: Any) -> None:
    added = run_json(
        "add", "one", "vase.png", "plate.png", "--weights", "1,0.5", "--framing", "pad"
    )
    assert added["recipe"] == {"weights": "1, 0.5", "framing": "pad", "base": "bundled"}
    assert (added["adapter"]["name"], added["encoder"]["name"]) == ("plus", "bundled/image_encoder")
    run_json("add", "two", "street.png", "--noise", "0.3", "--negative-reference", "vase.png")
    assert [style["name"] for style in run_json("list")] == ["one", "two"]
    assert run_json("show", "one") == added
    found = run_json("search", "street.png")
    assert (found["found"][0]["style"], found["found"][0]["by"]) == ("two", "picture")
    mixed = run_json("mix", "one", "two:3", "--as", "both")
    assert mixed["recipe"]["mix"] == {"one": 0.25, "two": 0.75}
    assert mixed["recipe"]["of"] == "features"
    assert run_json("export", "one", "one.safetensors") == {"path": "one.safetensors"}
    assert run_json("import", "one.safetensors", "--force")["hash"] == added["hash"]
    assert run_json("remove", "one", "both") == {"removed": ["one", "both"]}


@pytest.mark.filterwarnings("default:mixed by tokens")
def test_a_mix_of_tokens_is_a_warning(
    folder: Path, run_json: Any, capsys: pytest.CaptureFixture[str], tiny_bundled: Path
) -> None:
    here = tiny_bundled / "adapters" / "base.safetensors"
    moved = folder / "moved.safetensors"
    moved.write_bytes(here.read_bytes())
    for name in ("vase", "plate"):
        run_json("add", name, f"{name}.png", "--adapter", str(moved))
    moved.unlink()
    assert cli.main(["library", "mix", "vase", "plate", "--as", "both"]) == 0
    printed = capsys.readouterr()
    assert "mix 0.5 vase + 0.5 plate, of tokens" in printed.out
    assert "warning: mixed by tokens: their adapter cannot be found\n" in printed.err
    assert (
        run_json("mix", "vase", "plate", "--as", "c", "--adapter", "base")["recipe"]["of"]
        == "features"
    )


WRONG = [
    (("show", "nothing"), "style 'nothing': not in .*library add NAME PICTURE"),
    (("add", "a/b", "vase.png"), "a file name cannot contain /"),
    (("add", "a"), "no reference picture: .*--face-embeddings"),
    (("add", "a", "nothing.png"), "no such file"),
    (("add", "a", "vase.png", "--weights", "1,2"), r"2 weight\(s\) for 1"),
    (("add", "a", "vase.png", "--framing", "fold"), "framing|fold"),
    (("add", "a", "vase.png", "--fusion", "blend"), "blend"),
    (("add", "a", "vase.png", "--adapter", "nothing"), "no such path"),
    (("add", "a", "vase.png", "--faces", "pack"), "a face encoder for a plus adapter"),
    (("add", "a", "vase.png", "--tag", "a,b"), "without commas"),
    (("import", "vase.png"), "not a style file: it is not a safetensors file"),
    (("export", "nothing", "x.safetensors"), "style 'nothing': not in"),
    (("mix", "a:0.5", "b:0.5", "--as", "c"), "style 'a': not in"),
    (("mix", "a:1", "a:2", "--as", "c"), "one is named twice"),
    (("search", "blue", "--text-encoder", "nowhere"), "nowhere"),
    (("search", "blue", "--limit", "0"), "limit 0: not a whole number above 0"),
    (("remove", "nothing"), "style 'nothing': not in"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_wrong_arguments(
    arguments: tuple[str, ...], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(says, failed(capsys, *arguments))
    assert Library().names() == []


def test_sheets_and_thumbnails_are_pictures(
    folder: Path, run_json: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json("add", "one", "vase.png")
    assert "not .png or .jpg" in failed(capsys, "list", "--sheet", "sheet.gif")
    assert "folder does not exist" in failed(capsys, "show", "one", "--thumbnail", "no/x.png")


def test_an_empty_library_is_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["library", "list", "--sheet", "sheet.png"]) == 0
    assert "no styles in" in capsys.readouterr().out
    assert cli.main(["library", "search", "anything"]) == 0
    assert "0 found" in capsys.readouterr().out
    assert not (folder / "library").exists()
    assert not (folder / "sheet.png").exists()
