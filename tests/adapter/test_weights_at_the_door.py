"""Weights and features that are not finite stop at the door; float8 is read, and that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import imageprompt as ip
from imageprompt.core.errors import AdapterFileError, EncoderError, PromptError
from imageprompt.encoding.image_prompt import ImagePrompt
from tiny_stack import make_pipeline

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    return make_pipeline()


@pytest.fixture
def path(pipe: Any, tmp_path: Path) -> Path:
    adapter = ip.Adapter.create("base", denoiser=pipe, encoder=pipe.image_encoder)
    adapter.save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("part", ["image_proj.proj.weight", "ip_adapter.1.to_v_ip.weight"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_file_with_numbers_that_are_none(path: Path, part: str, number: float) -> None:
    tensors = load_file(path)
    name = part if part in tensors else next(n for n in tensors if n.endswith("to_v_ip.weight"))
    tensors[name][1, :3] = number
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=rf"3 of .* in 1 of .*{name}.*Training has diverged"):
        ip.Adapter.load(path)


def test_large_numbers_are_no_fault(path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    tensors["image_proj.proj.weight"].fill_(60000)  # their sum is beyond half precision
    save_file(tensors, path)
    assert ip.Adapter.load(path).module.image_proj.proj.weight.max() == 60000
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    tensors["image_proj.proj.weight"].fill_(3e38)
    save_file(tensors, path)
    ip.Adapter.load(path)


@pytest.mark.parametrize("small", FLOAT8)
def test_float8(path: Path, small: torch.dtype, pipe: Any) -> None:
    tensors = {name: tensor.to(small) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    with pytest.warns(UserWarning, match=r"12 of 12 tensors are float8.*read as float16") as said:
        adapter = ip.Adapter.load(path)
    assert len(said) == 1
    for name, weight in adapter.module.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight.float(), tensors[name].float())
    with pytest.warns(UserWarning, match="read as float32"):
        wide = ip.Adapter.load(path, dtype=torch.float32)
    wide.attach(pipe)
    with wide.use(wide.encode(features=torch.randn(1, 24))), torch.no_grad():
        out = pipe.unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 3, 32)).sample
    assert torch.isfinite(out).all()
    wide.detach()
    tensors["image_proj.proj.weight"].view(torch.uint8)[0, 0] = 0x7F  # NaN in both
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=r"1 of .* NaN or infinite"):
        ip.Adapter.load(path)


def test_whole_numbers(path: Path) -> None:
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("to_k_ip.weight"))
    tensors[name] = (tensors[name] * 50).to(torch.int8)
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=r"int8 without scales.*quantised from"):
        ip.Adapter.load(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_features_and_tokens(path: Path, pipe: Any, number: float) -> None:
    adapter = ip.Adapter.load(path)
    features = torch.randn(2, 24)
    features[1, 3] = number
    with pytest.raises(EncoderError, match="1 of 48 numbers are NaN or infinite"):
        adapter.encode(features=features)
    with pytest.raises(EncoderError, match="NaN or infinite"):
        adapter.encode(features=torch.randn(1, 24), null_features=features[1:])
    tokens = torch.zeros(1, 4, 32)
    tokens[0, 0, 0] = number
    for given in ((tokens,), (torch.zeros(1, 4, 32), tokens)):
        with pytest.raises(PromptError, match="1 of 128 numbers are NaN or infinite"):
            ImagePrompt(*given)
