"""What trainers save of the reference's wrapper becomes the standard file, equal to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import imageprompt as ip
from imageprompt import cli
from trainers import SAVERS, SITES, Wrapper, standard, wrapper

CASES = [(host, kind) for host in SITES for kind in ("base", "plus", "faceid")]
LORA_KEYS = {"sd15": 32 * 8, "sdxl": 140 * 8}


def read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check(path: Path, made: Wrapper) -> None:
    """`path` holds exactly the wrapper's adapter, under standard names."""
    found, expected = read(path), standard(made)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())


@pytest.mark.sample(4)
@pytest.mark.parametrize("saver", SAVERS)
def test_every_way_of_saving(saver: str, tmp_path: Path) -> None:
    made = wrapper("sd15", "faceid")
    (tmp_path / "saved").mkdir()
    source = SAVERS[saver](made, tmp_path / "saved")
    before = {p: p.read_bytes() for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    target = tmp_path / "adapter.safetensors"
    assert cli.main(["convert", str(source), str(target)]) == 0
    check(target, made)
    assert ip.diff(source, target).same
    assert {p: p.read_bytes() for p in before} == before
    report = ip.inspect(source)
    assert report.format == "training"
    assert report.ok


@pytest.mark.sample(5)
@pytest.mark.parametrize("saver", ["accelerate_now", "accelerate_before", "save_model"])
@pytest.mark.parametrize(("host", "kind"), CASES)
def test_every_host_and_kind(host: str, kind: str, saver: str, tmp_path: Path) -> None:
    made = wrapper(host, kind)
    source = SAVERS[saver](made, tmp_path)
    target = tmp_path / "adapter.safetensors"
    done = ip.convert(source, target)
    check(target, made)
    sites = SITES[host].sites
    assert len([name for name in read(target) if "_ip.weight" in name]) == 2 * sites
    lora = [name for name in read(target) if "_lora." in name]
    assert len(lora) == (LORA_KEYS[host] if kind == "faceid" else 0)
    twice = saver == "accelerate_before"
    assert done.copies_compared == (2 * sites + len(lora)) * twice


def test_without_the_base_the_base_is_needed_and_enough(tmp_path: Path) -> None:
    """A checkpoint of trained parts only, of widths that no published base has."""
    made = wrapper("sd15", "base")
    state = {name: t for name, t in made.state_dict().items() if "_ip." in name or "proj_" in name}
    state = {name: t for name, t in state.items() if not name.startswith("adapter_modules.")}
    torch.save(state, tmp_path / "only.bin")
    made.unet.save_config(tmp_path / "unet")
    target = tmp_path / "adapter.safetensors"
    ip.convert(tmp_path / "only.bin", target, base=tmp_path)
    check(target, made)


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    made = wrapper("sd15", "base")
    state = {name: t.clone() for name, t in made.state_dict().items()}
    state["adapter_modules.5.to_k_ip.weight"][0, 0] += 1
    torch.save(state, tmp_path / "torn.bin")
    with pytest.raises(ip.ImagePromptError, match=r"5\.to_k_ip\.weight"):
        ip.convert(tmp_path / "torn.bin", tmp_path / "adapter.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["torn.bin"]
    report = ip.inspect(tmp_path / "torn.bin", deep=True)
    assert [problem.code for problem in report.problems] == ["copies-differ"]


@pytest.mark.parametrize("narrow", [None, torch.float16, torch.bfloat16])
def test_weights_that_were_never_trained_are_refused(
    narrow: torch.dtype | None, tmp_path: Path
) -> None:
    """K', V' still the copies that they start from; the frozen base may be in half precision."""
    made = wrapper("sd15", "base")
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    for name in state:
        if "_ip." in name and name.startswith("unet."):
            kind = "to_k" if "to_k_ip" in name else "to_v"
            layer = name.split(".processor.")[0]
            position = list(made.unet.attn_processors).index(f"{layer[5:]}.processor")
            state[name] = state[f"{layer}.{kind}.weight"]
            state[f"adapter_modules.{position}.{kind}_ip.weight"] = state[name]
    if narrow is not None:
        frozen = [name for name in state if name.startswith("unet.") and "processor" not in name]
        state |= {name: state[name].to(narrow) for name in frozen}
    torch.save(state, tmp_path / "start.bin")
    target = tmp_path / "adapter.safetensors"
    with pytest.raises(ip.ImagePromptError, match="nothing was trained"):
        ip.convert(tmp_path / "start.bin", target)
    assert not target.exists()
    done = ip.convert(tmp_path / "start.bin", target, force=True)
    assert [problem.code for problem in done.forced] == ["untrained"]
    # the base is not in the converted file any more: it has to be given
    assert ip.inspect(target, deep=True).ok
    SITES["sd15"].unet().save_pretrained(tmp_path / "base" / "unet")
    report = ip.inspect(target, deep=True, base=tmp_path / "base")
    assert [problem.code for problem in report.problems] == ["untrained"]
    assert [f.code for f in ip.validate(target, base=tmp_path / "base").findings] == ["untrained"]


def test_one_layer_as_it_was_is_no_fault(tmp_path: Path) -> None:
    """Some trainings leave layers out; only an adapter without one trained layer is refused."""
    made = wrapper("sd15", "base")
    name = next(name for name in made.state_dict() if name.endswith("to_k_ip.weight"))
    frozen = made.state_dict()[name.replace("processor.to_k_ip", "to_k")]
    made.get_submodule(name.rpartition(".")[0]).weight.data.copy_(frozen)
    torch.save(made.state_dict(), tmp_path / "nearly.bin")
    ip.convert(tmp_path / "nearly.bin", tmp_path / "adapter.safetensors")
    check(tmp_path / "adapter.safetensors", made)


def test_the_report_of_a_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = wrapper("sd15", "plus")
    source = SAVERS["accelerate_before"](made, tmp_path)
    target, report = tmp_path / "adapter.safetensors", tmp_path / "report.json"
    assert cli.main(["convert", str(source), str(target), "--report", str(report), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(report.read_text())
    assert data["format"] == "training"
    assert data["layout"] == "standard"
    assert data["tensors"] == len(standard(made))
    assert data["copies_compared"] == 32
    assert data["left_out"] == len(made.state_dict()) - len(standard(made)) - 32
    assert data["variants"] == ["plus", "plus-face"]
