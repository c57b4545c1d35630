"""Every published adapter file, at its full size (sparse) and small (with weights), is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from hostile import header, write
from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.compatibility import check_base
from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.checkpoint.identify.identify import identify
from imageprompt.checkpoint.identify.published import PUBLISHED as KNOWN
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.torch_io import read_file
from imageprompt.variants import projector_shapes, site_shapes
from published import OTHERS, PUBLISHED, File, linear

ALL = PUBLISHED | OTHERS
SMALL = {name: file for name, file in PUBLISHED.items() if file.twin}
IP_KEYS = {
    ("sd15", False): 32, ("sd15", True): 288, ("sdxl", False): 140, ("sdxl", True): 1260,
    ("kolors", False): 140, ("flux-xlabs", False): 76, ("flux-instantx", False): 114,
    ("flux-text", False): 0, ("sd3", False): 266,
}  # fmt: skip
IP_PARAMETERS = {
    ("sd15", False): 19_169_280,
    ("sd15", True): 19_169_280 + 25_509_888,
    ("sdxl", False): 340_787_200,
    ("sdxl", True): 340_787_200 + 185_794_560,
}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def layouts_for(parts: Parts[Tensor]) -> list[str]:
    """The writable layouts that can hold an adapter."""
    names = []
    for layout in FORMATS:
        try:
            layout.write(parts)
        except ip.ImagePromptError:
            continue
        names.append(layout.name)
    return names


# ── full size ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL)
def test_the_table(name: str) -> None:
    """Keys and parameters of the derived tensors are the published numbers."""
    file = ALL[name]
    shapes = file.shapes()
    assert len(file.projector) == file.keys
    assert len(shapes) == file.keys + IP_KEYS[file.host, file.lora]
    assert count(shapes) == file.total
    if (file.host, file.lora) in IP_PARAMETERS:
        assert count(shapes) - count(file.projector) == IP_PARAMETERS[file.host, file.lora]


def test_the_table_is_whole() -> None:
    assert len(PUBLISHED) == 19
    assert {one.name for one in KNOWN} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_identified_at_full_size(name: str, tmp_path: Path) -> None:
    """From the header of a sparse file whose name says nothing."""
    file = ALL[name]
    path = write(tmp_path / "renamed-by-somebody.safetensors", header(file.shapes()))
    found = identify(open_source(path))
    assert found.format == "standard"
    assert found.problems == ()
    assert found.variants == file.variants
    assert found.host == file.host.split("-")[0]
    assert found.lora_rank == (128 if file.lora else None)
    assert found.spec is not None
    assert str(found.spec.feature) == file.feature
    assert found.spec.feature_dim == file.width
    assert found.spec.tokens == file.tokens
    assert name in found.published
    assert {ALL[one].total for one in found.published} == {file.total}
    assert bool(found.differences) == (len(found.variants) > 1 or len(found.published) > 1)


@pytest.mark.parametrize("name", ALL)
def test_templates_without_torch(name: str) -> None:
    """What is derived without torch is what diffusers' models and the table give."""
    one = next(one for one in KNOWN if one.name == name)
    variant, spec = one.architecture, one.projector
    assert projector_shapes(variant, spec) == ALL[name].projector
    flat = {f"ip_adapter.{n}": s for n, s in site_shapes(variant, one.host_spec, spec).items()}
    assert flat == {n: s for n, s in ALL[name].shapes().items() if n.startswith("ip_adapter.")}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ALL)
def test_layouts_hold_it_and_give_it_back(name: str, tmp_path: Path) -> None:
    """Standard -> every other layout -> standard: the same stored tensors under the same names."""
    path = write(tmp_path / "file.safetensors", header(ALL[name].shapes()))
    parts = identify(open_source(path)).parts
    flat = FORMATS["standard"].write(parts)
    layouts = layouts_for(parts)
    assert {"standard", "training"} <= set(layouts)
    assert ("xlabs" in layouts) == (ALL[name].host == "flux-xlabs")
    for layout in layouts:
        written = FORMATS[layout].write(parts)
        assert FORMATS["standard"].write(FORMATS[layout].read(written).parts) == flat
        again = identify(
            open_source(
                write(tmp_path / "a.safetensors", header({n: t.shape for n, t in written.items()}))
            )
        )
        assert (again.format, again.variants, again.problems) == (
            layout,
            ALL[name].variants,
            (),
        )


# ── small twins, with weights ────────────────────────────────────────────────────────────────────


def nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    made: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        made.setdefault(part, {})[rest] = tensor
    return made


