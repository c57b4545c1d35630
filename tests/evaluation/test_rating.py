"""`imageprompt rate` and `imageprompt ratings`: what the page holds, and what the answers give.

The page itself is tested in a browser: test_rating_page.py.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imageprompt import cli
from imageprompt.core.errors import ImagePromptError, OptionError, PictureError
from imageprompt.evaluation.rating import page
from imageprompt.evaluation.rating.answers import read_key, read_raters
from imageprompt.evaluation.rating.questions import REPEATED, ask
from imageprompt.evaluation.rating.subjects import Subject, clusters_of, of_folders, of_study
from imageprompt.evaluation.rating.summary import summarise
from rated import ADAPTERS, answer, make_study

PLUS, BASE = ADAPTERS


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("rating") / "study")


@pytest.fixture(scope="module")
def rated(study: Path) -> dict[str, Path]:
    """A page of each mode, with its key."""
    folders = {}
    for mode in ("pairs", "scales"):
        folders[mode] = study.parent / mode
        page.write_page(of_study(study), folders[mode], mode=mode)  # type: ignore[arg-type]
    return folders


def key_of(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / page.KEY).read_text("utf-8"))
    return plain


def embedded(text: str, name: str) -> Any:
    (found,) = re.findall(
        rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found)


# ── the page ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mode", "questions"), [("pairs", 12), ("scales", 24)])
def test_the_page_is_blind_and_needs_no_network(
    rated: dict[str, Path], mode: str, questions: int
) -> None:
    text = (rated[mode] / page.PAGE).read_text("utf-8")
    for word in (*ADAPTERS, "secret", "planted", "expected", "references/", "pictures/", "seed"):
        assert word not in text, word
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert not re.search(r"<(link|iframe|script[^>]+src)", text)
    data, files = embedded(text, "data"), embedded(text, "files")
    key = key_of(rated[mode])
    assert len(data["items"]) == questions + 1 == len(key["items"])
    assert {one["id"] for one in data["items"]} == {one["id"] for one in key["items"]}
    assert set(data["items"][0]) == {"id", "text", "reference", "pictures"}
    assert all(url.startswith("data:image/webp;base64,") for url in files.values())
    shown = {one for item in data["items"] for one in (item["reference"], *item["pictures"])}
    assert shown == set(files)
    assert data["items"][0]["text"].startswith("a <b>")  # as data, never as markup
    assert "a <b>" not in text


def test_neither_order_nor_side_says_which_adapter_it_is(rated: dict[str, Path]) -> None:
    """In the page pictures are in the order of their ids, which are drawn."""
    text = (rated["pairs"] / page.PAGE).read_text("utf-8")
    known = {one["id"]: one["pictures"] for one in key_of(rated["pairs"])["items"]}
    first = [known[item["id"]][item["pictures"][0]] for item in embedded(text, "data")["items"]]
    assert 3 <= first.count(PLUS) <= 9
    assert list(embedded(text, "files")) == sorted(embedded(text, "files"))


def test_the_same_study_gives_the_same_bytes(study: Path, rated: dict[str, Path]) -> None:
    again = study.parent / "again"
    moved = shutil.copytree(study, study.parent / "moved")
    page.write_page(of_study(moved), again)
    for name in (page.PAGE, page.KEY):
        assert (again / name).read_bytes() == (rated["pairs"] / name).read_bytes()


def test_pictures_are_small_and_without_metadata(study: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg", comment="secret", quality=20)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "large.jpg", tmp_path / name / "one.jpg")
    written = page.write_page(
        of_folders([tmp_path / "a", tmp_path / "b"]), tmp_path / "out", folder=True
    )
    assert written.page == tmp_path / "out" / "rate" / "index.html"
    assert written.planted == 0
    pictures = sorted((tmp_path / "out" / "rate" / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as opened:
        assert opened.size == (512, 341)
        assert not opened.getexif()
    text = written.page.read_text("utf-8")
    assert embedded(text, "files")[pictures[0].stem] == f"pictures/{pictures[0].name}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rate", page.KEY}
    assert embedded(text, "data")["items"][0]["reference"] is None


def test_a_large_page_is_told(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGE", 1000)
    with pytest.warns(UserWarning, match=r"rate.html has 0 MB: browsers load it slowly. Use"):
        page.write_page(of_study(study), tmp_path)


def test_planted_questions_have_a_right_answer(rated: dict[str, Path]) -> None:
    for mode, expected in (("pairs", "reference"), ("scales", "unrelated")):
        (one,) = (item for item in key_of(rated[mode])["items"] if item["expected"])
        assert expected in one["pictures"].values()
        if mode == "pairs":
            assert set(one["pictures"].values()) == {"reference", "unrelated"}
            assert one["pictures"][one["expected"]] == "reference"
        else:
            assert one["expected"] == "low"


@pytest.mark.parametrize("mode", ["pairs", "scales"])
def test_shares_of_planted_questions(mode: Any) -> None:
    """Of both kinds on scales; none where all references are one."""
    subjects = [
        Subject(str(n), "", Path(f"r{n // 2}"), f"r{n // 2}", {c: Path(f"{c}{n}") for c in "ab"})
        for n in range(100)
    ]
    files = [path for one in subjects for path in (one.reference, *one.pictures.values())]
    hashes = {path: str(path) for path in files if path is not None}
    made = ask(subjects, hashes, mode)
    planted = [one for one in made.items if one.expected is not None]
    assert 0.05 <= len(planted) / len(made.items) <= 0.1
    assert 0.05 <= REPEATED <= 0.1
    expected = {one.expected for one in planted}
    assert expected == {"high", "low"} if mode == "scales" else len(expected) == 6
    for one in planted:
        own = subjects[one.subject].reference
        for picture, condition in one.conditions.items():
            path = made.files[picture]
            assert (path == own) == (condition == "reference")
    assert len({one.id for one in made.items}) == len(made.items)
    same = [replace(one, reference=Path("r0")) for one in subjects]
    assert all(one.expected is None for one in ask(same, hashes, mode).items)


def test_fewer_questions_are_drawn_over_all_prompts(study: Path, tmp_path: Path) -> None:
    page.write_page(of_study(study), tmp_path, mode="scales", count=12)
    asked = [one for one in key_of(tmp_path)["items"] if one["expected"] is None]
    assert len(asked) == 12
    assert len({one["subject"] for one in asked}) == 12


def test_settings_of_a_study(study: Path, tmp_path: Path) -> None:
    """Several scales are several conditions, unless one is chosen."""
    lines = [json.loads(line) for line in (study / "results.jsonl").read_text().splitlines()]
    lines += [{**line, "scale": 1.0} for line in lines]
    lines += [{**lines[0], "adapter": None, "row": "control", "scale": 0.0}]
    (tmp_path / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = of_study(tmp_path)
    assert len(found) == 12
    assert list(found[0].pictures) == [
        f"{name}, scale {scale}" for scale in ("0.6", "1") for name in ADAPTERS
    ]
    chosen = of_study(tmp_path, adapters=[PLUS], scales=[0.6, 1.0])
    assert list(chosen[0].pictures) == [f"{PLUS}, scale 0.6", f"{PLUS}, scale 1"]
    assert list(of_study(tmp_path, scales=[1.0])[0].pictures) == [*ADAPTERS]


# ── bad input of rate ───────────────────────────────────────────────────────────────────────────


def test_unequal_sets_are_refused_with_what_is_missing(study: Path, tmp_path: Path) -> None:
    lines = (study / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(OptionError, match=rf"unequal sets: {BASE}: lacks 1: .*seed 1"):
        of_study(tmp_path)
    for name, count in (("a", 8), ("b", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            shutil.copy(study / "references" / "0.png", tmp_path / name / f"{number}.png")
    with pytest.raises(OptionError, match=r"unequal sets: b: lacks 7: 1; 2; 3; 4; 5 and 2 more"):
        of_folders([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(OptionError, match=r"unequal sets: references .* lacks 7"):
        of_folders([tmp_path / "a"], tmp_path / "b")


def folders(root: Path) -> list[str]:
    return ["--pictures", str(root / "references"), str(root / "references")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "what to rate: a study or --pictures, one of them"),
        (["{study}", "--pictures", "{study}"], "what to rate: a study or --pictures"),
        (["{study}", "--references", "{study}"], "--references with a study: a study has its own"),
        (["--pictures", "{study}", "--scale", "1"], "they choose from a study"),
        (["no-such"], "study 'no-such': has no results.jsonl"),
        (["{study}", "--adapter", "x"], f"adapter 'x': not in the study. Has {PLUS}, {BASE}"),
        (["{study}", "--scale", "2"], "has no pictures of these settings"),
        (["{study}", "--adapter", PLUS], f"only '{PLUS}' has pictures"),
        (["{study}", "--count", "99"], "count 99: not a whole number from 1 to 12"),
        (["--pictures", "{study}/references", "{study}"], "has no .png"),
        (["--pictures", "{study}/references", "no-such"], "folder 'no-such': not found"),
        (["{study}", "--output", "{study}/results.jsonl"], "is a file"),
    ],
)
def test_bad_input_of_rate_is_one_line(
    options: list[str],
    message: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rate", *(one.format(study=study) for one in options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_broken_picture_is_named(study: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(study, tmp_path / "study")
    (broken / "pictures" / "3-1-0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(PictureError, match=r"3-1-0\.png"):
        page.write_page(of_study(broken), tmp_path / "out")
    (broken / "pictures" / "3-1-0.png").unlink()
    with pytest.raises(PictureError, match=r"3-1-0\.png': cannot be read: No such file"):
        page.write_page(of_study(broken), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_outside_the_study_are_refused(study: Path, tmp_path: Path) -> None:
    """A page is given away: what a stranger's study names must not end up in it."""
    stolen = shutil.copytree(study, tmp_path / "study")
    Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    text = (stolen / "results.jsonl").read_text()
    (stolen / "results.jsonl").write_text(text.replace("pictures/0-0-0.png", "../private.png"))
    with pytest.raises(OptionError, match=r"private\.png.*leads out of the study"):
        of_study(stolen)


