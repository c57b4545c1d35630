"""Saving: pictures are written as they finish, numbers are claimed, interrupts lose nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.generation import GenerationResult, generate, repeat, result
from imageprompt.loading.recipe import read_picture

QUICK: dict[str, Any] = {"scale": 0, "steps": 2, "progress": False}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Let the pipeline raise KeyboardInterrupt instead of the batch after so many."""
    from diffusers import StableDiffusionPipeline

    calls: list[int] = []
    original = StableDiffusionPipeline.__call__

    def interrupted(pipe: Any, prompt: Any = None, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return original(pipe, prompt, **options)

    interrupted.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", interrupted)


# ── as they finish ──────────────────────────────────────────────────────────────────────────────


def test_each_picture_is_handed_over_as_soon_as_its_batch_is_done(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = result.write_picture

    def written(path: Path, *arguments: Any, **options: Any) -> None:
        events.append(path.name)
        original(path, *arguments, **options)

    monkeypatch.setattr(result, "write_picture", written)
    made = generate(
        "a star",
        num_images=5,
        batch_size=2,
        on_image=lambda one: one.save(tmp_path),
        on_progress=lambda what, done, total: events.append(what) if done % 2 == 0 else None,
        **QUICK,
    )
    names = [name for name in events if name.endswith(".png")]
    assert names == [f"000{i}.png" for i in range(1, 6)]
    assert events.index("0002.png") < events.index("pictures 3-4 of 5") < events.index("0003.png")
    for i, path in enumerate(sorted(tmp_path.iterdir())):
        assert Image.open(path).convert("RGB").tobytes() == made[i].tobytes()
        assert read_picture(path)[0] == made.recipes[i]


def test_an_interrupt_keeps_what_is_done(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        generate("", num_images=6, batch_size=2, on_image=lambda one: one.save(tmp_path), **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001.png", "0002.png"]
    assert read_picture(tmp_path / "0002.png")[0].index == 1


def test_an_interrupted_command_keeps_and_names_what_is_done(
    tiny_bundled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_after(monkeypatch, 2)
    flags = ["--num-images", "5", "--batch-size", "2", "--steps", "1", "--scale", "0"]
    assert cli.main(["generate", *flags, "--output", str(tmp_path / "out")]) == 130
    saved = sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(saved) == 4
    assert capsys.readouterr().out.split() == saved


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────

SAVE = """
import sys
from PIL import Image
from imageprompt.generation import GenerationResult
from imageprompt.loading.recipe import read_picture
recipe, _ = read_picture(sys.argv[1])
image = Image.open(sys.argv[1]).convert("RGB")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(6):
    print(*GenerationResult([image], [recipe]).save(sys.argv[2]))
"""


def test_several_processes_in_one_folder_lose_nothing(tiny_bundled: Path, tmp_path: Path) -> None:
    (source,) = generate("a star", **QUICK).save(tmp_path / "source")
    target = tmp_path / "shared"
    script = [sys.executable, "-c", SAVE, str(source), str(target)]
    processes = [
        subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    paths = sorted(path for output in outputs for path in output)
    assert paths == [str(target / f"{i:04d}.png") for i in range(1, 25)]
    assert sorted(map(str, target.iterdir())) == paths
    for path in paths:
        with Image.open(path) as image:
            image.load()
        read_picture(path)


def test_a_number_that_another_process_took_meanwhile_is_passed_over(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate("a star", **QUICK)
    (tmp_path / "0001.png").write_bytes(b"another's")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # not there yet when it looked
    assert [path.name for path in made.save(tmp_path)] == ["0002.png"]
    assert (tmp_path / "0001.png").read_bytes() == b"another's"


def test_a_failed_write_leaves_no_file(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate("a star", **QUICK)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        made.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_an_output_that_cannot_be_written_is_found_before_loading(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from imageprompt import loading

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(loading, "load_base", load)
    (tmp_path / "file").write_text("not a folder")
    flags = ["--scale", "0", "--output", str(tmp_path / name)]
    assert cli.main(["generate", *flags]) == 2
    assert "output folder" in capsys.readouterr().err


# ── progress ────────────────────────────────────────────────────────────────────────────────────


def test_progress_counts_steps_of_all_pictures(tiny_bundled: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    options = {**QUICK, "num_images": 3, "batch_size": 2}
    generate("", on_progress=lambda *call: calls.append(call), **options)
    names = ["pictures 1-2 of 3"] * 3 + ["picture 3 of 3"] * 3
    assert calls == list(zip(names, (1, 2, 2, 3, 4, 4), (4,) * 6, strict=True))


def test_reporting_changes_no_bit(tiny_bundled: Path) -> None:
    plain = generate("a star", num_images=2, **QUICK)
    watched = generate("a star", num_images=2, on_progress=lambda *_: None, **QUICK)
    assert [image.tobytes() for image in watched] == [image.tobytes() for image in plain]


def test_a_replay_counts_its_own_pictures(tiny_bundled: Path, tmp_path: Path) -> None:
    path = generate("", num_images=3, batch_size=2, **QUICK).save(tmp_path)[1]
    seen: set[str] = set()
    repeat(path, progress=False, on_progress=lambda what, *_: seen.add(what))
    assert seen == {"picture 1 of 1"}


def test_progress_is_one_bar(tiny_bundled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    generate("", num_images=3, batch_size=1, **{**QUICK, "progress": True})
    shown = capfd.readouterr().err
    assert "picture 3 of 3: 100%" in shown
    assert "6/6" in shown
    assert shown.count("\n") == 1


# ── the result ──────────────────────────────────────────────────────────────────────────────────


def test_a_result_is_a_sequence_of_pictures(tiny_bundled: Path) -> None:
    made = generate("a star", num_images=2, seed=7, **QUICK)
    assert len(made) == 2
    assert list(made) == made.images == [made[0], made[1]]
    assert made[-1] is made.images[1]
    assert made[:1] == made.images[:1]
    assert repr(made) == "GenerationResult(2 pictures of 16x16, seeds 7 to 8)"
    one = GenerationResult(made[1:], made.recipes[1:])
    assert repr(one) == "GenerationResult(1 picture of 16x16, seed 8)"
    assert repr(GenerationResult([], [])) == "GenerationResult(no pictures)"


def test_notebooks_show_the_pictures(tiny_bundled: Path, decode: Callable[[str], Any]) -> None:
    made = generate("a star", num_images=2, **QUICK)
    shown = decode(made._repr_html_())
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in made]


@pytest.fixture
def decode() -> Callable[[str], Any]:
    """The pictures in HTML."""
    import base64
    import io
    import re

    def read(html: str) -> list[Image.Image]:
        found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]

    return read


def test_a_folder_that_is_a_file_is_refused(tiny_bundled: Path, tmp_path: Path) -> None:
    made: ip.GenerationResult = generate("", **QUICK)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="output folder"):
        made.save(tmp_path / "file")
