"""A test runs every command and snippet of README.md and docs/; here those of smaller pages."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guides import DOCS, ROOT, all_blocks, blocks, commands, pages, run
from imageprompt import cli, loading
from imageprompt.core import bundled
from imageprompt.demo import scenes

# Page -> the test that runs its blocks. A page with blocks that is not here fails a test below.
RUN_BY = {
    "README.md": "tests/docs/test_readme.py",
    "CONTRIBUTING.md": "tests/docs/test_readme.py",
    "docs/batch.md": "tests/serve/test_batch.py",
    "docs/clients.md": "tests/serve/test_openai.py",
    "docs/compress.md": "tests/deploy/test_compress.py",
    "docs/control.md": "tests/docs/test_control_guide.py",
    "docs/deployment.md": "tests/docs/test_deployment.py",
    "docs/dual.md": "tests/generation/test_dual.py",
    "docs/faces.md": "tests/docs/test_faces_guide.py",
    "docs/http-api.md": "tests/serve/test_guide.py",
    "docs/fewer-steps.md": "tests/docs/test_guides.py",
    "docs/files.md": "tests/docs/test_files_guide.py",
    "docs/library.md": "tests/cli/test_library_command.py",
    "docs/migrate/diffusers.md": "tests/docs/test_guides.py",
    "docs/export.md": "tests/deploy/test_export.py",
    "docs/evaluation.md": "tests/docs/test_evaluation_guide.py",
    "docs/migrate/tencent.md": "tests/docs/test_guides.py",
    "docs/pipelines.md": "tests/adapter/test_pipelines.py",
    "docs/plan.md": "tests/docs/test_guides.py",
    "docs/quantize.md": "tests/deploy/test_quantize.py",
    "docs/rating.md": "tests/docs/test_rating_guide.py",
    "docs/stable-diffusion-cpp.md": "tests/checkpoint/test_stable_diffusion_cpp.py",
    "docs/start.md": "tests/docs/test_guides.py",
    "docs/training-data.md": "tests/docs/test_training_data_guide.py",
    "docs/training.md": "tests/docs/test_guides.py",
    "docs/transformers.md": "tests/hosts/test_flux.py",
    "docs/workflows.md": "tests/docs/test_workflow_guides.py",
    "docs/workflows/colourise.md": "tests/docs/test_workflow_guides.py",
    "docs/workflows/concept.md": "tests/workflows/test_concept.py",
    "docs/workflows/people.md": "tests/workflows/test_people.py",
    "docs/workflows/product.md": "tests/docs/test_workflow_guides.py",
    "docs/workflows/replace.md": "tests/docs/test_workflow_guides.py",
    "docs/workflows/restore-ct.md": "tests/workflows/test_restore_ct.py",
    "docs/workflows/restyle.md": "tests/docs/test_workflow_guides.py",
    "docs/workflows/tune-style.md": "tests/workflows/test_tune_style.py",
    "docs/workflows/variations.md": "tests/docs/test_workflow_guides.py",
}
SHORT = ("--set", "steps=2", "--set", "warm_start_steps=10", "--set", "checkpoint_every=1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the guides is: two pictures, and the bundled stack in two steps."""
    for name, index in (("a", 1), ("b", 4)):
        scene = next(s for i, s in enumerate(scenes.stream("test")) if i == index)
        scenes.draw(scene).save(tmp_path / f"{name}.png")
    shutil.copy(DOCS / "reference.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundled, "STEPS", 2)
    monkeypatch.setattr(loading, "load_base", functools.cache(loading.load_base))
    return tmp_path


def test_every_page_with_commands_has_a_test_that_runs_them() -> None:
    found = {
        page.relative_to(ROOT).as_posix()
        for page in pages()
        if any(block.language in ("sh", "python") for block in all_blocks(page))
    }
    assert found == set(RUN_BY)
    for page, test in RUN_BY.items():
        stem = Path(page).stem
        text = (ROOT / test).read_text("utf-8")
        assert stem in text or "pipelines_table" in text, (page, test)


def test_start(folder: Path) -> None:
    steps = commands(DOCS / "start.md")
    assert [command[0] for command in steps] == ["doctor", "demo", "generate", "generate"]
    for command in steps:
        extra = ["--quick"] if command[0] == "doctor" else []
        assert cli.main([*command, *extra]) == 0, command
    first, again = (Image.open(folder / name / "0001.png") for name in ("out", "again"))
    assert np.array_equal(first, again)
    names: dict[str, Any] = {}
    for snippet in blocks(DOCS / "start.md", "python"):
        exec(compile(snippet, "docs/start.md", "exec"), names)
    assert [len(one) for one in names["results"]] == [1, 1]


def test_fewer_steps(folder: Path) -> None:
    for number, command in enumerate(commands(DOCS / "fewer-steps.md")):
        extra = ["--steps", "2", "--output", f"out-{number}"]
        assert cli.main([*command, *extra]) == 0, command
        assert (folder / f"out-{number}" / "0001.png").is_file()


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "".join(blocks(DOCS / "plan.md", "text")).splitlines()
    for command in commands(DOCS / "plan.md"):
        assert cli.main(command) == 0, command
    printed = capsys.readouterr().out.splitlines()
    assert all(line in printed for line in shown if "..." not in line)


def test_training(folder: Path) -> None:
    """The commands in their order, with a run of two steps; launchers are only compared."""
    text = "".join(blocks(DOCS / "training.md", "sh"))
    steps = commands(DOCS / "training.md")
    assert [command[0] for command in steps] == [
        "demo",
        "train",
        "train",
        "train",
        "train",
        "inspect",
        "train",
    ]
    for command in steps:
        if command[0] == "demo":
            command = [*command, "--num-scenes", "24"]
        elif command[0] == "train" and ">" not in command:
            command = [*command, *SHORT]
        assert run(command) == 0, command
    launched = [line for line in text.splitlines() if "-m imageprompt" in line]
    assert len(launched) == 2
    assert all(line.endswith("-m imageprompt train config.yaml") for line in launched)
    examples = {path.stem for path in (ROOT / "src/imageprompt/training/examples").glob("*.yaml")}
    page = (DOCS / "training.md").read_text("utf-8")
    assert all(f"`{name}`" in page or f"--example {name}" in page for name in examples)


@pytest.mark.parametrize("page", ["migrate/diffusers", "migrate/tencent"])
def test_migration(page: str, folder: Path) -> None:
    (snippet,) = blocks(DOCS / f"{page}.md", "python")
    exec(compile(snippet, page, "exec"), {})


def test_library_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet of docs/library.md, with the bundled pipeline and adapter under its names."""
    from diffusers import StableDiffusionPipeline

    shutil.copy(bundled.adapter("plus"), "ip-adapter-plus.safetensors")
    shutil.copytree(bundled.folder() / "image_encoder", "image_encoder")
    for name in ("vase.png", "plate.png", "photo.jpg"):
        Image.open("a.png").save(name)
    pipe = StableDiffusionPipeline.from_pretrained(bundled.folder())
    pipe.set_progress_bar_config(disable=True)
    (snippet,) = blocks(DOCS / "library.md", "python")
    before = "library.mix("
    added = 'library.add("film", adapter, ["b.png"])\n'
    names: dict[str, Any] = {"pipe": _Short(pipe)}
    exec(compile(snippet.replace(before, added + before), "docs/library.md", "exec"), names)
    assert names["image"].size == (64, 64)
    assert names["hit"].style.name


class _Short:
    """A pipeline that samples in two steps; everything else is the pipeline's own."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._pipe(*arguments, num_inference_steps=2, **options)


@pytest.mark.parametrize(
    "command",
    [
        c
        for name in ("start", "migrate/tencent")
        for c in commands(DOCS / f"{name}.md", needs_downloads=True)
    ],
    ids=" ".join,
)
def test_flags_of_commands_that_need_downloads(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command[0], "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in command if word.startswith("--"))
