"""The published protocols at toy size: drawn data in their layouts, on the bundled stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imageprompt import cli
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.demo import scenes
from imageprompt.evaluation.protocols import PROTOCOLS, Protocol
from imageprompt.evaluation.protocols.dreambench import read_prompts
from imageprompt.evaluation.study import run
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.results import read_lines
from imageprompt.evaluation.study.run import Study, StudyResult

SCENES = list(islice(scenes.stream("test", seed=77), 12))
QUICK: dict[str, Any] = {
    "steps": 1,
    "size": 64,
    "adapters": ["plus"],
    "metrics": ["attributes", "words", "clip-i"],
    "control": False,
}


@pytest.fixture(autouse=True, scope="module")
def no_report() -> Iterator[None]:
    """The page is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_write_report", lambda folder: folder / "report.html")
        yield


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scenes.draw(SCENES[number]).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def study_of(name: str, data: Path, tmp_path: Path, **keys: Any) -> StudyResult:
    config = QUICK | {"protocol": name, "data": str(data), "output": str(tmp_path / "out")} | keys
    return Study(StudyConfig.load(config)).run(judge=keys.pop("judge", None), progress=False)


def figures(result: StudyResult) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["name"], one["setting"]): one for one in result.study["protocol"]["figures"]}


# ── coco-ip-adapter ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures; the captions are not in the order of their ids."""
    images, captions = [], []
    for number in range(3):
        name = f"{number + 7:012}.png"
        draw(tmp_path / "coco" / "val2017" / name, number)
        images.append({"id": number + 7, "file_name": name})
        for more in (5, 2):
            text = f"a {SCENES[number].shape}" if more == 2 else "a later caption"
            captions.append({"id": 10 * number + more, "image_id": number + 7, "caption": text})
    plain = {"images": images[::-1], "annotations": captions}
    write(tmp_path / "coco" / "annotations" / "captions_val2017.json", json.dumps(plain))
    return tmp_path / "coco"


def test_coco(coco: Path, tmp_path: Path) -> None:
    result = study_of("coco-ip-adapter", coco, tmp_path, limit=2, seeds=2)
    lines = [one for one in read_lines(result.folder) if one["row"] == "adapter"]
    assert [(one["prompt"], one["text"], one["seed"]) for one in lines] == [
        ("", f"a {SCENES[0].shape}", 0),
        ("", f"a {SCENES[0].shape}", 1),
        ("", f"a {SCENES[1].shape}", 0),
        ("", f"a {SCENES[1].shape}", 1),
    ]
    assert all(one["metrics"]["words"] in (0, 1) for one in lines)
    protocol = result.study["protocol"]
    assert protocol["data"] == "the first 2 of 3 pictures: a subset"
    assert {"topic", "stated", "here"} == {*protocol["choices"][0]}
    assert protocol["published"]["IP-Adapter (22M)"] == {"CLIP-T": 0.588, "CLIP-I": 0.828}
    found = figures(result)["CLIP-I", "plus, scale 1"]
    assert found["n"] == 4
    assert found["value"] == pytest.approx(np.mean([one["metrics"]["clip-i"] for one in lines]))


