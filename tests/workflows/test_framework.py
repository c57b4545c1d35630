"""Workflows as plug-ins: found by file and by entry point, described, run, saved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.registry import Registry
from imageprompt.core.schema import Option
from imageprompt.loading.recipe import RECIPE_KEY, WORKFLOW_KEY
from imageprompt.workflows import GROUP, WORKFLOWS, Workflow
from imageprompt.workflows.inputs import HOW, picture

NAMES = ("colourise", "product", "replace", "restyle", "variations")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of a workflow that generates nothing."""

    source: Annotated[Any, picture("a picture")]
    other: Annotated[Any, picture("another picture")] = None
    times: Annotated[int, Option("how often (default 2)", metavar="N", ge=1, le=4, group=HOW)] = 2


def steps(inputs: Inputs, job: Any) -> None:
    from imageprompt.encoding.images.open_image import open_picture

    opened = open_picture(inputs.source)
    job.show("given", opened)
    for number in range(inputs.times):
        job.report("copying", number + 1, inputs.times)
        job.add(f"copy {number}", opened, brightness=number / 7, broken=float("nan"))
    job.file("-notes.txt", lambda path: path.write_text("done"))
    job.measured["times"] = inputs.times
    job.summarise()


COPY = Workflow(
    name="copy",
    summary="the same picture again",
    inputs=Inputs,
    steps=steps,
    measures={"times": "how often"},
    references=("source", "other"),
)


@pytest.fixture
def a_picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


# ── found ───────────────────────────────────────────────────────────────────────────────────────


def test_every_workflow_describes_itself() -> None:
    assert set(NAMES) <= {one.name for one in WORKFLOWS}
    for one in WORKFLOWS:
        told = one.as_dict()
        assert told["name"] == one.name
        assert one.summary
        assert told["inputs"]
        assert told["measures"]
        names = [each["name"] for each in told["inputs"]]
        assert set(one.references) <= set(names)
        assert len(set(names)) == len(names)
        assert all(each["help"] and each["flag"].startswith("--") for each in told["inputs"])
        json.dumps(told)


def test_a_workflow_is_an_attribute_whatever_was_imported_before() -> None:
    import_module("imageprompt.workflows.restyle")
    assert isinstance(ip.workflows.restyle, Workflow)
    assert "Inputs" in vars(sys.modules["imageprompt.workflows.restyle"])
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ip.workflows.nonsense


def test_other_packages_offer_workflows_as_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, found: Any) -> None:
            self.name, self.value, self._found = name, f"package:{name}", found

        def load(self) -> Any:
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    offered = [
        Entry("copy", COPY),
        Entry("restyle", Workflow(**{**vars(COPY), "name": "restyle"})),
        Entry("other", COPY),
        Entry("gone", ImportError("no module named gone")),
    ]

    def entry_points(*, group: str) -> list[Entry]:
        assert group == GROUP
        return offered

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    registry: Registry[Workflow] = Registry("imageprompt.workflows", "WORKFLOW", group=GROUP)
    assert registry.get("copy") is COPY
    assert "gone" in registry.names()
    with pytest.warns(UserWarning, match="plug-in") as told:
        found = {one.name: one for one in registry}
    assert found["copy"] is COPY
    assert found["restyle"] is WORKFLOWS["restyle"]
    assert {"other", "gone"}.isdisjoint(found)
    texts = [str(one.message) for one in told]
    assert len(texts) == 3
    assert any("the name 'restyle' is taken" in text for text in texts)
    assert any("it is named 'copy'" in text for text in texts)
    assert any("no module named gone" in text for text in texts)


def test_listing_them_loads_no_models() -> None:
    script = (
        "import sys; from imageprompt import cli; cli.main(['workflow', 'list', '--json']); "
        "assert not {'torch', 'diffusers', 'transformers', 'pydantic'} & sys.modules.keys(), "
        "sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert set(NAMES) <= {row["name"] for row in rows}
    assert all({"name", "inputs", "measures"} <= row.keys() for row in rows)


# ── inputs ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "without --source: it must be given"),
        ({"source": "a.png", "tmes": 3}, "Did you mean times?"),
        ({"source": "a.png", "times": 9}, "times: must be between 1 and 4|between 1 and 4"),
        ({"source": "a.png", "times": "many"}, "times"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        COPY(progress=False, **inputs)


def test_references_are_opened_and_checked_first(a_picture: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError):
        COPY(progress=False, source=tmp_path / "none.png")
    with pytest.raises(OptionError, match="are the same picture, where two are needed"):
        COPY(progress=False, source=a_picture, other=Image.open(a_picture))
    result = COPY(progress=False, source=a_picture)
    assert [one["width"] for one in result.checks] == [64]


# ── results ─────────────────────────────────────────────────────────────────────────────────────


def test_a_result_is_saved_with_its_record(a_picture: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = COPY(source=a_picture, times=2, on_progress=lambda *told: seen.append(told))
    assert seen == [("copy: copying", 1, 2), ("copy: copying", 2, 2)]
    assert result.measured == {"times": 2, "brightness": 0.0714, "broken": None}
    assert result.cost["generated"] == 0
    saved = result.save(tmp_path / "out")
    again = result.save(tmp_path / "out")
    assert [path.name for path in saved.pictures] == ["0001.png", "0002.png"]
    assert [path.name for path in again.pictures] == ["0003.png", "0004.png"]
    assert {path.name for path in tmp_path.joinpath("out").iterdir()} == {
        *("0001.png", "0002.png", "0001.json", "0001-sheet.png", "0001-notes.txt"),
        *("0003.png", "0004.png", "0003.json", "0003-sheet.png", "0003-notes.txt"),
    }
    kept = json.loads(Image.open(saved.pictures[1]).text[WORKFLOW_KEY])
    assert kept["name"] == "copy"
    assert kept["label"] == "copy 1"
    assert kept["inputs"]["source"]["name"] == str(a_picture)
    assert len(kept["inputs"]["source"]["hash"]) == 64
    report = json.loads(saved.report.read_text())
    assert report["pictures"][0]["path"] == str(saved.pictures[0])
    assert report["measured"] == result.measured


def test_the_recipe_of_the_generation_is_in_the_picture(
    tiny_bundled: Path, a_picture: Path, tmp_path: Path
) -> None:
    saved = ip.workflows.variations(
        picture=a_picture, scales=[1.0], num_images=1, steps=2, seed=7, progress=False
    ).save(tmp_path / "out")
    texts = Image.open(saved.pictures[0]).text
    assert json.loads(texts[RECIPE_KEY])["seed"] == 7
    repeated = ip.repeat(saved.pictures[0], progress=False)
    assert np.array_equal(repeated[0], Image.open(saved.pictures[0]))


# ── command ─────────────────────────────────────────────────────────────────────────────────────


def test_show_prints_inputs_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["workflow", "show", "product"]) == 0
    text = capsys.readouterr().out
    assert "--product PIC" in text
    assert "seam" in text
    assert cli.main(["workflow", "show", "produkt"]) == 2
    assert "Did you mean 'product'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run"], ["run", "nothing"], ["run", "restyle", "--contnt"]])
def test_wrong_commands_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["workflow", *arguments])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
