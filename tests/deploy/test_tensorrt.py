"""The trtexec line: it names exactly the inputs of the graph, with shapes that the model takes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from imageprompt.deploy.export.tensorrt import trtexec
from imageprompt.generation.exported.calls import Calls
from imageprompt.generation.exported.manifest import Port

UNET = {
    "in_channels": 4,
    "cross_attention_dim": 768,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
TRANSFORMER = {"in_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", UNET),
    "flux": ("FluxTransformer2DModel", {**TRANSFORMER, "in_channels": 64}),
    "sd3": ("SD3Transformer2DModel", {**TRANSFORMER, "sample_size": 128, "patch_size": 2}),
}


def ports_of(calls: Calls, levels: int) -> list[Port]:
    """Inputs as an exported denoiser has them, with one place at each level."""
    found = [one.port for one in calls.inputs]
    found.append(Port(name="scales", shape=(levels, "batch", "prompts")))
    for level in range(levels):
        found.append(Port(name=f"mask_{level}", shape=("batch", "prompts", f"positions_{level}")))
    for level in range(levels):
        shape = ("batch", "prompts", 8, "tokens", 40)
        found += [Port(name=f"{kind}_{level}", shape=shape) for kind in ("key", "value")]
    return found


def shapes(line: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """By option and input."""
    options = [word.removeprefix("--").split("=", 1) for word in line.split()[1:]]
    return {
        name: {
            one.split(":")[0]: tuple(map(int, one.split(":")[1].split("x")))
            for one in value.split(",")
        }
        for name, value in options
        if name.endswith("Shapes")
    }


@pytest.mark.parametrize(("base", "controlnet"), [("sd15", True), ("flux", False), ("sd3", False)])
def test_the_line_names_exactly_the_inputs(base: str, controlnet: bool) -> None:
    kind, config = BASES[base]
    calls = Calls(getattr(diffusers, kind), config, controlnet)
    ports = ports_of(calls, 4 if base == "sd15" else 1)
    line = trtexec("denoiser.onnx", ports, calls)
    assert line.startswith("trtexec --onnx=denoiser.onnx --saveEngine=denoiser.plan --minShapes=")
    found = shapes(line)
    assert list(found) == ["minShapes", "optShapes", "maxShapes"]
    for three in found.values():
        assert list(three) == [port.name for port in ports]
    for port in ports:
        least, usual, most = (three[port.name] for three in found.values())
        for axis, a, b, c in zip(port.shape, least, usual, most, strict=True):
            assert (a == b == c == axis) if isinstance(axis, int) else 0 < a <= b <= c


def test_masks_and_residuals_fit_the_latents() -> None:
    kind, config = BASES["sd15"]
    calls = Calls(getattr(diffusers, kind), config, True)
    for three in shapes(trtexec("d.onnx", ports_of(calls, 4), calls)).values():
        *_, height, width = three["sample"]
        assert height % 8 == 0  # halved three times
        assert three["mask_0"][-1] == height * width
        assert three["mask_2"][-1] == height * width // 16
        assert three["mid_residual"][-2:] == (height // 8, width // 8)
