"""`imageprompt plan` beside real processes: memory and time of six of them, on this machine.

Each process builds models of full size with random weights and runs one call, twice. Memory is the
peak of its resident size above what Python and the libraries took before the models. Time is CPU
time of the second call on one thread; planned seconds take the speed of this CPU in a matrix
product in the place of a card's data sheet.

    python benchmarks/plan.py [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bases import SD15, SDXL, meta_unet, random_unet
from peer import flat, published_adapter
from timing import conditions, cpu_seconds
from train_memory import peak
from training_parts import PARTS, VAE, VIT_H, Ours, random_model

GB = 1e9
Row = dict[str, Any]
Work = tuple[float, float | None, Callable[[], Callable[[], object]]]
"""Planned bytes, planned operations, and what builds the models and returns the call."""


def plan_of(base: str, adapter: str | None, dtype: str, side: int) -> Any:
    from imageprompt.deploy.plan import Gpu, plan

    cpu = Gpu("this CPU", 1.0, 1.0, 1.0, on_cpu=True)  # its speed is measured in each process
    return plan(base, adapter, dtype=dtype, size=side, steps=1, gpu=cpu)


def denoising(base: Any, dtype: torch.dtype, side: int, adapter: str | None = None) -> Work:
    """A step of a UNet for one picture with guidance."""
    found = plan_of(base.name, adapter, str(dtype).removeprefix("torch."), side)
    mode = found.modes[f"{found.dtype}, model offload"]
    flops = found.rows * found.base.denoiser.flops.at(found.area)

    def build() -> Callable[[], object]:
        unet: Any = random_unet(base, dtype)
        inputs = base.inputs(2, latent=side // 8, dtype=dtype)
        if adapter is None:
            return lambda: unet(**inputs)
        use = attach(unet, adapter, base)

        def call() -> None:
            with use():
                unet(**inputs)

        return call

    projector = 0.0 if adapter is None else found._encoder_weights()["projector"]
    return mode.phases["denoise"] + projector, flops, build


def write_adapter(path: Path, variant: str, base: Any) -> None:
    """A random adapter in bfloat16."""
    from safetensors.torch import save_file

    state = published_adapter(
        meta_unet(base), variant, base.cross_attention_dim, dtype=torch.bfloat16
    )
    save_file({name: weight.contiguous() for name, weight in flat(state).items()}, path)


def attach(unet: Any, variant: str, base: Any) -> Callable[[], Any]:
    """An adapter without its projector, and an image prompt; returns `use`."""
    import imageprompt as ip

    path = Path(os.environ["ADAPTER"])
    adapter = ip.Adapter.load(path, dtype=unet.dtype).attach(unet)
    tokens = torch.randn(1, 16, base.cross_attention_dim).to(unet.dtype)
    prompt = ip.ImagePrompt(tokens, torch.zeros_like(tokens), {})
    return lambda: adapter.use(prompt)


def with_encoder() -> Work:
    """SDXL with Plus and its image encoder, all in memory: the picture is read, then a step."""
    side, dtype = 512, torch.bfloat16
    found = plan_of("sdxl", "plus", "bfloat16", side)
    weights = found.modes["bfloat16"]
    parts = found._weights("bfloat16")
    encoder = parts["encode"]["image encoder"] + parts["encode"]["projector"]
    kept = found._activations()
    flops = found.rows * found.base.denoiser.flops.at(found.area)
    flops += found.base.image_encoder.flops.at(found.area)
    planned = parts["denoise"]["denoiser"] + encoder + max(kept["denoise"], kept["encode"])
    assert planned < weights.weights + max(kept.values())

    def build() -> Callable[[], object]:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(**VIT_H)
        vision = random_model(lambda: CLIPVisionModelWithProjection(config))
        step = denoising(SDXL, dtype, side, "plus")[2]()
        picture = torch.randn(1, 3, 224, 224).to(dtype)

        def call() -> None:
            vision(picture, output_hidden_states=True)
            step()

        return call

    return planned, flops, build


def decoding() -> Work:
    """The autoencoder of SD1.5 decodes 512 x 512 pixels in float32."""
    found = plan_of("sd15", None, "float32", 512)

    def build() -> Callable[[], object]:
        from diffusers import AutoencoderKL

        vae = random_model(lambda: AutoencoderKL(**VAE), torch.float32)
        for part in (vae.encoder, vae.quant_conv):
            part.to_empty(device="meta")
        latents = torch.randn(1, 4, 64, 64)
        return lambda: vae.decode(latents)

    encoder = sum(w.numel() for w in _meta_vae().encoder.parameters())
    planned = found.modes["float32, model offload"].phases["decode"] - 4 * encoder
    return planned, found.base.vae.flops.at(found.area), build


def _meta_vae() -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(**VAE)


def training() -> Work:
    """A training step of Plus on SD1.5 at 256 pixels, beside what `train --dry-run` counts."""
    from imageprompt.training.data.dataset import Batch
    from imageprompt.training.estimate import BYTES_PER_WEIGHT, saved_bytes

    side = 256
    ours = Ours(PARTS["sd15"], "plus", side)
    latents, states, features = ours.cached
    batch = Batch(latents.float(), states, features, ours.added)
    base = argparse.Namespace(denoiser=ours.unet, scheduler=ours.scheduler)
    weights = [*ours.unet.parameters(), *ours.parameters]
    kept = saved_bytes(ours.objective, ours.adapter, base, batch, ours.nulls, weights)
    frozen = sum(w.nbytes for w in ours.unet.parameters())
    trained = BYTES_PER_WEIGHT * sum(w.numel() for w in ours.parameters)
    return frozen + trained + kept, None, lambda: ours.step


PROCESSES: dict[str, Callable[[], Work]] = {
    "SD1.5, float32, 512 px": lambda: denoising(SD15, torch.float32, 512),
    "SD1.5, bfloat16, 512 px, Plus": lambda: denoising(SD15, torch.bfloat16, 512, "plus"),
    "SDXL, bfloat16, 512 px": lambda: denoising(SDXL, torch.bfloat16, 512),
    "SDXL, bfloat16, 512 px, Plus and ViT-H": with_encoder,
    "autoencoder, float32, 512 px": decoding,
    "training Plus on SD1.5, 256 px": training,
}


def work(name: str) -> Row:
    """In this process."""
    torch.set_num_threads(1)
    import diffusers
    import transformers  # noqa: F401

    import imageprompt.deploy.plan.measure
    import imageprompt.training.estimate  # noqa: F401

    assert diffusers.UNet2DConditionModel
    assert diffusers.AutoencoderKL
    from imageprompt.deploy.plan.gpus import this_cpu
    from imageprompt.deploy.plan.plan import CPU

    cpu = this_cpu()
    before = peak() * GB
    planned, flops, build = PROCESSES[name]()
    grad = torch.enable_grad() if "training" in name else torch.no_grad()
    with grad:
        call = build()
        call()
        seconds = cpu_seconds(call)
    row = {"measured": peak() * GB - before, "planned": planned, "before": before}
    if flops is not None:
        speed = cpu.speed("float32" if "float32" in name else "bfloat16") or 1.0
        row |= {"seconds": seconds, "planned seconds": flops / (speed * CPU), "speed": speed}
    return row


def run_process(name: str, folder: Path) -> Row:
    command = [sys.executable, __file__, "--worker", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    if "Plus" in name and "training" not in name:
        path = folder / "adapter.safetensors"
        write_adapter(path, "plus", SDXL if "SDXL" in name else SD15)
        environment["ADAPTER"] = str(path)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {"process": name, **row}


def markdown(rows: list[Row]) -> str:
    lines = ["| process | planned GiB | measured GiB | off | planned s | measured s |"]
    lines.append("|---" * 6 + "|")
    for row in rows:
        planned, measured = (row[name] / 2**30 for name in ("planned", "measured"))
        times = [row.get("planned seconds"), row.get("seconds")]
        told = " | ".join("-" if value is None else f"{value:.1f}" for value in times)
        off = planned / measured - 1
        lines.append(f"| {row['process']} | {planned:.2f} | {measured:.2f} | {off:+.1%} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=tuple(PROCESSES), default=tuple(PROCESSES))
    parser.add_argument("--worker", choices=tuple(PROCESSES), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker)))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_process(name, Path(folder)) for name in options.only]
    print(markdown(rows))
    print(f"\n{conditions()}, {time.perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
