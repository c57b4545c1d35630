"""However people wrap and post an adapter, its tensors stay the same; two readings are an error."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from bases import SD15, SDXL, meta_unet
from hostile import header, write
from imageprompt import cli
from imageprompt.checkpoint.identify.checks import canonical, copies_differ
from imageprompt.checkpoint.identify.identify import Identification, identify
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource
from imageprompt.checkpoint.torch_io import tensor_of
from published import PUBLISHED, Shapes

NAMES = ["ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-faceid_sd15", "ip-adapter_sdxl"]
BASES = {"sd15": SD15, "sdxl": SDXL}
SPELLINGS = ["", "unet.", "unet.module."]


def source(shapes: Shapes) -> TensorSource:
    """A source of these tensors that lie nowhere; each is told by its storage, its first name."""
    path = Path("somewhere")
    tensors = {name: StoredTensor("F16", s, path, 0, name) for name, s in shapes.items()}
    return TensorSource(path, (path,), "safetensors", tensors)


@cache
def layers(host: str) -> tuple[str, ...]:
    """Names of the attention layers in the order of their ids, from diffusers."""
    names = meta_unet(BASES[host]).attn_processors
    return tuple(name.removesuffix(".processor") for name in names)


def by_layer(name: str, host: str, before: str, processor: str) -> str:
    """`5.to_k_ip.weight` as the path of its layer."""
    i, rest = name.split(".", 1)
    return f"{before}{layers(host)[int(i)]}{processor}.{rest}"


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    projector=st.lists(st.sampled_from(["image_proj", "image_proj_model"]), min_size=1, max_size=2),
    sites=st.lists(st.sampled_from(["ip_adapter", "adapter_modules"]), min_size=1, max_size=3),
    outer=st.lists(
        st.sampled_from(["model", "module", "state_dict", "_orig_mod", "ip_adapter"]), max_size=3
    ),
    spelling=st.none() | st.tuples(st.sampled_from(SPELLINGS), st.sampled_from(["", ".processor"])),
)
def test_any_wrapping_reads_to_the_same_tensors(
    name: str,
    projector: list[str],
    sites: list[str],
    outer: list[str],
    spelling: tuple[str, str] | None,
) -> None:
    file = PUBLISHED[name]
    plain = file.shapes()
    wrapped: dict[str, str] = {}
    for key in plain:
        part, rest = key.split(".", 1)
        if part == "ip_adapter" and spelling:
            rest = by_layer(rest, file.host, *spelling)
        inside = projector if part == "image_proj" else sites
        wrapped[".".join([*outer, *inside, rest])] = key
    found = identify(source({new: plain[old] for new, old in wrapped.items()}))
    assert found.problems == ()
    assert (found.host, found.variants) == (file.host, file.variants)
    read = {key: wrapped[str(tensor.storage)] for key, tensor in canonical(found.parts).items()}
    assert read == {key: key for key in plain}
    assert not found.copies


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_posted_files_are_converted_bit_for_bit(spelling: str, suffix: str, tmp_path: Path) -> None:
    """The snippet that goes round: image_proj, and ip_adapter by the path of its layers."""
    from trainers import SITES as TINY
    from trainers import standard, wrapper

    expected = standard(wrapper("sd15", "base"))
    unet = TINY["sd15"].unet()
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    parts: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in expected.items():
        part, rest = key.split(".", 1)
        if part == "ip_adapter":
            i, rest = rest.split(".", 1)
            rest = f"{spelling}{names[int(i)]}.processor.{rest}"
        parts[part][rest] = tensor
    path, target = tmp_path / f"posted{suffix}", tmp_path / "adapter.safetensors"
    if suffix == ".bin":
        torch.save({"model": {"ip_adapter": parts["ip_adapter"]}, **parts}, path)
    else:
        save_file(
            {f"{p}.{n}": t.clone() for p, inner in parts.items() for n, t in inner.items()}, path
        )
    unet.save_config(tmp_path / "unet")
    done = ip.convert(path, target, base=tmp_path)
    assert done.copies_compared == (len(parts["ip_adapter"]) if suffix == ".bin" else 0)
    written = {name: tensor_of(t) for name, t in open_source(target).tensors.items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


# ── two readings ─────────────────────────────────────────────────────────────────────────────────


def twin() -> dict[str, Tensor]:
    return PUBLISHED["ip-adapter_sd15"].small("sd15")


@pytest.mark.parametrize(
    "other",
    ["model.ip_adapter.", "ip_adapter.ip_adapter.", "adapter_modules.", "module.ip_adapter."],
)
def test_two_prefixes_with_different_tensors(other: str, tmp_path: Path) -> None:
    state = twin()
    first = "ip_adapter.3.to_k_ip.weight"
    second = first.replace("ip_adapter.", other, 1)
    state[second] = state[first].clone()
    save_file(state, tmp_path / "same.safetensors")
    assert ip.validate(tmp_path / "same.safetensors").ok
    state[second][0, 0] += 1
    path = tmp_path / "file.safetensors"
    save_file(state, path)
    with pytest.raises(ip.ImagePromptError, match="copies differ") as caught:
        ip.Adapter.load(path)
    assert first in str(caught.value)
    assert second in str(caught.value)
    assert [finding.code for finding in ip.validate(path).findings] == ["copies-differ"]
    assert second in ip.validate(path).findings[0].message


def test_two_tables_with_different_tensors(tmp_path: Path) -> None:
    """{"model": ..., "state_dict": ...}: neither is taken for the right one."""
    state = twin()
    torch.save({"model": state, "state_dict": state}, tmp_path / "same.bin")
    assert ip.validate(tmp_path / "same.bin").ok
    changed = {**state, "ip_adapter.3.to_k_ip.weight": state["ip_adapter.3.to_k_ip.weight"] + 1}
    torch.save({"model": state, "state_dict": changed}, tmp_path / "file.bin")
    (finding,) = ip.validate(tmp_path / "file.bin").findings
    assert "(model.ip_adapter.3" in finding.message
    assert "state_dict.ip_adapter.3" in finding.message


def test_layer_and_id_that_disagree() -> None:
    shapes = dict(PUBLISHED["ip-adapter_sd15"].shapes())
    rest = "5.to_k_ip.weight"
    named = f"ip_adapter.{by_layer(rest, 'sd15', 'unet.', '.processor')}"
    found = identify(source({**shapes, named: shapes[f"ip_adapter.{rest}"]}))
    ((name, one, other),) = found.copies
    assert (name, one.storage, other.storage) == (f"ip_adapter.{rest}", name, named)
    torn = source({**shapes, named: shapes[f"ip_adapter.{rest}"]})
    wider = {**torn.tensors, named: replace(torn.tensors[named], dtype="F32")}
    (problem,) = copies_differ(identify(replace(torn, tensors=wider)))
    assert f"ip_adapter.{rest} and {named}" in problem.message


# ── counted ids ──────────────────────────────────────────────────────────────────────────────────


def counted(host: str, step: int, order: str = "own") -> tuple[Shapes, dict[str, str]]:
    """A base adapter whose sites are counted over the cross-attention layers; new -> right name."""
    shapes = PUBLISHED[f"ip-adapter_{host}"].shapes()
    sites = [i for i, name in enumerate(layers(host)) if name.endswith("attn2")]
    if order == "sampling":
        sites.sort(key=lambda i: ["down", "mid_", "up_b"].index(layers(host)[i][:4]))
    new = {str(i): str(step * n) for n, i in enumerate(sites)}
    names = {}
    for key in shapes:
        part, i, rest = key.split(".", 2)
        names[f"{part}.{new[i]}.{rest}" if part == "ip_adapter" else key] = key
    return {name: shapes[key] for name, key in names.items()}, names


def right(found: Identification, names: dict[str, str]) -> bool:
    read = {key: names[str(t.storage)] for key, t in canonical(found.parts).items()}
    return all(key == old for key, old in read.items()) and len(read) == len(names)


@pytest.mark.parametrize("order", ["own", "sampling"])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("host", ["sd15", "sdxl"])
def test_counted_ids_are_named_and_renumbered_if_asked(host: str, step: int, order: str) -> None:
    shapes, names = counted(host, step, order)
    found = identify(source(shapes))
    (problem,) = found.problems
    assert problem.code == "counted-ids"
    start = "0, 1, 2" if step == 1 else "0, 2, 4"
    assert f"site ids are counted {start}, ...: not those of the file format (1, 3, 5, ..." in (
        problem.message
    )
    assert ("attn_processors" if order == "own" else "down, middle, up") in problem.message
    assert "--renumber" in problem.message
    assert (found.host, found.variants) == (host, ("base",))
    asked = identify(source(shapes), renumber=True)
    assert asked.problems == ()
    assert right(asked, names)
    assert host in asked.notes[0]


def test_an_order_that_no_shape_allows_is_not_renumbered() -> None:
    shapes, _ = counted("sd15", 1)
    swapped = {"0": "15", "15": "0"}
    odd = {}
    for name, shape in shapes.items():
        part, i, rest = name.split(".", 2)
        odd[f"{part}.{swapped.get(i, i)}.{rest}" if part == "ip_adapter" else name] = shape
    for renumber in (False, True):
        found = identify(source(odd), renumber=renumber)
        assert found.problems[0].code == "counted-ids"
        assert "cannot be renumbered" in found.problems[0].message


@pytest.mark.parametrize("name", ["FLUX.1-dev-IP-Adapter", "SD3.5-Large-IP-Adapter"])
def test_formats_that_count_from_zero_are_left_alone(name: str) -> None:
    from published import OTHERS

    shapes = OTHERS[name].shapes()
    assert identify(source(shapes), renumber=True).problems == ()
    assert identify(source(shapes)).problems == ()


def test_counted_ids_through_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a base of one's own: only with --renumber, and equal to the bit."""
    from hosts_table import CASES

    state = twin()
    unet: Any = CASES["sd15"].unet()
    unet.save_config(tmp_path / "unet")
    ids = sorted({int(name.split(".")[1]) for name in state if name.startswith("ip_adapter")})
    wrong = {}
    for name, tensor in state.items():
        part, i, rest = name.split(".", 2)
        wrong[f"{part}.{ids.index(int(i))}.{rest}" if part == "ip_adapter" else name] = tensor
    path, target = tmp_path / "counted.safetensors", tmp_path / "adapter.safetensors"
    save_file(wrong, path)
    command = ["convert", str(path), str(target), "--base", str(tmp_path)]
    assert cli.main(command) == 2
    assert "counted 0, 1, 2" in capsys.readouterr().err
    assert cli.main(["inspect", str(path), "--base", str(tmp_path)]) == 1
    assert "--renumber" in capsys.readouterr().out
    assert cli.main([*command, "--renumber"]) == 0
    assert "attn_processors" in capsys.readouterr().out
    written = {name: tensor_of(t) for name, t in open_source(target).tensors.items()}
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    with pytest.raises(ip.ImagePromptError, match=r"site ids are counted 0, 1, 2, \.\.\."):
        ip.Adapter.load(path).attach(unet)


