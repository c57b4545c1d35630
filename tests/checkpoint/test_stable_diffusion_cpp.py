"""Our standard files have the names that stable-diffusion.cpp's loader asks for.

The lists are those of its source of 19 August 2026 (97d29908): src/model/adapter/ip_adapter.hpp and
src/name_conversion.cpp.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.spec import HostSpec, ProjectorOptions
from imageprompt.hosts.unet import HOST
from imageprompt.variants import VARIANTS, projector_shapes, site_shapes

# file id of the first transformer of a block -> the block there, and how many transformers it has
SD15 = {
    1: ("input_blocks.1.1", 1),
    3: ("input_blocks.2.1", 1),
    5: ("input_blocks.4.1", 1),
    7: ("input_blocks.5.1", 1),
    9: ("input_blocks.7.1", 1),
    11: ("input_blocks.8.1", 1),
    13: ("output_blocks.3.1", 1),
    15: ("output_blocks.4.1", 1),
    17: ("output_blocks.5.1", 1),
    19: ("output_blocks.6.1", 1),
    21: ("output_blocks.7.1", 1),
    23: ("output_blocks.8.1", 1),
    25: ("output_blocks.9.1", 1),
    27: ("output_blocks.10.1", 1),
    29: ("output_blocks.11.1", 1),
    31: ("middle_block.1", 1),
}
SDXL = {
    1: ("input_blocks.4.1", 2),
    5: ("input_blocks.5.1", 2),
    9: ("input_blocks.7.1", 10),
    29: ("input_blocks.8.1", 10),
    49: ("output_blocks.0.1", 10),
    69: ("output_blocks.1.1", 10),
    89: ("output_blocks.2.1", 10),
    109: ("output_blocks.3.1", 2),
    113: ("output_blocks.4.1", 2),
    117: ("output_blocks.5.1", 2),
    121: ("middle_block.1", 10),
}
BASE = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
LAYER = (
    *("0.norm1.weight", "0.norm1.bias", "0.norm2.weight", "0.norm2.bias", "0.to_q.weight"),
    *("0.to_kv.weight", "0.to_out.weight", "1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"),
)
PLUS = (
    *("latents", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"),
    *("norm_out.weight", "norm_out.bias"),
    *(f"layers.{layer}.{name}" for layer in range(4) for name in LAYER),
)
PROJECTORS = {"base": BASE, "plus": PLUS}


def spec_of(family: str) -> HostSpec:
    (spec,) = (spec for spec in HOST.published() if spec.family == family)
    return spec


def there(site: str, layers: int) -> tuple[str, int]:
    """A site of diffusers' UNet in the names of the original one, and its transformer."""
    block, _, rest = site.partition(".attentions.")
    number = int(rest.split(".transformer_blocks.")[1].split(".")[0])
    attention = int(rest.split(".")[0])
    if block == "mid_block":
        return "middle_block.1", number
    kind, _, level = block.partition("_blocks.")
    if kind == "down":
        return f"input_blocks.{int(level) * (layers + 1) + attention + 1}.1", number
    return f"output_blocks.{int(level) * (layers + 1) + attention}.1", number


@pytest.mark.parametrize(("family", "table"), [("sd15", SD15), ("sdxl", SDXL)])
def test_the_numbers_of_sites_are_those_of_its_loader(
    family: str, table: dict[int, tuple[str, int]]
) -> None:
    expected = {
        first + 2 * number: (block, number)
        for first, (block, count) in table.items()
        for number in range(count)
    }
    ours = {int(site.file_id): there(site.name, 2) for site in spec_of(family).sites}
    assert ours == expected


@pytest.mark.parametrize("variant", PROJECTORS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_names_of_tensors_are_those_that_it_asks_for(family: str, variant: str) -> None:
    spec, kind = spec_of(family), VARIANTS[variant]
    projector = kind.propose(1280, spec.cross_attention_dim, ProjectorOptions())
    assert sorted(projector_shapes(kind, projector)) == sorted(PROJECTORS[variant])
    table = SD15 if family == "sd15" else SDXL
    ids = [first + 2 * n for first, (_, count) in table.items() for n in range(count)]
    wanted = {f"{number}.to_{kv}_ip.weight" for number in ids for kv in "kv"}
    shapes = site_shapes(kind, spec, projector)
    assert set(shapes) == wanted
    assert {len(shape) for shape in shapes.values()} == {2}


def test_the_guides_commands(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 file of ours becomes one in the standard layout, in float16."""
    monkeypatch.chdir(tmp_path)
    source = tiny_folder / "adapters" / "plus.safetensors"
    assert cli.main(["convert", str(source), "my-adapter.safetensors", "--dtype", "int8"]) == 0
    for command in commands(DOCS / "stable-diffusion-cpp.md"):
        assert cli.main(command) == 0, command
    with safe_open("for-cpp.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert {name.split(".")[0] for name in names} == {"image_proj", "ip_adapter"}
    assert ip.inspect("for-cpp.safetensors").format == "standard"
