"""Writes the training checkpoint that `convert.py` measures: SD1.5's UNet and a base adapter.

pytorch_model.bin holds every adapter weight under two names, model.safetensors under one, as older
and newer versions of accelerate write them. Tensors are views of two short files of noise, so that
writing 3.5 GB takes little memory.

    python benchmarks/training_checkpoint.py /tmp/pytorch_model.bin
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from bases import SD15, Base, meta_unet
from peer import site_ids

ENCODER_WIDTH, TOKENS = 1024, 4
QUICK = Base(  # the same blocks, narrow; the widths of text and encoder stay
    name="quick",
    config={**SD15.config, "block_out_channels": (32, 32, 32, 32)},
    cross_attention_dim=768,
    latent=8,
)


class Noise:
    """Tensors [...] of float32 noise; each one maps the same file again."""

    def __init__(self, path: Path, largest: int) -> None:
        self.path = path
        with path.open("wb") as file:
            for start in range(0, largest, 1 << 20):
                noise = torch.randn(min(1 << 20, largest - start)) * 0.02
                file.write(noise.numpy().tobytes())

    def tensor(self, *shape: int) -> Tensor:
        flat = torch.from_file(str(self.path), shared=False, size=math.prod(shape))
        return flat.view(shape)


def checkpoint(base: Base, folder: Path, *, twice: bool) -> dict[str, Tensor]:
    """The state dict of the reference trainer; `twice`: under ids as well as layer names."""
    unet = meta_unet(base)
    largest = max(tensor.numel() for tensor in unet.state_dict().values())
    frozen, trained = Noise(folder / "frozen.noise", largest), Noise(folder / "new.noise", 1 << 23)
    state = {f"unet.{name}": frozen.tensor(*t.shape) for name, t in unet.state_dict().items()}
    aliases = {}
    for position, (name, width) in site_ids(unet).items():
        for kind in ("to_k_ip", "to_v_ip"):
            weight = trained.tensor(width, base.cross_attention_dim)
            state[f"unet.{name}.{kind}.weight"] = weight
            aliases[f"adapter_modules.{position}.{kind}.weight"] = weight
    state["image_proj_model.proj.weight"] = trained.tensor(
        TOKENS * base.cross_attention_dim, ENCODER_WIDTH
    )
    state["image_proj_model.proj.bias"] = trained.tensor(TOKENS * base.cross_attention_dim)
    state["image_proj_model.norm.weight"] = trained.tensor(base.cross_attention_dim)
    state["image_proj_model.norm.bias"] = trained.tensor(base.cross_attention_dim)
    return state | aliases if twice else state


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensor by tensor; the library's own writer would hold everything in memory."""
    header, offset = {}, 0
    for name in sorted(state):
        end = offset + state[name].numel() * 4
        header[name] = {
            "dtype": "F32", "shape": list(state[name].shape), "data_offsets": [offset, end]
        }  # fmt: skip
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(state):
            file.write(memoryview(state[name].numpy()).cast("B"))


def write(path: Path, base: Base) -> None:
    """The checkpoint in the format of the path's suffix."""
    is_pickle = path.suffix == ".bin"
    state = checkpoint(base, path.parent, twice=is_pickle)
    if is_pickle:
        torch.save(state, path)
    else:
        write_safetensors(path, state)
    for noise in path.parent.glob("*.noise"):
        os.unlink(noise)  # noqa: PTH108 - still mapped until this process ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", metavar="path")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for path in options.paths:
        write(path, QUICK if options.quick else SD15)


if __name__ == "__main__":
    main()
