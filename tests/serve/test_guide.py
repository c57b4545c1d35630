"""The commands of docs/http-api.md, and its first two calls, with a toy worker."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from guides import DOCS, blocks, commands
from imageprompt import cli
from served import Served, drawn

PAGE = DOCS / "http-api.md"


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that make keys run here; of those that serve, the settings are checked."""
    from imageprompt.serve import server

    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEPROMPT_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setattr(server, "serve", lambda settings, *_: started.append(settings.check()))
    steps = commands(PAGE)
    for command in steps:
        assert cli.main(command) == 0, command
    assert len(steps) == 6
    assert [one.host for one in started] == ["127.0.0.1", "127.0.0.1", "0.0.0.0"]
    assert started[1].adapters == {"mine": "./mine.safetensors"}
    assert "alice" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_a_picture_in_two_calls(tmp_path: Path) -> None:
    """The two calls of the page as curl sends them; the toy worker takes no reference."""
    (text,) = (block for block in PAGE.read_text("utf-8").split("```") if "curl -O" in block)
    first, second = text.strip().replace("\\\n", " ").splitlines()
    (tmp_path / "cat.jpg").write_bytes(drawn("red", format="JPEG"))
    server = Served(tmp_path, toy=True)
    try:

        def curl(line: str) -> str:
            line = line.replace("http://127.0.0.1:8000", server.address)
            words = [*shlex.split(line), "--silent", "--fail-with-body"]
            done = subprocess.run(
                words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            return done.stdout

        refused = curl(first)  # a server without adapters says so
        assert "this server has no adapter" in refused
        job = curl(
            first.replace(
                '"references": [{"reference": "part:cat", "scale": 0.7}]',
                '"init_image": "part:cat"',
            )
        )
        name = server.ended({"id": job.split('"id":"')[1][:32]})["id"]
        curl(second.replace("JOB", name))
        assert (tmp_path / "0.png").read_bytes().startswith(b"\x89PNG")
    finally:
        server.close()


def test_no_other_block_claims_to_be_run() -> None:
    assert not blocks(PAGE, "python")
