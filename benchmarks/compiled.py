"""torch.compile with an image prompt in use: CPU time of a step beside eager, and of compiling.

    python benchmarks/compiled.py [--only bundled|block ...] [--rounds 9] [--json FILE]

`bundled` is the UNet of the bundled stack, `block` a UNet of one level as wide as SD1.5's first
(320 channels, random weights) at 32x32 latents: float32, two rows of guidance, Plus. Compiled as a
whole, and block by block (regional); their weights are shared. One thread; the candidates take
turns. Compiling is the CPU time of the first call, the C++ compiler included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import imageprompt as ip
from bases import SD15, Base, random_unet
from imageprompt.core import bundled
from peer import flat, published_adapter
from step_time import shared_copy
from timing import conditions, cpu_seconds

BLOCK = Base(
    name="one level of SD1.5",
    config={
        **SD15.config,
        "block_out_channels": (320,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
    },
    cross_attention_dim=768,
    latent=32,
)


def with_children(call: Callable[[], object]) -> float:
    """CPU seconds of a call and of the processes that it started and that have ended."""

    def spent() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)

    start = spent()
    call()
    return spent() - start


def of_the_bundled_stack(_: Path) -> tuple[Any, dict[str, Any], Path]:
    from diffusers import UNet2DConditionModel

    found = bundled.folder()
    unet = UNet2DConditionModel.from_pretrained(found / "unet").eval().requires_grad_(False)
    config = unet.config
    generator = torch.Generator().manual_seed(7)
    latent = config.sample_size
    noise = torch.randn(1, config.in_channels, latent, latent, generator=generator)
    text = torch.randn(2, 16, config.cross_attention_dim, generator=generator)
    inputs = {
        "sample": noise.repeat(2, 1, 1, 1),
        "timestep": torch.tensor(421),
        "encoder_hidden_states": text,
    }
    return unet, inputs, bundled.adapter("plus")


def of_a_block(folder: Path) -> tuple[Any, dict[str, Any], Path]:
    unet = random_unet(BLOCK, torch.float32)
    path = folder / "adapter.safetensors"
    state = published_adapter(unet, "plus", BLOCK.cross_attention_dim, dtype=torch.float32)
    save_file({name: weight.contiguous() for name, weight in flat(state).items()}, path)
    return unet, BLOCK.inputs(2, dtype=torch.float32, latent=BLOCK.latent), path


SIZES = {"bundled": of_the_bundled_stack, "block": of_a_block}
WAYS: dict[str, Callable[[Any], object]] = {
    "eager": lambda unet: None,
    "compiled": lambda unet: unet.compile(),
    "regional": lambda unet: unet.compile_repeated_blocks(fullgraph=True),
}


def measure(size: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as used, torch.no_grad():
        unet, inputs, path = SIZES[size](Path(name))
        width = unet.config.cross_attention_dim
        calls, first, outputs = {}, {}, {}
        for way, change in WAYS.items():
            model = shared_copy(unet)
            adapter = ip.Adapter.load(path, dtype=torch.float32).attach(model)
            tokens, null = torch.randn(2, 1, 16, width, generator=torch.Generator().manual_seed(3))
            prompt = ip.ImagePrompt(tokens, null, {})
            change(model)
            used.enter_context(adapter.use(prompt, scale=0.8, guidance="negative-positive"))
            calls[way] = lambda model=model: model(**inputs).sample
            first[way] = with_children(calls[way])
            outputs[way] = calls[way]()
        seconds: dict[str, list[float]] = {way: [] for way in calls}
        for turn in range(rounds):
            for way in list(calls)[:: 1 if turn % 2 else -1]:
                seconds[way].append(cpu_seconds(lambda way=way: [calls[way]() for _ in range(3)]))
    eager = seconds["eager"]
    return {
        way: {
            "ms": 1e3 / 3 * statistics.median(took),
            "times as fast": statistics.median(a / b for a, b in zip(eager, took, strict=True)),
            "compiling": first[way],
            "difference": (outputs[way] - outputs["eager"]).abs().max().item(),
        }
        for way, took in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=tuple(SIZES), default=tuple(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {size: measure(size, options.rounds) for size in options.only}
    print(
        "| | ms a step | times as fast | s to compile | largest difference |\n|---|---|---|---|---|"
    )
    for size, rows in found.items():
        for way, row in rows.items():
            print(
                f"| {size}, {way} | {row['ms']:.1f} | {row['times as fast']:.2f} "
                f"| {row['compiling']:.0f} | {row['difference']:.1e} |"
            )
    print(f"\n{conditions()}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
