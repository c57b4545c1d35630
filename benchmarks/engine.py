"""What the engine costs beside the pipeline, what batches gain, and whether pictures stay equal.

    python benchmarks/engine.py                   # second ip.generate against the plain pipeline
    python benchmarks/engine.py --size sdxl       # the same; an SDXL-size UNet, random weights
    python benchmarks/engine.py --throughput       # four references together against apart
    python benchmarks/engine.py --equality 200     # random requests together against alone

Calls are interleaved A B A B; ratios are of medians, of wall time and of CPU time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

import imageprompt as ip
from bases import SDXL, random_unet
from imageprompt import loading
from timing import conditions


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 64))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> None:
    """Prints the medians of both, and their ratio."""
    a(), b()
    rows = [(*timed(a), *timed(b)) for _ in range(rounds)]
    a_wall, a_cpu, b_wall, b_cpu = map(statistics.median, zip(*rows, strict=True))
    print(f"wall {a_wall:.3f} s against {b_wall:.3f} s: {a_wall / b_wall:.3f}x")
    print(f"CPU  {a_cpu:.3f} s against {b_cpu:.3f} s: {a_cpu / b_cpu:.3f}x")


# ── the second call ─────────────────────────────────────────────────────────────────────────────


def second_call_tiny(rounds: int) -> None:
    """ip.generate against diffusers' call with the same adapter in use and the same pictures."""
    base = loading.load_base(None, loading.base_folder(None), dtype=None, device=None, bars=False)
    pipe, reference = base.pipe, picture(1)
    pipe.set_progress_bar_config(disable=True)
    adapter, record = loading.load_adapter(
        loading.find_adapter(None, base.folder, cached_only=True), pipe
    )
    loading.attach_adapter(adapter, record, base)
    prompt = adapter.encode([reference])
    made: list[Any] = [None, None]

    def ours() -> None:
        made[0] = ip.generate("a star", reference, progress=False).images[0]

    def plain() -> None:
        with loading.few_threads(base), adapter.use(prompt):
            made[1] = pipe(
                "a star",
                num_inference_steps=ip.bundled.STEPS,
                guidance_scale=ip.bundled.GUIDANCE,
                generator=[torch.Generator().manual_seed(1)],
            ).images[0]

    interleaved(ours, plain, rounds)
    print("same picture:", made[0].tobytes() == made[1].tobytes())


def second_call_sdxl(rounds: int) -> None:
    """The same on a loaded pipeline of SDXL's size; its weights are fingerprinted at each call."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from imageprompt.core import bundled

    source = loading.load_base(
        None, bundled.folder(), dtype="bfloat16", device="cpu", bars=False
    ).pipe
    kinds = (
        (CLIPTextModel, 768, 12),
        (CLIPTextModelWithProjection, 1280, 20),
    )
    vocabulary = len(source.tokenizer)
    texts = [
        kind(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=2,
                num_attention_heads=heads,
                projection_dim=1280,
                max_position_embeddings=77,
                bos_token_id=source.tokenizer.bos_token_id,
                eos_token_id=source.tokenizer.eos_token_id,
            )
        ).to(torch.bfloat16)
        for kind, width, heads in kinds
    ]
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    ).to(torch.bfloat16)
    tokenizer = source.tokenizer
    tokenizer.model_max_length = 77
    pipe = StableDiffusionXLPipeline(
        vae, *texts, tokenizer, tokenizer, random_unet(SDXL, torch.bfloat16), DDIMScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    size = 8 * SDXL.latent
    made: list[Any] = [None, None]

    def ours() -> None:
        result = ip.generate(
            "a star", scale=0, base=pipe, steps=2, size=(size, size), progress=False
        )
        made[0] = result.images[0]

    def plain() -> None:
        made[1] = pipe(
            "a star",
            num_inference_steps=2,
            width=size,
            height=size,
            generator=[torch.Generator().manual_seed(1)],
        ).images[0]

    interleaved(ours, plain, rounds)
    print("same picture:", made[0].tobytes() == made[1].tobytes())


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def throughput(rounds: int) -> None:
    engine = ip.Engine()
    requests = [{"prompt": "a star", "reference": picture(i), "seed": i} for i in range(4)]
    interleaved(
        lambda: engine.generate_many(requests, progress=False),
        lambda: [engine.generate(**one, progress=False) for one in requests],
        rounds,
    )


def equality(number: int, steps: int) -> None:
    """Prints how many 8-bit values differ between together and alone, and by how much."""
    draw, engine = random.Random(0), ip.Engine()
    left = np.zeros((64, 64), "float32")
    left[:, :32] = 1
    requests = [
        {
            "prompt": draw.choice(["", "a star", "a dotted green shape", "a large red circle"]),
            "negative_prompt": draw.choice(["", "blue"]),
            "reference": picture(draw.randrange(20)),
            "seed": draw.randrange(10000),
            "scale": draw.choice([0.8, 0.5]),
            "mask": draw.choice([None, left, 1 - left]),
            "steps": steps,
        }
        for _ in range(number)
    ]
    together = engine.generate_many(requests, progress=False)
    values = differ = pictures = most = 0
    for request, many in zip(requests, together, strict=True):
        alone = engine.generate(**request, progress=False)
        apart = np.abs(np.asarray(alone[0], int) - np.asarray(many[0], int))
        values, differ = values + apart.size, differ + int((apart > 0).sum())
        pictures, most = pictures + bool(apart.any()), max(most, int(apart.max()))
    print(f"{number} requests: {differ} of {values} values differ, by at most {most} of 255,")
    print(f"in {pictures} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["tiny", "sdxl"], default="tiny")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--equality", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of the requests of --equality")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(conditions())
    if options.equality:
        equality(options.equality, options.steps)
    elif options.throughput:
        throughput(options.rounds)
    else:
        (second_call_sdxl if options.size == "sdxl" else second_call_tiny)(options.rounds)


if __name__ == "__main__":
    main()
