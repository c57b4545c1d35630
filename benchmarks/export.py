"""Exported denoisers beside PyTorch: CPU time of a step and of a picture, and sizes on disk.

    python benchmarks/export.py --size bundled
    python benchmarks/export.py --size sd15 --w8a8 --json export.json

`bundled` exports the bundled stack and generates pictures. `sd15` exports a UNet of SD1.5's size
with random weights, and runs steps at 32x32 latents, two rows, 77 text tokens, 16 image tokens.
One thread; the candidates take turns, and ratios are those of the medians of CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bases import SD15, random_unet
from peer import flat, published_adapter
from timing import conditions, cpu_seconds

Calls = Mapping[str, Callable[[], object]]
LATENT, TOKENS = 32, 16


def seconds_of(calls: Calls, rounds: int) -> dict[str, float]:
    """The median CPU time of each call; they take turns, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took = cpu_seconds(call)
            if number:
                found[name].append(took)
    return {name: statistics.median(times) for name, times in found.items()}


def size_of(folder: Path, names: Any) -> float:
    """Megabytes."""
    return sum((folder / name).stat().st_size for name in names) / 1e6


# ── the bundled stack ───────────────────────────────────────────────────────────────────────────


def bundled(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import imageprompt as ip
    from imageprompt.demo import scenes
    from imageprompt.deploy.export import export

    made = export(to=options.to, output=folder / "bundled")
    engines = {"eager float32": ip.Engine()}
    for dtype in ("float32", "bfloat16") if options.to == "openvino" else ("float32",):
        engines[f"{options.to} {dtype}"] = ip.Engine(exported=made.folder, dtype=dtype)
    picture = scenes.draw(next(islice(scenes.stream("test", seed=1), 1)))
    steps: dict[str, float] = dict.fromkeys(engines, 0.0)
    counts = dict.fromkeys(engines, 0)

    def timed(name: str, denoiser: Any) -> None:
        inner = denoiser.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            made: list[Any] = []
            steps[name] += cpu_seconds(lambda: made.append(inner(*args, **kwargs)))
            counts[name] += 1
            return made[0]

        denoiser.forward = forward

    def picture_of(engine: Any) -> Callable[[], object]:
        return lambda: engine.generate("", picture, scale=1.0, progress=False)

    calls = {name: picture_of(engine) for name, engine in engines.items()}
    for name, engine in engines.items():
        calls[name]()
        timed(name, engine.loaded.pipe.unet)
    pictures = seconds_of(calls, options.rounds)
    return {
        "size": "bundled",
        "seconds a step": {name: steps[name] / counts[name] for name in engines},
        "seconds a picture": pictures,
        "MB": {
            name: size_of(made.folder, part.files) for name, part in made.manifest.parts.items()
        },
        "parity": dict(made.manifest.parity),
    }


# ── the size of SD1.5 ───────────────────────────────────────────────────────────────────────────


def sd15(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    import imageprompt as ip
    from imageprompt.deploy.export.backends import BACKENDS
    from imageprompt.deploy.export.modules import exportable_denoiser
    from imageprompt.deploy.export.parity import traced_sizes
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.generation.exported.calls import calls_of
    from imageprompt.generation.exported.manifest import Part
    from imageprompt.generation.runtimes import RUNTIMES
    from imageprompt.hosts import host_of

    unet: Any = random_unet(SD15, torch.float32)
    path = folder / "plus.safetensors"
    state = published_adapter(unet, "plus", 768, dtype=torch.float32)
    save_file({name: weight.contiguous() for name, weight in flat(state).items()}, path)
    adapter = ip.Adapter.load(path, dtype=torch.float32)
    tokens, null = torch.randn(2, 1, TOKENS, 768)
    backend = BACKENDS[options.to]
    calls = calls_of(unet)
    places = {(site.name, "attention") for site in host_of(unet).describe(unet).sites}
    with exportable_denoiser(unet, calls, places, traced_sizes(calls)) as (part, readers):
        files = backend.write(part, folder, "denoiser", "float32")
        ports = part.inputs, part.outputs
    runtime = RUNTIMES[backend.runtime]
    part_ = Part(files=dict.fromkeys(files, ""), inputs=ports[0], outputs=ports[1])
    inputs = SD15.inputs(2, latent=LATENT, dtype=torch.float32)
    sizes = {"batch": 2, "height": LATENT, "width": LATENT, "text": 77, "prompts": 1}
    sizes |= {"tokens": TOKENS}
    sizes |= {f"positions_{i}": calls.positions(sizes, i) for i in range(4)}
    given = {
        port.name: torch.rand([a if isinstance(a, int) else sizes[a] for a in port.shape])
        for port in ports[0]
    }
    given |= {"sample": inputs["sample"], "timestep": torch.full((2,), 421.0)}
    candidates: dict[str, Callable[[], object]] = {}
    for dtype in options.dtypes:
        graph = runtime.open(folder, part_, dtype, 1)
        candidates[f"{options.to} {dtype}"] = lambda graph=graph: graph(given)
    if options.w8a8:
        from imageprompt.deploy.quantize.backends import QUANTIZERS

        calls_ = [{name: value.numpy() for name, value in given.items()}]
        name = f"w8a8{Path(files[0]).suffix}"
        target = QUANTIZERS[options.to].write(folder / files[0], folder / name, "w8a8", calls_)
        graph = runtime.open(folder, replace(part_, files=dict.fromkeys(target, "")), "float32", 1)
        candidates[f"{options.to} w8a8"] = lambda: graph(given)

    def eager(dtype: torch.dtype) -> Callable[[], object]:
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}

        def call() -> None:
            with torch.no_grad():
                unet(**cast)

        return call

    measured = {}
    for dtype in options.dtypes:
        kind = getattr(torch, dtype)
        unet.to(kind)
        adapter.attach(unet)
        prompt = ImagePrompt(tokens.to(kind), null.to(kind))
        with adapter.use(prompt, scale=0.8, guidance="negative-positive"), torch.no_grad():
            pair = {f"eager {dtype}": eager(kind), **candidates}
            measured |= {
                f"{name} (beside eager {dtype})": took
                for name, took in seconds_of(pair, options.rounds).items()
            }
        adapter.detach()
    return {
        "size": "sd15",
        "seconds a step": measured,
        "MB": {"denoiser": size_of(folder, files)},
        "readers": len(readers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("bundled", "sd15"), default="bundled")
    parser.add_argument("--to", default="openvino")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--w8a8", action="store_true", help="with sd15: also in int8, calibrated by one call; 14 GB"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(conditions())
    with tempfile.TemporaryDirectory() as folder:
        found = {"bundled": bundled, "sd15": sd15}[options.size](options, Path(folder))
    found["conditions"] = conditions()
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
