"""Scores of pictures that exist: pairs, features kept by content, failures counted, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imageprompt import cli
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.evaluation.metrics import METRICS
from imageprompt.evaluation.scoring import FeatureStore, Picture, Scorer, paired, pictures_in

COUNT = 6


class Mean:
    """An extractor of plain colours that counts what it is asked for."""

    name, preprocessing, width = "mean colours", "none", 3

    def __init__(self, fingerprint: str = "mean") -> None:
        self.fingerprint, self.seen = fingerprint, 0

    def encode(self, pictures: Sequence[Any]) -> Any:
        self.seen += len(pictures)
        return np.stack([np.asarray(picture, np.float32).mean((0, 1)) for picture in pictures])

    def encode_text(self, texts: Sequence[str]) -> Any:
        self.seen += len(texts)
        return np.array([[len(text), 1, 1] for text in texts], np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures, and references of the same names with noise on them."""
    root, rng = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    for name in "ab":
        (root / name / "sub").mkdir(parents=True)
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (32, 40, 3))
        noisy = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255)
        name = f"sub/{index}" if index % 2 else f"{index}"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "a" / f"{name}.png")
        Image.fromarray(noisy.astype(np.uint8)).save(root / "b" / f"{name}.webp", lossless=True)
    return root / "a", root / "b"


@pytest.fixture
def broken(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, but one picture and another one's reference cannot be read."""
    a, b = (shutil.copytree(folder, tmp_path / folder.name) for folder in folders)
    (a / "0.png").write_bytes(b"no picture")
    (b / "2.webp").write_bytes(b"no picture")
    return a, b


def pairs(folders: tuple[Path, Path]) -> tuple[list[Picture], list[Picture]]:
    rows = paired(*map(pictures_in, folders))
    return [a for a, _ in rows], [b for _, b in rows]


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────


def test_pictures_are_paired_by_name_or_with_a_single_reference(
    folders: tuple[Path, Path],
) -> None:
    ours, theirs = pairs(folders)
    assert [Path(one.name).stem for one in ours] == [Path(one.name).stem for one in theirs]
    assert {one.name for one in ours} == {"0.png", "2.png", "4.png"} | {
        f"sub/{index}.png" for index in (1, 3, 5)
    }
    alone = paired(pictures_in(folders[0]), pictures_in(folders[1] / "0.webp"))
    assert [b.name for _, b in alone] == ["0.webp"] * COUNT


def test_what_has_no_counterpart_is_listed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fewer = shutil.copytree(folders[1], tmp_path / "fewer")
    (fewer / "2.webp").unlink()
    shutil.copy(folders[1] / "0.webp", fewer / "more.webp")
    with pytest.raises(OptionError, match=r"not in pairs: 2.png, more.webp"):
        paired(pictures_in(folders[0]), pictures_in(fewer))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="no pictures in this folder"):
        pictures_in(tmp_path / "empty")


