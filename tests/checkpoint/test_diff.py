"""diff: numbers as torch computes them, whatever the layouts and dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_convert import source
from torch import Tensor

import imageprompt as ip
from imageprompt import cli
from trainers import SAVERS, standard, wrapper

NAME = "ip_adapter.5.to_v_ip.weight"


def pair(folder: Path, **changes: Tensor | None) -> tuple[Path, Path]:
    """The same adapter twice, with some tensors of the second changed or left out."""
    (folder / "b").mkdir()
    return source(folder), source(folder / "b", **changes)


def test_the_same_weights_in_two_layouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = wrapper("sdxl", "faceid")
    checkpoint = SAVERS["accelerate_now"](made, tmp_path)
    ip.convert(checkpoint, tmp_path / "adapter.bin")
    assert cli.main(["diff", str(checkpoint), str(tmp_path / "adapter.bin")]) == 0
    out = capsys.readouterr().out
    assert f"{len(standard(made))} tensors are equal to the bit, 0 differ" in out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_numbers_are_those_of_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = standard(wrapper("sd15", "base"))[NAME]
    theirs = (ours + 0.01 * torch.randn_like(ours)).to(dtype)
    (change,) = ip.diff(*pair(tmp_path, **{NAME: theirs})).changed
    x, y = ours.double(), theirs.double()
    assert change.name == NAME
    assert change.max_abs == pytest.approx((x - y).abs().max().item())
    assert change.relative == pytest.approx(((x - y).norm() / x.norm()).item())
    assert change.cosine == pytest.approx(torch.cosine_similarity(x.ravel(), y.ravel(), 0).item())


def test_long_tensors_of_two_dtypes_are_walked_through_side_by_side(tmp_path: Path) -> None:
    long = torch.randn(900, 1000)
    for name, tensor in (("a", long), ("b", long.bfloat16())):
        state = {k: t.contiguous() for k, t in standard(wrapper("sd15", "base")).items()}
        save_file({**state, "image_proj.proj.weight": tensor}, tmp_path / f"{name}.safetensors")
    found = ip.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    (change,) = found.changed
    gap = long.double() - long.bfloat16().double()
    assert change.max_abs == pytest.approx(gap.abs().max().item())
    assert change.relative == pytest.approx((gap.norm() / long.double().norm()).item())


def test_one_sided_misshapen_and_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, nan = "ip_adapter.7.to_k_ip.weight", "ip_adapter.9.to_k_ip.weight"
    bad = standard(wrapper("sd15", "base"))[nan].clone()
    bad[0, 0] = float("nan")
    changes = {NAME: None, shape: torch.ones(3, 4), nan: bad, "image_proj.extra": torch.ones(2)}
    a, b = pair(tmp_path, **changes)
    assert cli.main(["diff", str(a), str(b), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["same"] is False
    assert data["only_a"] == [NAME]
    assert data["only_b"] == ["image_proj.extra"]
    changed = {change["name"]: change for change in data["changed"]}
    assert changed.keys() == {shape, nan}
    assert all(change["max_abs"] is None for change in changed.values())
    assert data["equal"] == 33
    assert cli.main(["diff", str(a), str(b)]) == 1
    text = capsys.readouterr().out
    assert "shape [32, 24] in A, [3, 4] in B" in text
    assert "NaN or infinite" in text
    assert "only in B" in text


def test_zeros_have_no_direction(tmp_path: Path) -> None:
    zero = torch.zeros_like(standard(wrapper("sd15", "base"))[NAME])
    a, b = pair(tmp_path, **{NAME: zero})
    (there,), (back,) = ip.diff(a, b).changed, ip.diff(b, a).changed
    assert (there.relative, there.cosine) == (pytest.approx(1.0), None)
    assert (back.relative, back.cosine) == (None, None)
    assert there.max_abs == back.max_abs


def test_many_differences_are_summarised(tmp_path: Path) -> None:
    states = [standard(wrapper("sd15", "base")), standard(wrapper("sd15", "base"))]
    states[1] = {name: tensor + 1 for name, tensor in states[1].items()}
    for name, state in zip("ab", states, strict=True):
        save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / f"{name}.safetensors")
    found = ip.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert len(found.changed) == 36
    assert "and 16 more" in str(found)
    assert len(str(found).splitlines()) < 30


def test_no_adapter_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert cli.main(["diff", str(source(tmp_path)), str(tmp_path / "x.safetensors")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
