"""Networks in the layouts of published weight files, narrower than those, with seeded weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
NARROWER = 8
"""Channels of FID's Inception for one here."""


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Drawn in the order of the names, of a size that keeps activations near 1."""
    draw = np.random.default_rng(seed)
    made: dict[str, Tensor] = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("running_var"):
            values = draw.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            values = draw.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith("weight"):
            values = draw.uniform(0.8, 1.2, shape)
        else:
            values = draw.normal(0, 0.1, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def save(folder: Path, name: str, shapes: Shapes, seed: int = 0) -> str:
    path = folder / name
    torch.save(weights(shapes, seed), path)
    return str(path)


def _norm(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts}


# ── FID's Inception ─────────────────────────────────────────────────────────────────────────────


def inception() -> Shapes:
    shapes: Shapes = {"fc.weight": (1008, 2048 // NARROWER), "fc.bias": (1008,)}
    for name, inputs, outputs, *kernel in _inception_units():
        narrow = inputs if inputs == 3 else inputs // NARROWER
        shapes[f"{name}.conv.weight"] = (outputs // NARROWER, narrow, *kernel)
        shapes |= _norm(f"{name}.bn", outputs // NARROWER)
    return shapes


def _inception_units() -> Iterator[tuple[str, int, int, int, int]]:
    yield "Conv2d_1a_3x3", 3, 32, 3, 3
    yield "Conv2d_2a_3x3", 32, 32, 3, 3
    yield "Conv2d_2b_3x3", 32, 64, 3, 3
    yield "Conv2d_3b_1x1", 64, 80, 1, 1
    yield "Conv2d_4a_3x3", 80, 192, 3, 3
    for block, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        yield from _branch(block, "1x1", inputs, (64, 1, 1))
        yield from _branch(block, "5x5", inputs, (48, 1, 1), (64, 5, 5))
        yield from _branch(block, "3x3dbl", inputs, (64, 1, 1), (96, 3, 3), (96, 3, 3))
        yield from _branch(block, "_pool", inputs, (pooled, 1, 1))
    yield from _branch("6a", "3x3", 288, (384, 3, 3))
    yield from _branch("6a", "3x3dbl", 288, (64, 1, 1), (96, 3, 3), (96, 3, 3))
    for block, n in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        yield from _branch(block, "1x1", 768, (192, 1, 1))
        yield from _branch(block, "7x7", 768, (n, 1, 1), (n, 1, 7), (192, 7, 1))
        turns = ((n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7))
        yield from _branch(block, "7x7dbl", 768, (n, 1, 1), *turns)
        yield from _branch(block, "_pool", 768, (192, 1, 1))
    yield from _branch("7a", "3x3", 768, (192, 1, 1), (320, 3, 3))
    yield from _branch("7a", "7x7x3", 768, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))
    for block, inputs in (("7b", 1280), ("7c", 2048)):
        yield from _branch(block, "1x1", inputs, (320, 1, 1))
        yield f"Mixed_{block}.branch3x3_1", inputs, 384, 1, 1
        yield f"Mixed_{block}.branch3x3dbl_1", inputs, 448, 1, 1
        yield f"Mixed_{block}.branch3x3dbl_2", 448, 384, 3, 3
        for branch in ("3x3_2", "3x3dbl_3"):
            yield f"Mixed_{block}.branch{branch}a", 384, 384, 1, 3
            yield f"Mixed_{block}.branch{branch}b", 384, 384, 3, 1
        yield from _branch(block, "_pool", inputs, (192, 1, 1))


def _branch(
    block: str, branch: str, inputs: int, *units: tuple[int, int, int]
) -> Iterator[tuple[str, int, int, int, int]]:
    for number, (outputs, height, width) in enumerate(units, 1):
        step = f"_{number}" if len(units) > 1 else ""
        yield f"Mixed_{block}.branch{branch}{step}", inputs, outputs, height, width
        inputs = outputs


# ── LPIPS ───────────────────────────────────────────────────────────────────────────────────────

LAYERS = {
    "alex": (8, 24, 48, 32, 32),
    "vgg": (8, 16, 32, 64, 64),
    "squeeze": (16, 16, 32, 48, 48, 64, 64),
}
"""Channels of the layers that are compared."""


def trunk(kind: str) -> Shapes:
    widths = LAYERS[kind]
    shapes: Shapes = {}
    if kind == "squeeze":
        shapes |= _conv("features.0", 3, widths[0], 3)
        inputs = widths[0]
        outputs = (16, *widths[1:2], 32, *widths[2:])
        for layer, width in zip((3, 4, 6, 7, 9, 10, 11, 12), outputs, strict=True):
            shapes |= _conv(f"features.{layer}.squeeze", inputs, 4, 1)
            shapes |= _conv(f"features.{layer}.expand1x1", 4, width // 2, 1)
            shapes |= _conv(f"features.{layer}.expand3x3", 4, width // 2, 3)
            inputs = width
        return shapes
    kernels = {0: 11, 3: 5, 6: 3, 8: 3, 10: 3}
    blocks = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    inputs = 3
    for block, width in zip(blocks if kind == "vgg" else kernels, widths, strict=True):
        for layer in block if isinstance(block, tuple) else (block,):
            size = 3 if kind == "vgg" else kernels[layer]
            shapes |= _conv(f"features.{layer}", inputs, width, size)
            inputs = width
    return shapes


def _conv(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def save_lpips(folder: Path, kind: str) -> str:
    """Both files, as a source."""
    heads = {
        f"lin{number}.model.1.weight": value.abs()
        for number, value in enumerate(
            weights({str(n): (1, width, 1, 1) for n, width in enumerate(LAYERS[kind])}).values()
        )
    }
    torch.save(heads, folder / f"{kind}.pth")
    return f"{save(folder, f'{kind}-trunk.pth', trunk(kind))},{folder / f'{kind}.pth'}"


# ── SSCD and CSD ────────────────────────────────────────────────────────────────────────────────


def sscd() -> Shapes:
    """Five bottleneck blocks, inner widths an eighth of a ResNet-50's."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for stage, blocks in enumerate((1, 2, 1, 1), 1):
        inner, outputs = 8 * 2 ** (stage - 1), 256 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for number, shape in enumerate(
                ((inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)), 1
            ):
                shapes[f"{name}.conv{number}.weight"] = shape
                shapes |= _norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    shapes |= {"fc.weight": (24, inputs), "fc.bias": (24,)}
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def csd() -> Shapes:
    """OpenAI's tower with two layers of two heads that reads 56 pixels, and the heads."""
    width, inner = 128, 512
    shapes: Shapes = {
        "backbone.class_embedding": (width,),
        "backbone.positional_embedding": (17, width),
        "backbone.conv1.weight": (width, 3, 14, 14),
        "last_layer_style": (width, 48),
        "last_layer_content": (width, 48),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= _pair(f"backbone.{name}", (width,), width)
    for layer in range(2):
        start = f"backbone.transformer.resblocks.{layer}"
        shapes[f"{start}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{start}.attn.in_proj_bias"] = (3 * width,)
        shapes |= _pair(f"{start}.attn.out_proj", (width, width), width)
        shapes |= _pair(f"{start}.mlp.c_fc", (inner, width), inner)
        shapes |= _pair(f"{start}.mlp.c_proj", (width, inner), width)
        for norm in ("ln_1", "ln_2"):
            shapes |= _pair(f"{start}.{norm}", (width,), width)
    return {f"module.{name}": shape for name, shape in shapes.items()}


def _pair(name: str, weight: tuple[int, ...], bias: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": (bias,)}