def test_the_key_of_another_page_is_not_overwritten(study: Path, tmp_path: Path) -> None:
    page.write_page(of_study(study), tmp_path)
    before = (tmp_path / page.KEY).read_bytes()
    page.write_page(of_study(study), tmp_path)
    with pytest.raises(OptionError, match="is the key to another page"):
        page.write_page(of_study(study), tmp_path, mode="scales")
    assert (tmp_path / page.KEY).read_bytes() == before


# ── ratings ─────────────────────────────────────────────────────────────────────────────────────


def test_pairs_are_summed_up(rated: dict[str, Path], tmp_path: Path) -> None:
    """Two raters prefer one adapter in five of six prompts; one always says equal."""
    key = key_of(rated["pairs"])

    def mostly(item: dict[str, Any]) -> str:
        return BASE if "red" in item["prompt"] else PLUS

    paths = [answer(tmp_path / f"{name}.json", key, name, mostly) for name in ("anna", "ben")]
    paths.append(answer(tmp_path / "cy.json", key, "cy", lambda item: "equal"))
    known = read_key(rated["pairs"] / page.KEY)
    found = summarise(known, read_raters(paths, known))
    assert (found.clustered_by, found.clusters) == ("prompts", 6)
    (one,) = found.comparisons
    assert (one.a, one.b, one.n) == (PLUS, BASE, 36)
    assert one.win_rate == pytest.approx((2 * 2 + 6) / 36 * 1.0)
    assert one.ties == pytest.approx(1 / 3)
    assert one.p == one.p_holm == 2 * (1 + 6) / 2**6  # signs of six prompts: all, and all but one
    assert one.win_rate in one.win_interval
    assert found.strengths is not None
    assert found.strengths.preference(1, 0) == pytest.approx(one.win_rate)
    assert found.strengths.values[0] in found.strengths.intervals[0]
    agreement = found.agreement["choice"]
    assert agreement.items == 12
    assert -0.5 < agreement.alpha < 0.5
    alone = summarise(known, read_raters(paths[:2], known)).agreement["choice"]
    assert alone.alpha == 1
    report = found.raters[0]
    assert (report.answers, report.asked, report.planted, report.failed) == (12, 12, 1, ())
    assert (report.repeated, report.consistent, report.seconds) == (2, 2, 2.5)
    assert found.raters[2].left is None


