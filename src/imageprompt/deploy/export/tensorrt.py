"""The trtexec line that builds a TensorRT engine from an exported denoiser: every input with its
smallest, usual and largest shape. TensorRT itself is not run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imageprompt.deploy.export.parity import unit
from imageprompt.generation.exported.calls import Calls
from imageprompt.generation.exported.manifest import Port

_RANGES = {
    "batch": (1, 2, 8),
    "text": (1, 77, 512),
    "prompts": (1, 1, 4),
    "tokens": (2, 16, 64),
    "rows": (1024, 4096, 8192),  # of FLUX: 512 px, 1024 px
}
"""From the smallest to the largest that an engine takes, with the usual in the middle."""
_SIDES = (0.5, 1.0, 1.5)
"""Sides of the latents over those that the base was made for."""
_NAMES = ("minShapes", "optShapes", "maxShapes")


def trtexec(file: str, inputs: Sequence[Port], calls: Calls) -> str:
    """The line for a denoiser in an ONNX file. Shorten its ranges: narrow ones run faster."""
    engine = file.rsplit(".", 1)[0] + ".plan"
    lines = [f"trtexec --onnx={file} --saveEngine={engine}"]
    for number, name in enumerate(_NAMES):
        sizes = _sizes(calls, number)
        shapes = ",".join(f"{port.name}:{_shape(port, sizes)}" for port in inputs)
        lines.append(f"--{name}={shapes}")
    return " ".join(lines)


def _sizes(calls: Calls, number: int) -> dict[str, int]:
    sizes = {axis: three[number] for axis, three in _RANGES.items()}
    if any("height" in one.shape for one in calls.inputs):
        del sizes["rows"]
        step, made_for = unit(calls), calls.config.get("sample_size") or 64
        side = max(1, round(made_for * _SIDES[number] / step)) * step
        sizes |= {"height": side, "width": side}
        levels = range(1, len(calls.config.get("block_out_channels") or ()))
        sizes |= {
            f"{axis}_{level}": side >> level for level in levels for axis in ("height", "width")
        }
    levels = range(max(1, len(calls.config.get("block_out_channels") or ())))
    return sizes | {f"positions_{level}": calls.positions(sizes, level) for level in levels}


def _shape(port: Port, sizes: Mapping[str, int]) -> str:
    return "x".join(str(axis if isinstance(axis, int) else sizes[axis]) for axis in port.shape)