# ── dtypes, InstantID ────────────────────────────────────────────────────────────────────────────


def test_float8_is_told_and_whole_numbers_are_a_problem(tmp_path: Path) -> None:
    state = twin()
    small = {n: t.to(torch.float8_e4m3fn) for n, t in state.items() if n.startswith("ip_adapter")}
    path = tmp_path / "float8.safetensors"
    save_file({**state, **small}, path)
    note = "weights are float8_e4m3fn: loaded as float16"
    report, result = ip.inspect(path), ip.validate(path)
    assert note in report.notes
    assert report.ok
    assert result.ok
    assert note in str(result)
    path = tmp_path / "int8.safetensors"
    save_file({**state, **{name: tensor.to(torch.int8) for name, tensor in small.items()}}, path)
    assert [problem.code for problem in ip.inspect(path).problems] == ["whole-numbers"]
    assert "whole-numbers" in [finding.code for finding in ip.validate(path).findings]
    assert "int8 without scales, and cannot be loaded" in str(ip.validate(path))
    with pytest.raises(ip.ImagePromptError, match="without scales"):
        ip.Adapter.load(path)


def test_how_many_numbers_are_not_finite(tmp_path: Path) -> None:
    state = twin()
    state["ip_adapter.1.to_k_ip.weight"][0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    state["image_proj.proj.weight"][1, 1] = torch.inf
    path = tmp_path / "diverged.safetensors"
    save_file(state, path)
    for problems in (ip.inspect(path, deep=True).problems, ip.validate(path).findings):
        (problem,) = problems
        assert problem.message.startswith("2 tensors contain 4 NaN or infinite values")
    assert ip.inspect(path).ok  # headers and ends only


def test_instantid_is_named(tmp_path: Path) -> None:
    """Its tensors are those of the unnormed portrait adapter: both are named, neither is run."""
    shapes = PUBLISHED["ip-adapter-faceid-portrait_sdxl_unnorm"].shapes()
    path = write(tmp_path / "ip-adapter.safetensors", header(shapes))
    report = ip.inspect(path)
    assert "InstantID" in report.published
    assert "IdentityNet" in str(report)
    assert 'variant="portrait-unnorm"' in str(report)
    found = identify(open_source(path))
    from imageprompt.checkpoint.identify.identify import run_as

    with pytest.raises(
        ip.ImagePromptError, match="InstantID adapter needs its own ControlNet"
    ) as e:
        run_as(path, found, None)
    assert "unnorm" in str(e.value)
    assert run_as(path, found, "portrait-unnorm").variant == "portrait-unnorm"


def test_its_controlnet_is_a_controlnet(tmp_path: Path) -> None:
    folder = tmp_path / "ControlNetModel"
    folder.mkdir()
    shapes = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
    shapes["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = (640, 2048)
    write(folder / "diffusion_pytorch_model.safetensors", header(shapes))
    for path in (folder, folder / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(ip.ImagePromptError, match="this is a ControlNet, not an adapter") as e:
            ip.Adapter.load(path)
        assert "InstantID" in str(e.value)
