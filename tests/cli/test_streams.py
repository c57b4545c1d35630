"""Processes with odd streams and signals: one line, the documented exit code, no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imageprompt import cli

PYTHON = f"{sys.executable} -m imageprompt"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["hosts", "hosts --json", "--help", "completion bash"])
def test_a_full_disk_as_stdout(command: str, unbuffered: str) -> None:
    done = shell(f"{PYTHON} {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr == (
        "imageprompt: error: No space left on device. Free some space, or write to another disk.\n"
    )


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2> /dev/full", 0),
        ("> /dev/full 2> /dev/full", 2),
        ("> /dev/full 2>&-", 2),
    ],
)
def test_closed_and_full_streams(streams: str, code: int) -> None:
    done = shell(f"{PYTHON} hosts {streams}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "2> /dev/full"])
def test_an_error_on_a_closed_or_full_stream(streams: str) -> None:
    assert shell(f"{PYTHON} inspect /nosuchfile {streams}").returncode == 2
    assert shell(f"{PYTHON} nosuchcommand {streams}").returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["variants", "--help", "completion zsh"])
def test_a_reader_that_has_left(command: str, unbuffered: str) -> None:
    line = f"{{ sleep .3; {PYTHON} {command}; echo $? >&2; }} | true"
    done = shell(line, PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == "141\n"


def test_both_streams_into_a_reader_that_has_left() -> None:
    done = shell(f"{{ sleep .3; {PYTHON} inspect /nosuchfile 2>&1; echo $? >&3; }} 3>&2 | true")
    assert done.stderr == "141\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_names_that_the_encoding_lacks(environment: dict[str, str], tmp_path: Path) -> None:
    """Bytes that are no text, an accent and a character of four bytes, in both streams."""
    name = b"caf\xc3\xa9 \xf0\x9f\x8d\x93 \xff.png"
    (tmp_path / os.fsdecode(name)).write_bytes(b"no picture")
    for command, code in (("check", 1), ("check --json", 1), ("inspect", 2)):
        done = shell(f"cd '{tmp_path}'; {PYTHON} {command} *.png", **environment)
        assert done.returncode == code
        printed = f"{done.stdout}{done.stderr}"
        assert "Traceback" not in printed
        assert "xff" in printed or "udcff" in printed
        assert len(printed.splitlines()) == 1 or "--json" in command


@pytest.mark.parametrize("moment", [0, 10, 100, 400, 800])
def test_interrupted_at_any_moment(moment: int) -> None:
    """While modules are imported, too: Ctrl-C comes as `doctor` imports its module of this number,
    of about 1,000."""
    code = (
        "import os, signal, sys; from imageprompt import cli; run = cli._run\n"
        # a shell starts what is in the background with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "left = [int(sys.argv[1])]\n"
        "def on_event(event, _):\n"
        "    if event != 'import': return\n"
        "    left[0] -= 1\n"
        "    if left[0] == -1: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli._run = lambda arguments: sys.addaudithook(on_event) or run(arguments)\n"
        "sys.exit(cli.main(['doctor', '--quick']))"
    )
    command = [sys.executable, "-c", code, str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "imageprompt: interrupted\n"


def test_a_deleted_current_folder(tmp_path: Path) -> None:
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; {PYTHON} hosts")
    assert done.returncode == 0
    done = shell(
        f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; {PYTHON} generate --prompt a"
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written to" in done.stderr


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """An unknown number, as in many containers."""
    line = f"unset HOME XDG_DATA_HOME; {PYTHON} library list"
    if os.geteuid() == 0:
        code = (
            "import os, sys; os.environ.pop('HOME', None); os.environ.pop('XDG_DATA_HOME', None)\n"
            "from imageprompt.cli import COMMANDS, command_parser, main\n"
            "import imageprompt.cli.library, imageprompt.library, locale\n"
            "os.setuid(4242)\n"
            "sys.exit(main(['library', 'list']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    else:
        done = shell(line)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "home folder" in done.stderr


# ── what is documented ──────────────────────────────────────────────────────────────────────────


def test_exit_codes_are_in_the_help_and_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    help_ = capsys.readouterr().out
    docs = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
    codes = re.findall(r"^    (\d+) ", help_, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) ", docs, re.MULTILINE)
    assert list(map(int, codes)) == [
        0,
        1,
        cli.FAILED,
        cli.INTERRUPTED,
        cli.BROKEN_PIPE,
        cli.TERMINATED,
    ]
    assert "IMAGEPROMPT_TRACEBACK" in docs


def test_a_traceback_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", "/nosuchfile"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("IMAGEPROMPT_TRACEBACK", "1")
    assert cli.main(["inspect", "/nosuchfile"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("imageprompt: error: ")
