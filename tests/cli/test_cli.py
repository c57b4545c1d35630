"""The command: help without torch, commands loaded one by one, recipes, exit codes, quiet ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import forked
import imageprompt as ip
from imageprompt import cli
from imageprompt.cli import tables

HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub", "pydantic")


@pytest.fixture
def reference(tmp_path: Path) -> str:
    path = tmp_path / "reference.png"
    Image.new("RGB", (20, 16), "red").save(path)
    return str(path)


# ── help ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert re.search(r"examples:\n  .*imageprompt", text)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_command_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert capsys.readouterr().out == alone
    for name, (_, help_) in cli.COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(help_)}$", alone, re.MULTILINE)


def test_a_command_imports_only_its_own_module() -> None:
    """And of the help of all commands, none loads anything heavy."""
    code = (
        "import sys\n"
        "from imageprompt.cli import COMMANDS, main\n"
        "own = {f'imageprompt.cli.{module}' for module, _ in COMMANDS.values()}\n"
        "def loaded(): return own & set(sys.modules)\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not loaded(), loaded()\n"
        "for name, (module, _) in COMMANDS.items():\n"
        "    for other in loaded(): del sys.modules[other]\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "    extra = {'imageprompt.cli.' + module} ^ loaded()\n"
        "    assert not extra, (name, extra)\n"
        f"sys.exit([name for name in {HEAVY} if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_arguments_load_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from imageprompt.cli import main\n"
        "for arguments in (['generate', '--size', 'x'], ['generate', '--siez', '64']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        f"sys.exit([name for name in {HEAVY} if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, imageprompt; sys.exit([n for n in {HEAVY} if n in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    """In modules, Python's own included: they are what the time goes into, about 0.06 s."""
    code = (
        "import sys\n"
        "from imageprompt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert int(done.stderr) <= 130


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"imageprompt {ip.__version__}\n"


def test_public_names_are_there() -> None:
    assert callable(ip.generate)
    assert dir(ip) == ip.__all__ == sorted(ip.__all__)
    assert all(getattr(ip, name) is not None for name in ip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        ip.generat  # noqa: B018


def test_the_bundled_stack_is_a_public_name() -> None:
    code = (
        "import imageprompt as ip\n"
        "from imageprompt import bundled\n"
        "assert bundled is ip.bundled\n"
        "print(ip.bundled.folder(), ip.bundled.adapter('plus'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    folder, adapter = done.stdout.split()
    assert (Path(folder) / "model_index.json").is_file()
    assert Path(adapter) == Path(folder) / "adapters" / "plus.safetensors"


# ── generate ────────────────────────────────────────────────────────────────────────────────────


def test_generate_and_its_recipe(
    tiny_bundled: Path, tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--reference", reference, "--prompt", "a star", "--scale", "0.7", "--seed", "3"]
    arguments += ["--num-images", "2", "--steps", "2", "--size", "32x16", "--guidance-scale", "2"]
    arguments += ["--negative-prompt", "blue", "--adapter", "base", "--output", str(out)]
    assert cli.main(["generate", *arguments]) == 0
    paths = [out / "0001.png", out / "0002.png"]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(path) for path in paths]
    assert printed.err == ""
    Path(reference).unlink()
    assert cli.main(["generate", "--recipe", str(paths[1]), "--output", str(out), "--json"]) == 0
    (repeated,) = json.loads(capsys.readouterr().out)["pictures"]
    assert repeated["path"] == str(out / "0003.png")
    pictures = [Image.open(path) for path in (paths[1], out / "0003.png")]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert pictures[0].info["imageprompt"] == pictures[1].info["imageprompt"]
    expected = {"prompt": "a star", "seed": 3, "index": 1, "num_images": 2, "steps": 2}
    expected |= {"width": 32, "height": 16, "guidance_scale": 2.0, "negative_prompt": "blue"}
    assert repeated["recipe"] | expected == repeated["recipe"]
    (entry,) = repeated["recipe"]["references"]
    assert entry["pictures"][0]["name"] == reference
    assert entry["controls"]["scale"] == 0.7


def test_several_references_and_a_changed_recipe(
    tiny_bundled: Path, tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    two = ["--reference", reference, "--reference", reference]
    assert cli.main(["generate", *two, "--steps", "1", "--output", out, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["pictures"][0]
    assert len(first["recipe"]["references"][0]["pictures"]) == 2
    changed = ["--recipe", first["path"], "--scale", "0.1", "--output", out, "--json"]
    assert cli.main(["generate", *changed]) == 0
    second = json.loads(capsys.readouterr().out)["pictures"][0]["recipe"]
    controls = second["references"][0]["controls"]
    assert controls["scale"] == 0.1
    controls["scale"] = 0.8
    assert second == first["recipe"]


def test_a_saved_image_prompt_takes_the_place_of_references(
    tiny_bundled: Path, tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ip.generate(reference=reference, steps=1, progress=False)
    assert made.image_prompt is not None
    made.image_prompt.save(tmp_path / "p.safetensors")
    arguments = ["--image-prompt", str(tmp_path / "p.safetensors"), "--steps", "1"]
    assert cli.main(["generate", *arguments, "--output", str(tmp_path / "out")]) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.tobytes() == made.images[0].tobytes()


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(
    tiny_bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moving = tmp_path / "moving.png"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    arguments = ["--reference", str(moving), "--steps", "1", "--output", str(tmp_path / "out")]
    assert cli.main(["generate", *arguments]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imageprompt: warning: picture")
    assert "2 frames" in line


# ── tables and doctor ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("hosts", ["sd15", "sdxl", "2048"]),
        ("variants", ["base", "plus", "hidden_states"]),
        ("presets", ["style transfer", "boost"]),
    ],
)
def test_tables(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 0
    table = capsys.readouterr().out
    for word in words:
        assert word in table
    assert cli.main([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(table.splitlines()) - 2


def test_doctor(tiny_bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("everything works\n")
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["self-test"]["picture"] == "16x16"
    assert report["bundled stack"]["adapters"] == ["base", "plus"]
    assert "cpu" in report["devices"]
    assert report["versions"]["imageprompt"]


def test_doctor_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from imageprompt.core import bundled

    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "core" / "bundled.py"))
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert "make bundled-stack" in report["self-test"]["error"]


# ── ends ────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_that_leaves_is_not_an_error() -> None:
    command = f"{sys.executable} -m imageprompt variants | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_an_interruption_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "_variants", interrupted)
    assert cli.main(["variants"]) == 130
    assert capsys.readouterr().err == "imageprompt: interrupted\n"


def test_control_c_while_an_object_is_deleted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deleted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # Python raises KeyboardInterrupt here, and drops it

    finished = []

    def work(_: Any) -> int:
        Deleted()
        for _ in range(6000):
            time.sleep(0.01)
        finished.append(True)
        return 0

    monkeypatch.setattr(tables, "_variants", work)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main() replaces it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's workers ignore it
    try:
        assert cli.main(["variants"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert not finished
    assert capsys.readouterr().err == "imageprompt: interrupted\n"


def test_control_c_while_working(tiny_folder: Path, tmp_path: Path, reference: str) -> None:
    out = tmp_path / "out"
    code = "import sys; from imageprompt.cli import main; sys.exit(main())"
    flags = ["--reference", reference, "--base", str(tiny_folder), "--output", str(out)]
    program = forked.Program(code, "generate", *flags, "--num-images", "100000")
    deadline = time.monotonic() + 120
    while not list(out.glob("[0-9]*.png")):  # one is done, the next has begun
        assert program.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(program.process.pid or 0, signal.SIGINT)
    done = program.wait()
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    kept = sorted(out.glob("*"))
    told = [Path(line) for line in done.stdout.splitlines()]
    assert told in (kept, kept[:-1])  # Ctrl-C may come between a picture and its line
    for path in kept:  # whole pictures, each with its recipe
        with Image.open(path) as picture:
            picture.load()
            assert "imageprompt" in picture.info
