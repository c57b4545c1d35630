"""Weights looked at and written without torch: the same verdicts and files as torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.checkpoint.tensor_bytes import constant, finite, full_hash, quick_hash, same_bytes
from imageprompt.checkpoint.torch_io import CastTensor, tensor_of, write_pickle, write_safetensors

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
LONG = 300_001  # values: more than one piece of a megabyte, and no round number


def stored(tensors: dict[str, Tensor], path: Path) -> dict[str, StoredTensor]:
    save_file(tensors, path)
    return dict(open_source(path).tensors)


def one(tensor: Tensor, folder: Path) -> StoredTensor:
    return stored({"x": tensor}, folder / f"{len(list(folder.iterdir()))}.safetensors")["x"]


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_every_16_bit_pattern_is_judged_as_by_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    """All patterns of the two top bytes: finite ones all together, each other one among them."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    size = dtype.itemsize
    raw = torch.zeros(65536, max(size, 2), dtype=torch.uint8)
    raw[:, -2:] = patterns.view(torch.uint8).view(-1, 2)
    values = (raw if size > 1 else raw[:, -1:]).contiguous().view(dtype).flatten()
    good = torch.isfinite(values.to(torch.float64))
    assert finite(one(values[good].contiguous(), tmp_path))
    assert not good.all()
    for bad in values[~good][:: max(1, int((~good).sum()) // 20)]:
        spoilt = values[good].clone()
        spoilt[len(spoilt) // 2] = bad
        assert not finite(one(spoilt, tmp_path))


def test_nan_in_the_last_value_of_a_long_tensor(tmp_path: Path) -> None:
    tensor = torch.randn(LONG)
    assert finite(one(tensor, tmp_path))
    tensor[-1] = float("nan")
    assert not finite(one(tensor, tmp_path))


def test_whole_numbers_are_finite(tmp_path: Path) -> None:
    assert finite(one(torch.full((9,), -1, dtype=torch.int32), tmp_path))


def test_constant(tmp_path: Path) -> None:
    tensor = torch.full((LONG,), 0.5)
    assert constant(one(tensor, tmp_path))
    tensor[-1] = 0.25
    assert not constant(one(tensor, tmp_path))
    assert not constant(one(torch.ones(1), tmp_path))


def test_equal_to_the_bit(tmp_path: Path) -> None:
    tensor = torch.randn(LONG)
    a, b = one(tensor, tmp_path), one(tensor.clone(), tmp_path)
    assert same_bytes(a, b)
    assert not same_bytes(a, one(tensor.view(1, -1), tmp_path))
    assert not same_bytes(a, one(tensor.view(torch.int32), tmp_path))
    tensor[-1] += 1
    assert not same_bytes(a, one(tensor, tmp_path))


def test_hashes_tell_names_shapes_dtypes_and_bytes(tmp_path: Path) -> None:
    def hashes(tensors: dict[str, Tensor]) -> tuple[str, str]:
        at = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        found = stored({name: t.clone() for name, t in tensors.items()}, at)
        other_order = dict(reversed(found.items()))
        assert quick_hash(found) == quick_hash(other_order)
        assert full_hash(found) == full_hash(other_order)
        return quick_hash(found), full_hash(found)

    x = torch.randn(200, 300)
    other_end, inside = x.clone(), x.clone()
    other_end[-1, -1] += 1
    inside[100, 150] += 1
    first = hashes({"x": x, "y": x})
    assert first == hashes({"y": x, "x": x})
    others = [{"x": x, "z": x}, {"x": x, "y": x.view(300, 200)}, {"x": x, "y": other_end}]
    for other in others:
        assert all(a != b for a, b in zip(first, hashes(other), strict=True))
    quick, full = hashes({"x": x, "y": inside})
    assert quick == first[0]  # as its docstring says
    assert full != first[1]


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).half(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "long": torch.randn(LONG),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "none": torch.zeros(0, 4),
        "brain": torch.randn(11).bfloat16(),
    }
    found = stored(tensors, tmp_path / "a.safetensors")
    written = tmp_path / "b.safetensors"
    heard: list[int] = []
    write_safetensors(written, found, {"key": "värde"}, heard.append)
    with safe_open(written, framework="pt") as file:
        assert file.metadata() == {"key": "värde"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), t) for name, t in tensors.items())
    assert sum(heard) == sum(t.numel() * t.itemsize for t in tensors.values())
    for name, tensor in open_source(written).tensors.items():
        assert tensor.offset % tensors[name].itemsize == 0


@pytest.mark.parametrize("nested", [True, False])
def test_pickles_are_what_torch_reads(nested: bool, tmp_path: Path) -> None:
    tensors = {"a.x.weight": torch.randn(3, 4), "b.y": torch.randn(2).bfloat16()}
    found = stored(tensors, tmp_path / "a.safetensors")
    write_pickle(tmp_path / "a.bin", found, nested=nested)
    read = torch.load(tmp_path / "a.bin", weights_only=True)
    if nested:
        assert list(read) == ["a", "b"]
        read = {f"{part}.{name}": t for part, ts in read.items() for name, t in ts.items()}
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(read[name], t) and t.dtype == read[name].dtype for name, t in tensors.items()
    )


@pytest.mark.parametrize("to", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_casts_round_as_torch_does(dtype: torch.dtype, to: str, tmp_path: Path) -> None:
    tensor = torch.randn(LONG // 4).to(dtype)
    cast = CastTensor.of(one(tensor, tmp_path), to)
    assert cast.nbytes == sum(len(chunk) for chunk in cast.chunks(1000))
    assert torch.equal(tensor_of(cast), tensor.to(FLOATS[to]))


def test_whole_numbers_are_not_cast(tmp_path: Path) -> None:
    found = one(torch.arange(5), tmp_path)
    assert CastTensor.of(found, "F16") is found
