"""Configs: keys, types, ranges, --set, and the examples that the command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imageprompt import cli
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.training.config.config import FREE_KEYS, TrainingConfig
from imageprompt.training.config.loop_config import TrainConfig
from imageprompt.variants import VARIANTS

NEEDED = {"data": "pictures", "output": "out"}
# Keys that others rely on: their names are fixed.
FIXED = (
    *("base", "encoder", "variant", "adapter", "data", "output", "cache", "resolution", "steps"),
    *("batch_size", "learning_rate", "seed", "checkpoint_every", "validate_every"),
    *("mixed_precision", "gradient_checkpointing"),
)
EXAMPLES = ("tiny-base", "tiny-plus", "sd15-base", "sd15-plus", "sdxl-plus")
EXAMPLES += ("faceid-sd15", "style-stage2")


def load(overrides: tuple[str, ...] = (), **keys: Any) -> TrainingConfig:
    return TrainingConfig.load(NEEDED | keys, overrides)


def test_the_fixed_keys_are_there() -> None:
    config = load()
    assert all(hasattr(config, key) for key in FIXED)
    assert set(FIXED) - FREE_KEYS <= config.identity().keys()
    assert not FREE_KEYS & config.identity().keys()
    assert vars(config).keys() >= FREE_KEYS


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_configs_with_comments(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--example", name]) == 0
    text = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(text)
    config = TrainingConfig.load(tmp_path / "config.yaml")
    assert config.variant in {variant.name for variant in VARIANTS}
    assert text.count("#") >= 5
    assert max(map(len, text.splitlines())) <= 100


def test_an_unknown_example_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--example", "tiny-bse"]) == 2
    assert "'tiny-base'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"learning_rte": 1}, "'learning_rte': there is no such key. Did you mean 'learning_rate'"),
        ({"drop": {"imge": 0.1}}, "'drop.imge': there is no such key. Did you mean 'drop.image'"),
        ({"validation": {"qqq": 1}}, "Keys of validation: references, count"),
        ({"steps": 1.5}, "'steps': 1.5: it has to be a whole number"),
        ({"steps": True}, "a whole number"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": "fast"}, "a number"),
        ({"learning_rate": float("nan")}, "a number"),
        ({"learning_rate": 11}, "at most 10"),
        ({"ema": 1.0}, "at most 0.999999"),
        ({"variant": 3}, "words"),
        ({"betas": [0.9]}, "a list of 2"),
        ({"betas": [0.9, 1.0]}, "two numbers from 0 to below 1"),
        ({"drop": 0.1}, "keys and values of its own"),
        ({"drop": {"image": 0.5, "text": 0.5, "both": 0.5}}, "add up to 1"),
        ({"mixed_precision": "bf32"}, "one of no, bf16, fp16"),
        ({"schedule": "cosine", "decay_from": 1}, "below 1"),
        ({"scales": [1, 0.5]}, "the lower end first"),
        ({"output": " "}, "a folder"),
        ({"data": None}, "'data': it is missing"),
        ({"gradient_checkpointing": "yes please"}, "true or false"),
        ({"validation": {"prompts": []}}, "at least one"),
        ({"validation": {"count": 0}}, "'validation.count': 0: it has to be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        load(**keys)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_yaml_words_are_read_as_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "data: {path: a, format: folder}\noutput: out\nlearning_rate: 1e-4\nmixed_precision: no\n"
        "steps: 200_000\nencoder:\nvalidation: {references: [a.png, b.png]}\n"
    )
    config = TrainingConfig.load(path)
    assert config.learning_rate == 1e-4
    assert config.mixed_precision == "no"
    assert config.steps == 200_000
    assert config.encoder is None
    assert config.data == {"path": "a", "format": "folder"}
    assert config.validation.references == ("a.png", "b.png")
    assert load(buckets=[[512, 768], [768, 512]]).buckets == ((512, 768), (768, 512))
    assert load(flip=0.3, buckets=True).flip == 0.3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 1\nsteps: 2\n", "key 'steps' is there twice (line 2)"),
        ("drop: {image: 0, image: 1}\n", "key 'image' is there twice"),
        ("- a\n", "it holds no keys"),
        ("", "it holds no keys"),
        ("a: [1\n", "it is no YAML"),
        ("!!python/object:os.system {}\n", "it is no YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(OptionError) as refused:
        TrainingConfig.load(path)
    assert words in str(refused.value)


def test_a_missing_file_and_a_command_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        TrainingConfig.load(tmp_path / "config.yaml")
    assert cli.main(["train"]) == 2
    assert "--example tiny-base" in capsys.readouterr().err


def test_set_changes_keys_inside_others_too() -> None:
    config = load(("drop.text=0.3", "learning_rate=1e-5", "data=elsewhere", "ema=0"))
    assert config.drop.text == 0.3
    assert config.drop.image == 0.05
    assert (config.learning_rate, config.data, config.ema) == (1e-5, "elsewhere", 0)
    assert NEEDED["data"] == "pictures"
    with pytest.raises(OptionError, match="not of the form key=value"):
        load(("steps",))
    with pytest.raises(OptionError, match="Did you mean 'steps'"):
        load(("stps=3",))


def test_what_the_loop_reads_comes_from_the_keys() -> None:
    loop = load(steps=7, batch_size=3, learning_rate=2e-4, checkpoint_every=5).loop()
    assert (loop.steps, loop.batch, loop.rate, loop.save_every) == (7, 3, 2e-4, 5)
    assert load(mixed_precision="fp16").loop().loss_scaling


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1, 1), ("cosine", 0.5, 0), ("linear", 0.5, 0)]
)
def test_the_rate_warms_up_and_falls(schedule: str, middle: float, end: float) -> None:
    config = TrainConfig(steps=1000, rate=1.0, warmup=10, schedule=schedule, decay_from=0.2)
    assert config.rate_at(0) == pytest.approx(0.1)
    assert config.rate_at(9) == config.rate_at(200) == 1
    assert config.rate_at(600) == pytest.approx(middle)
    assert config.rate_at(999) == pytest.approx(end, abs=2e-3)


def test_the_documentation_lists_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name.strip(" `") for row in rows for name in row.split(",")}
    assert vars(load()).keys() <= listed