def test_careless_raters_are_named_and_can_be_dropped(
    rated: dict[str, Path], tmp_path: Path
) -> None:
    key = key_of(rated["pairs"])
    careful = answer(tmp_path / "a.json", key, "anna", lambda item: PLUS)
    careless = answer(tmp_path / "b.json", key, "ben", lambda item: BASE)
    plain = json.loads(careless.read_text())
    (planted,) = (item for item in key["items"] if item["expected"])
    for one in plain["answers"]:
        if one["item"] == planted["id"]:
            one["choice"] = next(p for p in planted["pictures"] if p != planted["expected"])
    plain["answers"][-1]["choice"] = "equal"  # a repeat
    careless.write_text(json.dumps(plain))
    known = read_key(rated["pairs"] / page.KEY)
    raters = read_raters([careful, careless], known)
    found = summarise(known, raters)
    assert [one.failed for one in found.raters] == [(), (planted["id"],)]
    assert [one.consistent for one in found.raters] == [2, 1]
    assert found.comparisons[0].win_rate == 0.5
    dropped = summarise(known, raters, drop_failed=True)
    assert [one.dropped for one in dropped.raters] == [False, True]
    assert dropped.comparisons[0].win_rate == 0
    assert dropped.strengths is not None
    assert dropped.strengths.prior == 0.5  # nobody prefers the other
    with pytest.raises(OptionError, match="each failed a planted question"):
        summarise(known, raters[1:], drop_failed=True)


