"""Options as data: the command line, the JSON schema and validation read the same annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Option, json_schema, options, validate


@dataclass(frozen=True, kw_only=True)
class Sample:
    scale: Annotated[float, Option("how strongly", metavar="S", ge=0, le=2)] = 0.8
    seed: Annotated[int | None, Option("the seed", ge=0)] = None
    mode: Annotated[Literal["live", "merged"], Option("of LoRA", flag="--lora-mode")] = "live"
    internal: str = ""


def test_the_command_line_reads_annotated_fields_only() -> None:
    found = {field.name: field for field in options(Sample)}
    assert list(found) == ["scale", "seed", "mode"]
    assert found["scale"].flag == "--scale"
    assert found["mode"].flag == "--lora-mode"
    assert found["scale"].default == 0.8


def test_the_json_schema_has_help_and_range() -> None:
    scale = json_schema(Sample)["properties"]["scale"]
    assert scale["description"] == "how strongly"
    assert (scale["minimum"], scale["maximum"], scale["default"]) == (0, 2, 0.8)


def test_validation() -> None:
    assert validate(Sample, {"scale": 1, "seed": 3}, what="request") == Sample(scale=1.0, seed=3)
    with pytest.raises(OptionError, match=r"request: scale: .*between 0 and 2"):
        validate(Sample, {"scale": 2.5}, what="request")
    with pytest.raises(OptionError, match="request: mode"):
        validate(Sample, {"mode": "other"}, what="request")