def test_the_line_of_a_paper(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is stated and what is assumed is printed, and what the line changes."""
    line = f"evaluate --protocol coco-ip-adapter --data {coco} --limit 1 --seeds 1 --steps 1"
    line += f" --size 64 --adapter base --metric clip-i --no-control --output {tmp_path / 'out'}"
    assert cli.main(line.split()) == 0
    shown = capsys.readouterr().out
    assert "IP-Adapter on COCO val2017: the first 1 of 3 pictures: a subset" in shown
    assert "not stated which of five" in shown
    assert "changed: size: 64 instead of 512" in shown
    assert "IP-Adapter (22M), published" in shown


def test_captions_that_lead_out_of_the_folder(coco: Path, tmp_path: Path) -> None:
    path = coco / "annotations" / "captions_val2017.json"
    plain = json.loads(path.read_text())
    plain["images"][0]["file_name"] = "../../secret.png"
    write(path, json.dumps(plain))
    draw(tmp_path / "secret.png", 0)
    with pytest.raises(ImagePromptError, match=r"val2017/secret\.png"):
        study_of("coco-ip-adapter", coco, tmp_path)


# ── dreambench ──────────────────────────────────────────────────────────────────────────────────

PROMPTS_AND_CLASSES = """Classes

subject_name,class
red_thing,shape
other_thing,shape
old_cat,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on a blue background'.format(unique_token, class_token),
'a striped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in a hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dreambench(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    for number, name in enumerate(("red_thing/00", "red_thing/01", "other_thing/02", "old_cat/1")):
        draw(folder / f"{name}.png", number)
    write(folder / "prompts_and_classes.txt", PROMPTS_AND_CLASSES)
    (folder / "unrelated").mkdir()
    return folder


def test_dreambench(dreambench: Path, tmp_path: Path) -> None:
    """Each subject is compared with all of its pictures; texts have no rare token."""
    classes, objects, live = read_prompts(dreambench / "prompts_and_classes.txt")
    assert classes == {"red_thing": "shape", "other_thing": "shape", "old_cat": "cat"}
    assert (len(objects), len(live)) == (2, 1)
    result = study_of("dreambench", dreambench, tmp_path, seeds=1)
    lines = [*read_lines(result.folder)]
    made = [one for one in lines if one["row"] == "adapter"]
    prompts = ["a shape on a blue background", "a striped shape"]
    assert [one["prompt"] for one in made] == ["a cat in a hat", *prompts, *prompts]
    assert result.study["protocol"]["data"] == "3 subjects; the published set has 30"
    ceiling = [one["reference"] for one in lines if one["row"] == "ceiling"]
    assert [Path(one).name for one in ceiling] == ["00.png", "01.png"]
    one = made[3]
    assert Path(one["reference"]).name == "00.png"
    study = Study(StudyConfig.load(result.study["config"] | {"output": str(result.folder)}))
    case = study.plan.cases[3]
    assert len(case.targets) == 2


def test_a_metric_is_averaged_over_all_pictures_of_the_subject(
    dreambench: Path, tmp_path: Path
) -> None:
    from imageprompt.evaluation.scoring import Picture, Scorer

    result = study_of("dreambench", dreambench, tmp_path, seeds=1)
    line = [one for one in read_lines(result.folder) if one["row"] == "adapter"][3]
    picture = Picture.of(result.folder / line["picture"])
    targets = [Picture.of(dreambench / "red_thing" / f"0{i}.png") for i in range(2)]
    alone = Scorer(["clip-i"]).values("clip-i", [picture] * 2, targets).values
    assert line["metrics"]["clip-i"] == pytest.approx(alone.mean(), abs=1e-6)
    assert abs(alone[0] - alone[1]) > 1e-3


# ── dreambench++ ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plus_plus(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for number, name in enumerate(("object/00", "live_subject/animal/00")):
        draw(folder / "images" / f"{name}.png", number)
        write(folder / "captions" / f"{name}.txt", "thing", "a star", "a red shape")
    return folder


def test_dreambench_plus_plus_with_a_judge(plus_plus: Path, tmp_path: Path) -> None:
    """Raw answers are kept, failed calls are counted apart and asked for again."""
    asked: list[str] = []

    def judge(picture: Image.Image, reference: Image.Image, prompt: str) -> dict[str, Any]:
        asked.append(prompt)
        if len(asked) == 2:
            raise TimeoutError("no answer")
        scores = {"concept preservation": 3, "prompt following": 2}
        return {"scores": scores, "raw": f"I see {prompt}"}

    keys = {"protocol": "dreambench++", "data": str(plus_plus), "output": str(tmp_path / "out")}
    study = Study(StudyConfig.load(QUICK | keys))
    assert (study.config.scales, study.config.seed) == ((0.6,), 42)
    assert study.config.guidance_scale == 7.5
    result = study.run(judge=judge, progress=False)
    assert result.study["judge"] == {"rated": 3, "failed": 1}
    found = figures(result)
    assert found["product", "plus, scale 0.6"]["value"] == pytest.approx(3 / 4 * 2 / 4)
    assert found["product", "plus, scale 0.6"]["n"] == 3
    assert "1 calls failed" in found["product", "plus, scale 0.6"]["note"]
    answers = [json.loads(line) for line in (tmp_path / "out" / "judge.jsonl").open()]
    assert answers[0]["raw"] == "I see a star"
    assert answers[1]["error"] == "TimeoutError: no answer"
    again = study.run(judge=judge, progress=False)
    assert len(asked) == 5
    assert again.study["judge"] == {"rated": 4, "failed": 0}


def test_dreambench_plus_plus_without_a_judge(plus_plus: Path, tmp_path: Path) -> None:
    result = study_of("dreambench++", plus_plus, tmp_path, limit=1)
    assert len([one for one in read_lines(result.folder) if one["row"] == "adapter"]) == 2
    assert ("product", "plus, scale 0.6") not in figures(result)
    assert ("CLIP-I", "plus, scale 0.6") in figures(result)


def test_an_unknown_judge() -> None:
    from imageprompt.evaluation.study.judging import find_judge

    with pytest.raises(OptionError, match="none is installed"):
        find_judge("gpt")


# ── style-grid ──────────────────────────────────────────────────────────────────────────────────


def test_style_grid(tmp_path: Path) -> None:
    data = tmp_path / "grid"
    for number, name in enumerate(("warm/1", "warm/2", "cold/1", "cold/2")):
        draw(data / "style" / f"{name}.png", number)
    write(data / "content" / "a.txt", "a star")
    write(data / "content" / "b.txt", "a ring")
    result = study_of("style-grid", data, tmp_path, preset=None, control=True)
    assert len([one for one in read_lines(result.folder) if one["row"] == "adapter"]) == 8
    found = figures(result)
    setting = "plus, scale 1"
    assert found["style", setting]["value"] == pytest.approx(
        np.nanmean(result.results().where(row="adapter").metrics["clip-i"]), abs=1e-6
    )
    assert found["style, less other styles", setting]["note"] == "clip-i of own encoder"
    assert ("likeness to the picture beyond its style", setting) in found
    assert 0 <= found["leaked object", setting]["value"] <= 1
    assert ("style, less other styles", "text alone") in found


def test_the_gap_to_other_styles(tmp_path: Path) -> None:
    """A picture that is its reference: the gap is what two references differ by."""
    from imageprompt.evaluation.protocols.contract import likeness, mean_where

    rows = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    alike = likeness(rows[:1], rows)
    assert alike == pytest.approx(np.array([[1, 0, 0.5**0.5]]))
    assert mean_where(alike, np.array([[False, True, True]])) == pytest.approx([0.5**0.5 / 2])
    assert np.isnan(mean_where(alike, np.zeros((1, 3), bool))).all()


# ── faces ───────────────────────────────────────────────────────────────────────────────────────


class Colours:
    """A recogniser of mean colours that finds no face in a dark picture."""

    name = "colours"
    fingerprint = "c0"
    preprocessing = "none"
    width = 3

    def encode(self, pictures: Any) -> Any:
        rows = np.stack([np.asarray(one, np.float32).mean((0, 1)) - 120 for one in pictures])
        rows[[np.asarray(one).mean() < 40 for one in pictures]] = np.nan
        return rows


@pytest.fixture
def people(tmp_path: Path) -> Path:
    data = tmp_path / "faces"
    for number, name in enumerate(("anna/1", "anna/2", "ben/1")):
        draw(data / "people" / f"{name}.png", number)
    write(data / "prompts.txt", "a star", "", "a red shape")
    return data


def test_faces(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imageprompt.evaluation.extractors.face import FaceRole

    monkeypatch.setattr(FaceRole, "open", lambda *_, **__: Colours())
    keys = {"metrics": ["face", "words"], "extractors": {"face": "colours"}}
    result = study_of("faces", people, tmp_path, **keys)
    found = figures(result)
    rows = Colours().encode([scenes.draw(SCENES[i]) for i in range(3)])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    zero = [unit[0] @ unit[2], unit[1] @ unit[2], (unit[0] + unit[1]) @ unit[2] / 2]
    line = found["identity of different people", "references"]
    assert line["value"] == pytest.approx(np.mean(zero), abs=1e-5)
    values = result.results().where(row="adapter").metrics["face"]
    setting = "plus, scale 1"
    assert found["pictures without a face", setting]["value"] == np.isnan(values).mean()
    whole = found["identity, no face is 0", setting]["value"]
    assert whole == pytest.approx(np.nan_to_num(values).mean())


def test_the_same_recogniser_is_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="faces without a recogniser"):
        study_of("faces", people, tmp_path)
    adapters = [{"adapter": "plus", "faces": "packs/buffalo_l"}]
    with pytest.raises(OptionError, match="conditioned by it"):
        study_of("faces", people, tmp_path, adapters=adapters, extractors={"face": "buffalo_l"})


# ── all ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", [*PROTOCOLS], ids=lambda one: str(one.name))
def test_each_says_what_it_reads_and_assumes(protocol: Protocol, tmp_path: Path) -> None:
    """Its keys are those of a study; a wrong folder is one line that says what belongs there."""
    assert protocol.layout
    assert len(protocol.choices) >= 5
    keys = {"protocol": protocol.name, "data": str(tmp_path), "output": str(tmp_path / "out")}
    config = StudyConfig.load(keys | {"extractors": {"face": "pack"}})
    assert config.protocol == protocol.name
    with pytest.raises(ImagePromptError) as caught:
        Study(config)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(OptionError, match="Give both"):
        StudyConfig.load({"output": "out", "protocol": protocol.name})
    with pytest.raises(OptionError, match="takes them from its data set"):
        StudyConfig.load(keys | {"prompts": ["a"]})


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--protocols", "--json"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)]
    assert names == ["coco-ip-adapter", "dreambench", "dreambench++", "faces", "style-grid"]
    assert cli.main(["evaluate", "--protocols"]) == 0
    assert "prompts_and_classes.txt" in capsys.readouterr().out


def test_an_unknown_protocol() -> None:
    with pytest.raises(OptionError, match="Did you mean 'dreambench"):
        StudyConfig.load({"output": "out", "protocol": "dreambooth", "data": "x"})