def test_scales_are_summed_up(rated: dict[str, Path], tmp_path: Path) -> None:
    key = key_of(rated["scales"])
    rng = np.random.default_rng(0)

    def scores(item: dict[str, Any]) -> dict[str, int]:
        better = PLUS in item["pictures"].values()
        return {
            "content": 4 if better else 3,
            "style": int(rng.integers(1, 6)),
            "text": 3,
            "overall": 5 - (not better) * ("red" not in item["prompt"]),
        }

    paths = [answer(tmp_path / f"{name}.json", key, name, scores) for name in ("anna", "ben")]
    known = read_key(rated["scales"] / page.KEY)
    found = summarise(known, read_raters(paths, known))
    means = {(one.condition, one.axis): one for one in found.means}
    assert means[PLUS, "content"].value == 4
    assert means[BASE, "overall"].value == pytest.approx(4 + 1 / 6)
    assert means[BASE, "overall"].n == 24
    compared = {one.axis: one for one in found.comparisons}
    assert compared["content"].difference == -1
    assert compared["content"].p == pytest.approx(2 / 2**6)
    assert compared["content"].p_holm == pytest.approx(4 * 2 / 2**6)
    assert compared["text"].win_rate == 0.5
    assert compared["overall"].ties == pytest.approx(1 / 6)
    assert found.agreement["content"].alpha == 1
    assert abs(found.agreement["style"].alpha) < 0.5
    assert np.isnan(found.agreement["text"].alpha)
    assert found.strengths is not None
    assert found.strengths.values[0] > 0
    assert found.raters[0].left is None
    assert found.raters[0].failed == ()


