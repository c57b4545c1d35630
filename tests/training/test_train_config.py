"""Configs: keys, types, ranges, --set, and the examples that the command writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.schema import json_schema
from imageprompt.training.config.config import (
    FREE_KEYS,
    ConditionDropout,
    TrainingConfig,
    ValidationConfig,
)
from imageprompt.training.data.sources import DataOptions
from imageprompt.variants import VARIANTS

NEEDED = {"data": "pictures", "output": "out"}
# Keys that others rely on: their names are fixed.
FIXED = (
    *("base", "encoder", "variant", "adapter", "data", "output", "cache", "resolution", "steps"),
    *("batch_size", "learning_rate", "seed", "checkpoint_every", "validate_every"),
    *("mixed_precision", "gradient_checkpointing"),
)
EXAMPLES = ("tiny-base", "tiny-plus", "sd15-base", "sd15-plus", "sdxl-plus")
EXAMPLES += ("faceid-sd15", "style-stage2", "tiny-sd3", "sd35-plus", "flux-plus")
EXAMPLES += ("qwen-image-plus", "z-image-plus", "pixart-plus", "sana-plus")


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
        ({"learning_rte": 1}, "'learning_rte': unknown key. Did you mean 'learning_rate'"),
        ({"drop": {"imge": 0.1}}, "'drop.imge': unknown key. Did you mean 'drop.image'"),
        ({"validation": {"qqq": 1}}, "Keys of validation: references, count"),
        ({5: 1}, "'5': unknown key"),
        ({"steps": 1.5}, "'steps': 1.5: must be a whole number"),
        ({"steps": True}, "'steps': True: must be a whole number"),
        ({"steps": [1]}, "'steps': [1]: must be a whole number"),
        ({"steps": 0}, "'steps': 0: must be at least 1"),
        ({"learning_rate": "fast"}, "'learning_rate': 'fast': must be a number"),
        ({"learning_rate": float("nan")}, "'learning_rate': nan: must be a number"),
        ({"learning_rate": 11}, "must be between 1e-12 and 10"),
        ({"ema": 1.0}, "must be between 0 and 0.999999"),
        ({"variant": 3}, "must be text"),
        ({"betas": [0.9]}, "must be a list of 2"),
        ({"betas": [0.9, 1.0]}, "must be at least 0 and below 1"),
        ({"betas": [0.9, "x"]}, "must be a number"),
        ({"buckets": [[512]]}, "'buckets': [[512]]: must be a list of 2"),
        ({"buckets": "x"}, "must be true or false or a list"),
        ({"drop": 0.1}, "must be a mapping of keys to values"),
        ({"drop": {"image": 0.5, "text": 0.5, "both": 0.5}}, "must add up to at most 1"),
        ({"drop": {"image": -0.1}}, "'drop.image': -0.1: must be between 0 and 1"),
        ({"timesteps": {"mean": float("inf")}}, "'timesteps.mean': inf: must be a number"),
        ({"flip": 3}, "must be between 0 and 1"),
        ({"mixed_precision": "bf32"}, "must be one of no, bf16, fp16"),
        ({"schedule": "cosine", "decay_from": 1}, "must be below 1 with schedule: cosine"),
        ({"scales": [1, 0.5]}, "must be [lowest, highest]"),
        ({"output": " "}, "must name a folder"),
        ({"data": None}, "'data': missing. Add a line `data: ...`"),
        ({"data": 3}, "must be text or a mapping of keys to values"),
        ({"gradient_checkpointing": "yes please"}, "must be true or false"),
        ({"validation": {"prompts": []}}, "'validation.prompts': (): must not be empty"),
        ({"validation": {"prompts": "x"}}, "must be a list"),
        ({"validation": {"count": 0}}, "'validation.count': 0: must be at least 1"),
        ({"base": "tiny"}, "the bundled stack is called 'bundled'. Write base: bundled"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(keys: dict[Any, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        TrainingConfig.load(NEEDED | keys)
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
    assert (load(steps="2e3").steps, load(flip=1).flip, load(ema=0).ema) == (2000, 1.0, 0.0)
    assert load(cache=None, tokens=None).cache is None


def test_a_config_made_in_python_is_checked_too() -> None:
    for keys, words in (
        ({"steps": 0}, "config key 'steps': 0: must be at least 1"),
        ({"validation": ValidationConfig(steps=0)}, "'validation.steps': 0: must be at least 1"),
        ({"drop": ConditionDropout(both=2)}, "'drop.both': 2: must be between 0 and 1"),
    ):
        with pytest.raises(OptionError) as refused:
            TrainingConfig(**NEEDED | keys)  # type: ignore[arg-type]
        assert words in str(refused.value)


def test_the_json_schema_describes_every_key() -> None:
    schema = json_schema(TrainingConfig)
    keys = schema["properties"]
    assert keys.keys() == vars(load()).keys()
    assert schema["required"] == ["data", "output"]
    assert schema["additionalProperties"] is False
    assert all(key.get("description") for key in keys.values())
    assert (keys["steps"]["type"], keys["steps"]["minimum"]) == ("integer", 1)
    assert (keys["ema"]["minimum"], keys["ema"]["maximum"]) == (0, 0.999999)
    assert keys["mixed_precision"]["enum"] == ["no", "bf16", "fp16"]
    assert keys["learning_rate"]["default"] == 1e-4
    dropout = schema["$defs"]["ConditionDropout"]["properties"]
    assert dropout["text"]["maximum"] == 1
    assert "anon: true" in json_schema(DataOptions)["properties"]["storage"]["description"]


def test_neither_torch_nor_pydantic_is_loaded_before_a_config_is_read() -> None:
    code = (
        "import sys\nfrom imageprompt.training.config.config import TrainingConfig\n"
        "assert not {'pydantic', 'torch'} & set(sys.modules)\n"
        "TrainingConfig.load({'data': 'x', 'output': 'y'})\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 1\nsteps: 2\n", "key 'steps' appears twice (line 2)"),
        ("drop: {image: 0, image: 1}\n", "key 'image' appears twice"),
        ("- a\n", "contains no keys"),
        ("", "contains no keys"),
        ("a: [1\n", "not valid YAML"),
        ("!!python/object:os.system {}\n", "not valid YAML"),
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


def test_the_loss_is_scaled_in_half_precision_only() -> None:
    assert load(mixed_precision="fp16").loss_scaling
    assert not load(mixed_precision="bf16").loss_scaling


def test_the_bundled_stack_is_the_default_base() -> None:
    assert load().base == bundled.NAME == "bundled"
    assert load(base="./tiny").base == "./tiny"


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1, 1), ("cosine", 0.5, 0), ("linear", 0.5, 0)]
)
def test_the_rate_warms_up_and_falls(schedule: str, middle: float, end: float) -> None:
    config = load(steps=1000, learning_rate=1, warmup=10, schedule=schedule, decay_from=0.2)
    assert config.rate_at(0) == pytest.approx(0.1)
    assert config.rate_at(9) == config.rate_at(200) == 1
    assert config.rate_at(600) == pytest.approx(middle)
    assert config.rate_at(999) == pytest.approx(end, abs=2e-3)


def test_the_documentation_lists_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name.strip(" `") for row in rows for name in row.split(",")}
    assert vars(load()).keys() <= listed
