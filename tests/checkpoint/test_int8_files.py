"""Adapter files in int8: a scale a row, read back by everything here, refused for others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import imageprompt as ip
from imageprompt import cli
from imageprompt.checkpoint.convert import convert
from imageprompt.checkpoint.inspect import inspect
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError

PLUS = bundled.adapter("plus")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "plus.safetensors"
    convert(PLUS, path, dtype="int8")
    return path


def test_every_row_is_within_half_a_step_of_its_source(int8: Path) -> None:
    before, stored = load_file(PLUS), load_file(int8)
    after = ip.Adapter.load(int8).module.state_dict()
    matrices = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert len(matrices) > 30
    assert all(stored[name].ndim == 2 for name in matrices)
    assert set(stored) == set(before) | {f"{name}_scale" for name in matrices}
    checked = 0
    for name in matrices:
        scale = stored[f"{name}_scale"][:, None]
        expected = stored[name].float() * scale
        assert ((expected - before[name].float()).abs() <= scale * 0.5001).all(), name
        assert (expected - before[name].float()).abs().max() > 0
        checked += any(tensor.shape == expected.shape and torch.equal(tensor, expected)
                       for tensor in after.values())  # fmt: skip
    assert checked == len(matrices)
    assert int8.stat().st_size < 0.55 * PLUS.stat().st_size


def test_the_file_says_what_it_is_and_how_others_can_read_it(int8: Path) -> None:
    report = inspect(int8)
    assert report.ok
    assert any("int8 with a scale for each row" in note for note in report.notes)
    first = next(advice.line for advice in report.remedies if advice.where == "first")
    assert first.endswith("adapter.safetensors --dtype float16")
    assert cli.main(["validate", str(int8)]) == 0


def test_for_others_it_becomes_float16_again(int8: Path, tmp_path: Path) -> None:
    convert(int8, tmp_path / "half.safetensors", dtype="float16")
    half = load_file(tmp_path / "half.safetensors")
    assert not any(name.endswith("_scale") for name in half)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    name = "ip_adapter.1.to_k_ip.weight"
    stored = load_file(int8)
    expected = stored[name].float() * stored[f"{name}_scale"][:, None]
    assert torch.equal(half[name], expected.half())


def test_rows_of_zeros_and_a_second_time(tmp_path: Path) -> None:
    tensors = load_file(PLUS)
    name = "ip_adapter.1.to_v_ip.weight"
    tensors[name][3] = 0
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="int8")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", dtype="int8")
    once, twice = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "c.safetensors")
    assert not once[name][3].any()
    whole = {key for key, tensor in once.items() if tensor.dtype == torch.int8}
    assert all(torch.equal(once[key], twice[key]) for key in whole)


@pytest.mark.parametrize(
    ("target", "layout"), [("a.bin", "bin"), ("a.bin", "standard"), ("a.safetensors", "xlabs")]
)
def test_layouts_that_only_others_read(target: str, layout: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="only imageprompt reads its scales"):
        convert(PLUS, tmp_path / target, layout, "int8")
    assert not list(tmp_path.iterdir())


def test_whole_numbers_without_their_scale_are_still_refused(int8: Path, tmp_path: Path) -> None:
    tensors = load_file(int8)
    del tensors["ip_adapter.1.to_k_ip.weight_scale"]
    save_file(tensors, tmp_path / "bare.safetensors")
    problems = inspect(tmp_path / "bare.safetensors").problems
    assert "whole-numbers" in {problem.code for problem in problems}