def aliased(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some published files call the attention part after the training script."""
    return {name.replace("ip_adapter.", "adapter_modules.", 1): t for name, t in flat.items()}


def saved(flat: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".bin":
        torch.save(nested(flat), path)
    else:
        save_file(flat, path)
    return path


@pytest.mark.sample(3)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("name", SMALL)
def test_small_twins(name: str, suffix: str, tmp_path: Path) -> None:
    """The same kinds for an unpublished base, nested or flat, of two dtypes, alias or not."""
    file = SMALL[name]
    base = "sdxl" if file.host == "sdxl" else "sd15"
    state = file.small(base)
    for flat in (state, aliased(state)):
        source = open_source(saved(flat, tmp_path / f"twin{suffix}"))
        found = identify(source)
        assert found.problems == ()
        assert found.variants == file.variants
        assert found.host == "unet"
        assert found.lora_rank == (3 if file.lora else None)
        assert {t.dtype for t in found.parts.projector.values()} == {"F32"}
        assert {t.dtype for t in found.parts.sites.values()} == {"F16"}
        written = FORMATS["standard"].write(found.parts)
        assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in state.items()}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SMALL)
def test_round_trips_of_weights(name: str, tmp_path: Path) -> None:
    """Standard file -> every other layout's file -> standard, equal to the bit."""
    file = SMALL[name]
    state = file.small("sdxl" if file.host == "sdxl" else "sd15")
    parts = FORMATS["standard"].read(state).parts
    for layout in layouts_for(parts):
        for suffix in FORMATS[layout].suffixes:
            path = tmp_path / f"{layout}{suffix}"
            written = FORMATS[layout].write(parts)
            torch.save(written, path) if suffix == ".bin" else save_file(written, path)
            back = FORMATS["standard"].write(FORMATS[layout].read(read_file(path).tensors).parts)
            assert back.keys() == state.keys()
            assert all(back[key].dtype == state[key].dtype for key in state)
            assert all(torch.equal(back[key], state[key]) for key in state)


def xlabs_state() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(3)
    shapes = {f"image_proj.{name}": shape for name, shape in linear(20, 24).items()}
    for i in range(4):
        for kind in "kv":
            shapes[f"ip_adapter.{i}.to_{kind}_ip.weight"] = (32, 24)
            shapes[f"ip_adapter.{i}.to_{kind}_ip.bias"] = (32,)
    return {name: torch.randn(shape, generator=gen) for name, shape in shapes.items()}


def test_a_small_flux_adapter_in_xlabs_layout(tmp_path: Path) -> None:
    """The names that XLabs publishes, written out, of a small twin."""
    state = xlabs_state()
    written = FORMATS["xlabs"].write(FORMATS["standard"].read(state).parts)
    assert set(written) == {
        *(f"ip_adapter_proj_model.{n}.{k}" for n in ("proj", "norm") for k in ("weight", "bias")),
        *(
            f"double_blocks.{i}.processor.ip_adapter_double_stream_{n}_proj.{k}"
            for i in range(4)
            for n in "kv"
            for k in ("weight", "bias")
        ),
    }
    save_file(written, tmp_path / "x.safetensors")
    found = identify(open_source(tmp_path / "x.safetensors"))
    assert (found.format, found.variants, found.host) == ("xlabs", ("xlabs",), "flux")
    assert found.problems == ()


@pytest.mark.parametrize("name", ["ip-adapter_sd15", "ip-adapter-plus_sd15"])
def test_published_shapes_load_and_fit(name: str, tmp_path: Path) -> None:
    """A file of the published shapes is loaded as SD1.5's and fits its denoiser."""
    from bases import SD15, meta_unet

    file: File = PUBLISHED[name]
    path = write(tmp_path / "renamed-by-somebody.safetensors", header(file.shapes()))
    adapter = ip.Adapter.load(path)
    assert adapter.spec.variant == file.variants[0]
    assert adapter.spec.host == "sd15"
    assert set(adapter.module.state_dict()) == set(file.shapes())
    base = AttachedDenoiser.of(meta_unet(SD15))
    check_base(adapter.spec, adapter.module, base.spec)


def test_an_adapter_for_flux_does_not_fit_a_unet(tmp_path: Path) -> None:
    from bases import SD15, meta_unet

    state = FORMATS["xlabs"].write(FORMATS["standard"].read(xlabs_state()).parts)
    save_file(state, tmp_path / "flux.safetensors")
    adapter = ip.Adapter.load(tmp_path / "flux.safetensors")
    with pytest.raises(ip.ImagePromptError, match="xlabs adapter on a sd15 base"):
        adapter.attach(meta_unet(SD15))