def test_what_is_resampled() -> None:
    assert clusters_of([("a", "x"), ("b", "x")]) == ("prompts", ["a", "b"])
    assert clusters_of([("", "x"), ("", "y")]) == ("references", ["x", "y"])
    few = [("a", "x"), ("b", "y"), ("a", "z")]
    assert clusters_of(few) == ("references", ["x", "y", "z"])
    many = [(f"{number % 5}", f"{number}") for number in range(10)]
    assert clusters_of(many) == ("prompts", [prompt for prompt, _ in many])
    assert clusters_of([("a", ""), ("a", "")]) == ("pictures", ["0", "1"])


# ── the commands ────────────────────────────────────────────────────────────────────────────────


def test_the_commands(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rate", str(study), "--title", "<Two> adapters", "--question", "Which?"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("12 questions, 1 of them twice, 1 planted; 0.")
    assert [line.partition(":")[0] for line in others] == [
        "rating/rate.html",
        "rating/rate-key.json",
    ]
    text = Path("rating/rate.html").read_text("utf-8")
    assert "<title>&lt;Two&gt; adapters</title>" in text
    key = key_of(Path("rating"))
    for name, prefer in (("anna", PLUS), ("ben", BASE), ("cy", PLUS)):
        answer(Path(f"{name}.json"), key, name, lambda item, prefer=prefer: prefer)  # type: ignore[misc]
    assert cli.main(["ratings", "anna.json", "ben.json", "cy.json"]) == 0
    table = capsys.readouterr().out
    for words in (
        r"^anna +12 of 12 +2 of 2 +1 of 1 +2.5 s$",
        rf"^{BASE} over {PLUS} +0.33 \(0.07 to 0.77\) +0% +0.031 +36$",
        rf"^{PLUS} +\+0.35 +\+60 \(\+60 to \+60\)$",
        r"^agreement, choice: alpha -0.46 \(.*\), 12 rated by two or more$",
        r"^intervals: 95 %, over 6 prompts$",
    ):
        assert re.search(words, table, re.MULTILINE), (words, table)
    assert cli.main(["ratings", "anna.json", "ben.json", "cy.json", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["comparisons"][0]["win_rate"] == pytest.approx(1 / 3)
    assert plain["strengths"][0]["condition"] == PLUS
    assert plain["raters"][1]["rater"] == "ben"


def test_one_rater_and_no_votes_between_some_are_no_error(
    rated: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_of(rated["scales"])
    path = answer(tmp_path / "a.json", key, "anna", lambda item: {"overall": 3})
    plain = json.loads(path.read_text())
    kept = plain["answers"][0]
    path.write_text(json.dumps(plain | {"answers": [kept], "complete": False}))
    options = ["ratings", str(path), "--key", str(rated["scales"] / page.KEY)]
    assert cli.main(options) == 0
    assert "alpha unknown" in capsys.readouterr().out
    assert cli.main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["overall"]["alpha"] is None


BROKEN = {
    "another study": ({"study": "f00"}, "of another study: f00, the key is of"),
    "another mode": ({"mode": "scales"}, "of another study"),
    "another format": ({"format": "x"}, "not the answers of a rater"),
    "no name": ({"rater": " "}, "the rater has no name"),
    "no text": ({"rater": 3}, "rater is not text"),
    "no list": ({"answers": 3}, "damaged: 'int' object is not iterable"),
    "no answers": ({"answers": []}, "has no answers"),
    "an unknown question": ({"answers": [{"item": "q9999"}]}, "has no question 'q9999'"),
    "no object": ({"answers": [3]}, "damaged"),
    "no choice": ({"answers": [{"item": "q0001"}]}, "damaged: no 'choice'"),
    "an unknown picture": (
        {"answers": [{"item": "q0001", "choice": "p", "left": "p"}]},
        "q0001 has no picture 'p'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers_are_one_line(
    name: str, rated: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, message = BROKEN[name]
    key = key_of(rated["pairs"])
    path = answer(tmp_path / "a.json", key, "anna", lambda item: PLUS, **changed)
    assert cli.main(["ratings", str(path), "--key", str(rated["pairs"] / page.KEY)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "a.json" in line


def test_files_that_do_not_belong_are_one_line(
    rated: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, scales = (rated[mode] / page.KEY for mode in ("pairs", "scales"))
    first = answer(tmp_path / "a.json", key_of(rated["pairs"]), "anna", lambda item: PLUS)
    second = shutil.copy(first, tmp_path / "b.json")
    twice = json.loads(first.read_text())
    twice["answers"].append(twice["answers"][0])
    (tmp_path / "twice.json").write_text(json.dumps(twice))
    (tmp_path / "cut.json").write_bytes(first.read_bytes()[:100])
    (tmp_path / "list.json").write_text("[]")
    high = answer(
        tmp_path / "high.json", key_of(rated["scales"]), "anna", lambda item: {"overall": 6}
    )
    for files, key, message in (
        ([first, second], pairs, f"two files of rater 'anna': '{first}' and '{second}'"),
        ([first], scales, "of another study"),
        ([first], first, "not a key of `imageprompt rate`"),
        ([first], tmp_path / "no-such", "key "),
        ([tmp_path / "cut.json"], pairs, "cut.json': cannot be read"),
        ([tmp_path / "list.json"], pairs, "list.json': not a JSON object"),
        ([tmp_path / "no-such"], pairs, "not found"),
        ([tmp_path], pairs, "it is a folder"),
        ([tmp_path / "twice.json"], pairs, "is answered twice"),
        ([high], scales, "has overall 6, not 1 to 5"),
    ):
        assert cli.main(["ratings", *map(str, files), "--key", str(key)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, line


def test_a_damaged_key_is_one_line(rated: dict[str, Path], tmp_path: Path) -> None:
    plain = key_of(rated["pairs"])
    for changed in ({"items": [3]}, {"items": [{}]}, {"mode": "x"}, {"conditions": [PLUS]}):
        (tmp_path / "key.json").write_text(json.dumps(plain | changed))
        with pytest.raises(OptionError, match=r"key .*: damaged"):
            read_key(tmp_path / "key.json")


def test_mutated_files_are_read_or_refused(rated: dict[str, Path], tmp_path: Path) -> None:
    """Values of other kinds everywhere: an error is one of ours, never another."""
    rng = np.random.default_rng(0)
    strange = [None, True, -1, 1e300, "x", "", [], {}, [[]], {"a": 1}]

    def mutate(plain: Any) -> Any:
        """With one value replaced, anywhere."""
        if not isinstance(plain, dict | list) or not plain or rng.random() < 0.2:
            return strange[rng.integers(len(strange))]
        place = list(plain)[rng.integers(len(plain))] if isinstance(plain, dict) else None
        number = int(rng.integers(len(plain))) if place is None else place
        changed = plain.copy()
        changed[number] = mutate(plain[number])
        return changed

    for mode, scores in (("pairs", PLUS), ("scales", {"overall": 3})):
        key = key_of(rated[mode])
        answers = json.loads(answer(tmp_path / "a", key, "a", lambda item, s=scores: s).read_text())
        for turn in range(60):
            files = {"key": key, "answers": answers}
            name = ("key", "answers")[turn % 2]
            files[name] = mutate(files[name])
            for kind, plain in files.items():
                (tmp_path / kind).write_text(json.dumps(plain))
            try:
                known = read_key(tmp_path / "key")
                summarise(known, read_raters([tmp_path / "answers"], known)).as_dict()
            except ImagePromptError:
                pass
