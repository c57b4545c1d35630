"""Budgets, files that are opened, and JSON, as every reader of a stranger's file uses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imageprompt.core.untrusted import (
    Budget,
    LimitError,
    is_inside,
    open_regular,
    parse_json,
    read_regular,
)


def test_a_budget_is_spent_before_the_work() -> None:
    budget = Budget(nbytes=10, items=2)
    budget.read(10)
    with pytest.raises(LimitError, match="more than 10 bytes"):
        budget.read(1)
    budget.add(2)
    with pytest.raises(LimitError, match="more than 2 items"):
        budget.add()
    with pytest.raises(LimitError):
        Budget().read(-1)


def test_what_a_file_costs_counts_for_its_folder() -> None:
    folder = Budget(items=10)
    for _ in range(2):
        Budget(items=5, within=folder).add(4)
    third = Budget(items=5, within=folder)
    assert third.items_left == 2
    with pytest.raises(LimitError, match="more than 10 items"):
        third.add(4)


def test_each_file_allows_some_more_to_be_unpacked() -> None:
    budget = Budget(unpacked=100)
    budget.allow(50)
    budget.unpack(150)
    with pytest.raises(LimitError, match="more than 150 unpacked bytes"):
        budget.unpack(1)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is a"):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file", 3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes; the limit is 2"):
        read_regular(tmp_path / "file", 2)


def test_links_stay_inside(tmp_path: Path) -> None:
    named = tmp_path / "named"
    (named / "deep").mkdir(parents=True)
    for path in (tmp_path / "private", named / "file"):
        path.write_bytes(b"abc")
    (named / "in").symlink_to("deep/../file")
    (named / "out").symlink_to("../private")
    (tmp_path / "other name").symlink_to("named")
    assert is_inside(named / "in", named)
    assert is_inside(tmp_path / "other name" / "in", named)
    assert is_inside(named / "in", tmp_path / "other name")
    assert not is_inside(named / "out", named)
    with pytest.raises(OSError, match="leads out of"):
        open_regular(named / "out", inside=named)
    with pytest.raises(OSError, match="leads out of"):  # and not whether it exists
        open_regular(named / ".." / "gone", inside=named)


@pytest.mark.parametrize("kind", ["models--owner--name", "datasets--owner--name"])
def test_files_of_a_hub_cache_are_inside(kind: str, tmp_path: Path) -> None:
    snapshot = tmp_path / kind / "snapshots" / "0123"
    (snapshot / "unet").mkdir(parents=True)
    for blobs in (tmp_path / kind / "blobs", tmp_path / "models--other" / "blobs"):
        blobs.mkdir(parents=True)
        (blobs / "sha").write_bytes(b"abc")
    (snapshot / "unet" / "a").symlink_to("../../../blobs/sha")
    (snapshot / "unet" / "b").symlink_to("../../../../models--other/blobs/sha")
    for folder in (snapshot, snapshot / "unet"):
        assert is_inside(snapshot / "unet" / "a", folder)
        assert not is_inside(snapshot / "unet" / "b", folder)
    assert not is_inside(snapshot / "unet" / "a", tmp_path / kind / "snapshots")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 66 + "]" * 66, "nested more than 64 deep"),
        ("[NaN]", "NaN is not a number"),
        ("1e999", "too large"),
        ("9" * 41, "a number of 41 digits"),
        ('{"a":1,"a":2}', "the same name appears twice"),
        (b"[1,2,3,4,5]", "more than 4 items"),
    ],
)
def test_json_within_limits(text: str | bytes, says: str) -> None:
    budget = Budget(items=4) if isinstance(text, bytes) else Budget()
    with pytest.raises(ValueError, match=says):
        parse_json(text, budget, unique=True)