def test_the_mean_of_pairs_with_its_interval(folders: tuple[Path, Path]) -> None:
    ours, theirs = pairs(folders)
    score = Scorer(["psnr"]).score(ours, theirs)["psnr"]
    each = [
        METRICS["psnr"].compare(np.asarray(a.open()), np.asarray(b.open()))  # type: ignore[attr-defined]
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert score.value == pytest.approx(np.mean(each))
    assert score.n == COUNT
    assert score.interval.low < score.value < score.interval.high


def test_pictures_without_a_value_are_named_and_counted(broken: tuple[Path, Path]) -> None:
    scorer = Scorer(["psnr", "clip-i"], {"clip": Mean()})
    for name, score in scorer.score(*pairs(broken)).items():
        assert score.n == COUNT - 2, name
        assert set(score.failed) == {"0.png", "2.png"}, name
        assert "cannot be read" in score.failed["0.png"]
        assert score.failed["2.png"].startswith("its reference: "), name


def test_equal_pictures_are_infinitely_near_and_not_part_of_the_mean(
    folders: tuple[Path, Path],
) -> None:
    ours, theirs = pairs(folders)
    score = Scorer(["psnr"]).score(ours, [*theirs[:-1], ours[-1]])["psnr"]
    assert (score.n, score.infinite) == (COUNT - 1, 1)
    assert score.value is not None
    assert np.isfinite(score.value)
    alone = Scorer(["psnr"]).score(ours[:1], ours[:1])["psnr"].as_dict()
    assert (alone["value"], alone["n"], alone["infinite"]) == (None, 0, 1)
    assert json.loads(json.dumps(alone, allow_nan=False)) == alone


def test_another_size_is_no_pair_of_pixels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    Image.open(folders[0] / "0.png").resize((64, 64)).save(tmp_path / "large.png")
    first, other = Picture.of(folders[0] / "0.png"), Picture.of(tmp_path / "large.png")
    failed = Scorer(["psnr"]).score([first], [other])["psnr"].failed
    assert "40x32 and 64x64" in failed[first.name]


# ── features ────────────────────────────────────────────────────────────────────────────────────


def test_features_are_extracted_once_for_each_content(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, theirs = pairs(folders)
    first, path = Mean(), tmp_path / "features.sqlite"
    expected = Scorer(["clip-i"], {"clip": first}, store=FeatureStore(path)).score(ours, theirs)
    assert first.seen == 2 * COUNT
    copies = shutil.copytree(folders[0], tmp_path / "copies")
    again = Mean()
    found = Scorer(["clip-i"], {"clip": again}, store=FeatureStore(path)).score(
        pictures_in(copies), theirs
    )
    assert again.seen == 0  # of another name, and the same
    assert found["clip-i"].value == expected["clip-i"].value
    other = Mean("of other weights")
    Scorer(["clip-i"], {"clip": other}, store=FeatureStore(path)).score(ours, theirs)
    assert other.seen == 2 * COUNT


def test_a_picture_in_memory_counts_by_its_pixels(folders: tuple[Path, Path]) -> None:
    with Image.open(folders[0] / "0.png") as image:
        one, same = Picture.of(image.copy()), Picture.of(image.convert("RGB"))
        other = Picture.of(image.rotate(180))
    assert one.hash == same.hash != other.hash
    extractor = Mean()
    Scorer(["clip-i"], {"clip": extractor}).score([one, same], [other, other])
    assert extractor.seen == 2


def test_a_file_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but a text that is long enough " * 20)
    with pytest.raises(OptionError, match="Name a new file"):
        FeatureStore(tmp_path / "text")


def test_texts_are_encoded_once_each(folders: tuple[Path, Path]) -> None:
    extractor, ours = Mean(), pictures_in(folders[0])
    score = Scorer(["clip-t"], {"clip": extractor}).score(ours, None, ["one", "two"] * 3)["clip-t"]
    assert extractor.seen == COUNT + 2
    assert score.n == COUNT


# ── sets ────────────────────────────────────────────────────────────────────────────────────────


def test_whole_sets_need_no_pairs_and_give_every_part(folders: tuple[Path, Path]) -> None:
    ours, theirs = pictures_in(folders[0]), pictures_in(folders[1])
    scorer = Scorer(["vendi", "kid"], {"clip": Mean(), "inception": Mean()})
    scores = scorer.score(ours, reference_set=theirs[:4])
    assert 1 <= scores["vendi"].value <= COUNT  # type: ignore[operator]
    assert scores["kid"].interval.known
    assert scores["kid"].extractor == "mean colours"


def test_a_set_has_each_picture_once(folders: tuple[Path, Path]) -> None:
    pair = paired(pictures_in(folders[0] / "0.png"), pictures_in(folders[1]))
    scorer = Scorer(["psnr", "inception-score"], {"inception-logits": Mean()})
    with pytest.raises(OptionError, match="inception-score: 1 picture, and it needs"):
        scorer.score([a for a, _ in pair], [b for _, b in pair])


@pytest.mark.parametrize(
    ("metric", "references", "words"),
    [
        ("psnr", None, "references: none"),
        ("clip-t", None, "texts: none"),
        ("kid", "one", "at least"),
        ("pnsr", None, "Did you mean 'psnr'"),
    ],
)
def test_what_a_metric_needs(
    metric: str, references: str | None, words: str, folders: tuple[Path, Path]
) -> None:
    ours = pictures_in(folders[0])
    with pytest.raises(OptionError, match=words):
        Scorer([metric], {"clip": Mean(), "inception": Mean()}).score(
            ours, ours[:1] if references else None
        )


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_json(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", *map(str, folders), "--metric", "psnr,ssim", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert list(scores) == ["psnr", "ssim"]
    for score in scores.values():
        low, high = score["interval"]
        assert low < score["value"] < high
        assert (score["n"], score["higher_is_better"]) == (COUNT, True)
    alone = [str(folder / name) for folder, name in zip(folders, ("0.png", "0.webp"), strict=True)]
    assert cli.main(["score", *alone, "--metric", "psnr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr"]["interval"] is None


def test_the_command_names_what_has_no_value(
    broken: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", *map(str, broken), "--metric", "psnr"]) == 1
    printed = capsys.readouterr()
    assert "psnr: no value for 2.png: its reference: " in printed.err
    assert "psnr" in printed.out


def test_a_set_names_its_references_that_cannot_be_read(broken: tuple[Path, Path]) -> None:
    ours, theirs = map(pictures_in, broken)
    scores = Scorer(["kid"], {"inception": Mean()}).score(ours, reference_set=theirs)
    assert [*scores["kid"].failed] == ["0.png", "reference 2.webp"]


def test_prompts_are_one_a_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\n" * 2)
    command = ["score", str(folders[0]), "--metric", "words", "--prompts", str(prompts)]
    assert cli.main(command) == 2
    assert "2 lines" in capsys.readouterr().err
    prompts.write_text("a red star\n")
    assert cli.main([*command, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["words"]["value"] <= 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "nothing to score"),
        (["nowhere", "{b}"], "error: nowhere: no such file. Check the path."),
        (["{a}", "nowhere"], "error: nowhere: no such file. Check the path."),
        (["{a}"], "references: none. Name a picture or a folder to compare with"),
        (["{a}", "{b}", "--metric", ","], "--metric: names none"),
        (["{a}", "{b}", "--device", "tpu"], "device 'tpu': not available on this machine"),
        (["{a}/0.png", "{b}/0.webp", "--metric", "kid"], "1 picture, and it needs"),
        (["{a}", "{b}", "--extractor", "clip"], "not ROLE=SOURCE"),
        (["{a}", "{b}", "--metric", "csd"], "csd"),
        (["{a}", "--prompts", "nowhere.txt", "--metric", "words"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    error: str,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b = map(str, folders)
    assert cli.main(["score", *(word.format(a=a, b=b) for word in arguments)]) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert "Traceback" not in printed


def test_a_figure_of_few_pictures_comes_with_a_warning(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", *map(str, folders), "--metric", "fid"]) == 0
    assert "warning: fid of 6 pictures; it is steady from about 2048 on" in capsys.readouterr().err


def test_sets_of_several_sizes_come_with_a_warning(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    others = shutil.copytree(folders[1], tmp_path / "others")
    Image.new("RGB", (96, 64)).save(others / "wide.png")
    ours, metrics = pictures_in(folders[0]), Scorer(["kid"], {"inception": Mean()})
    alike = metrics.score(ours, reference_set=pictures_in(folders[1]))["kid"]
    assert "sizes" not in alike.warning
    mixed = metrics.score(ours, reference_set=pictures_in(others))["kid"]
    assert "of 2 sizes, 40x32 to 96x64: resizing them changes the figure" in mixed.warning


def test_the_list_of_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"psnr", "clip-i", "kid", "attributes"} <= {row["metric"] for row in rows}
    assert all(row["formula"] and row["source"] for row in rows)
