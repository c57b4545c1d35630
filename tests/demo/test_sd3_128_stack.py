"""The stack for larger scenes, before its weights: its references, and what refuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError
from imageprompt.demo import worlds

NAME = bundled.SD3_128


def test_it_is_not_listed_before_its_weights_are_there() -> None:
    assert NAME not in bundled.FOLDERS
    with pytest.raises(NotFoundError, match="its files are missing"):
        bundled.folder(NAME)


def test_what_knows_small_scenes_only_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", NAME, "--count", "1"]
    assert cli.main(["evaluate", "--adapter", "plus", "--output", str(tmp_path), *flags]) == 2
    assert "drawn ones suit bundled and bundled-sd3 only" in capsys.readouterr().err
    assert cli.main(["probe", *flags]) == 2
    assert "drawn references suit bundled and bundled-sd3 only" in capsys.readouterr().err


def test_demo_references_contradict_in_one_word() -> None:
    for shown in worlds.LARGE.references(3, 12):
        differ = [name for name, word in shown.words.items() if shown.expected[name] != word]
        assert differ == [shown.changed]
        assert shown.expected[shown.changed] in shown.text
        assert "photographic" not in [*shown.words.values(), *shown.expected.values()]
        assert np.asarray(shown.picture).shape == (128, 128, 3)
