"""How much of a reference a bundled stack transfers, and how well it follows the text.

    python benchmarks/fidelity.py --json fidelity.json --markdown fidelity.md
    python benchmarks/fidelity.py --stack bundled-sd3

The references are held out; half of them have (shape, colour) pairs that no part of the generator
was trained on. The stack's independent judge reads the five words of every picture. Also reported:
the judge's own ceilings, the text-only control, and 95 % Wilson intervals. The judge forgives
ragged outlines, so the overlap of the object with that of the reference is measured too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from imageprompt.adapter.adapter import Adapter
from imageprompt.core import bundled
from imageprompt.demo import judge, pipeline, scenes
from imageprompt.encoding.encoders import open_encoder
from imageprompt.evaluation.statistics import intervals

Words = dict[str, str]
Cell = dict[str, float]
MAIN = ("colour", "background", "texture", "shape")  # "all at once" is these four and the style


def wilson(hits: int, count: int) -> Cell:
    """Share with its 95 % Wilson interval."""
    interval = intervals.wilson(hits, count)
    return {
        "share": hits / count,
        "low": interval.low,
        "high": interval.high,
        "count": count,
    }


def match(found: Sequence[Words], expected: Sequence[Words]) -> dict[str, Cell]:
    """Per attribute and for all five at once: how often the judge reads the expected word."""
    hits = {
        name: [f[name] == w[name] for f, w in zip(found, expected, strict=True)]
        for name in scenes.ATTRIBUTES
    }
    hits["all"] = [all(row) for row in zip(*hits.values(), strict=True)]
    return {name: wilson(sum(row), len(row)) for name, row in hits.items()}


def object_mask(picture: Image.Image, scene: scenes.Scene) -> NDArray[np.bool_]:
    """Which pixels of a picture look like the scene's object rather than its background."""
    pixels = np.asarray(picture, np.float32)[:, :, None]
    fills = [np.asarray(scenes.PALETTE[scene.colour], np.float32)]
    if scene.texture != "solid":
        fills.append(scenes.second_colour(scene.colour))
    to_object = np.square(pixels - np.stack(fills)).sum(-1).min(-1)
    to_ground = np.square(pixels[:, :, 0] - scenes.background(scene)).sum(-1)
    nearer: NDArray[np.bool_] = to_object < to_ground
    return nearer


def overlap(pictures: Sequence[Image.Image], expected: Sequence[scenes.Scene]) -> Cell:
    """Intersection over union of the objects with where the scenes have theirs."""
    return overlap_of(
        (object_mask(picture, scene), scenes.mask(scene))
        for picture, scene in zip(pictures, expected, strict=True)
    )


def overlap_of(masks: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Cell:
    """Intersection over union of pairs of masks.

    The mean, its 95 % interval, and the value that nine of ten pairs exceed.
    """
    shares = [float((found & drawn).sum() / (found | drawn).sum()) for found, drawn in masks]
    interval = intervals.mean_interval(shares, method="t")
    return {
        "share": float(np.mean(shares)),
        "low": interval.low,
        "high": interval.high,
        "tenth": float(np.quantile(shares, 0.1)),
    }


def round_trip(vae: Any, x: torch.Tensor) -> tuple[list[Image.Image], float]:
    """Pictures [n, 3, h, w] in -1..1 after encoding and decoding, and the mean PSNR in dB."""
    with torch.no_grad():
        batches = [vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in x.split(32)]
    y = torch.cat(batches).clamp(-1, 1)
    psnr = float((10 * torch.log10(4 / (y - x).square().mean((1, 2, 3)))).mean())
    arrays = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays], psnr


class Bench:
    """One set of references, and the measurements on them."""

    def __init__(self, options: argparse.Namespace, on_progress: Callable[[int], None]) -> None:
        self.options, self.on_progress = options, on_progress
        self.pipe = pipeline.load_pipeline(stack=options.stack)
        self.encoder = open_encoder(bundled.folder(options.stack) / "image_encoder")
        drawn = scenes.stream(options.split, seed=options.seed)
        self.scenes = list(islice(drawn, options.count))
        self.references = [scenes.draw(scene) for scene in self.scenes]
        self.words = [scene.words() for scene in self.scenes]
        self.seeds = [1_000_000 * (options.seed + 1) + i for i in range(options.count)]

    def read(self, prompts: Sequence[str], **options: Any) -> list[Words]:
        """What the judge reads in one picture per prompt."""
        return judge.classify(self.generate(prompts, **options))

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Image.Image]:
        """One picture per prompt."""
        return pipeline.sample(
            self.pipe,
            prompts,
            self.seeds[: len(prompts)],
            steps=self.options.steps,
            guidance=self.options.guidance,
            on_pictures=self.on_progress,
            **options,
        )

    def ceilings(self) -> dict[str, Any]:
        """On 2,000 renders the judge, on the references the overlap; after the autoencoder both."""
        fresh = list(islice(scenes.stream(self.options.split, seed=self.options.seed + 500), 2000))
        decoded, psnr = round_trip(self.pipe.vae, judge.to_tensor(self.references))
        return {
            "judge on renders": match(
                judge.classify([scenes.draw(scene) for scene in fresh]),
                [scene.words() for scene in fresh],
            ),
            "judge after the autoencoder": match(judge.classify(decoded), self.words),
            "autoencoder_psnr_db": psnr,
            "overlap": {
                "references themselves": overlap(self.references, self.scenes),
                "after the autoencoder": overlap(decoded, self.scenes),
            },
        }

    def text_only(self) -> dict[str, Any]:
        """Full captions without a reference: all, and the half with pairs never trained."""
        found = self.read([scenes.caption(scene) for scene in self.scenes])
        return {
            "full captions": match(found, self.words),
            "full captions, pairs never trained": match(found[::2], self.words[::2]),
        }

    def control(self) -> dict[str, Any]:
        """A generic or empty text without a reference: chance."""
        return {"control": match(self.read(self._generic()), self.words)}

    def transfer(self, adapter: Any) -> dict[str, Any]:
        """A generic or empty text with a reference."""
        pictures = self.generate(
            self._generic(), adapter=adapter, references=self.references, scale=self.options.scale
        )
        found = judge.classify(pictures)
        return {
            "overlap": overlap(pictures, self.scenes),
            "all": match(found, self.words),
            "never trained": match(found[::2], self.words[::2]),
        }

    def overrides(self, adapter: Any, scale: float) -> dict[str, Any]:
        """The text changes one attribute: how often it wins, and how often the others are kept."""
        count = min(self.options.overrides, self.options.count)
        report: dict[str, Any] = {}
        kept: dict[str, list[bool]] = {name: [] for name in scenes.ATTRIBUTES}
        rng = np.random.default_rng(self.options.seed)
        for name in scenes.ATTRIBUTES:
            changed = [scenes.change(scene, [name], rng) for scene in self.scenes[:count]]
            found = self.read(
                [scenes.caption(scene, {name}) for scene in changed],
                adapter=adapter,
                references=self.references[:count],
                scale=scale,
            )
            cells = match(found, [scene.words() for scene in changed])
            report[name] = {"obeyed": cells.pop(name), "kept": cells}
            for other in scenes.ATTRIBUTES:
                if other != name:
                    pairs = zip(found, changed, strict=True)
                    kept[other] += [f[other] == getattr(w, other) for f, w in pairs]
        report["kept over all"] = {name: wilson(sum(row), len(row)) for name, row in kept.items()}
        return report

    def _generic(self) -> list[str]:
        return ["a shape" if index % 4 < 2 else "" for index in range(len(self.scenes))]


def show(cell: Cell) -> str:
    """ ".97 (.94-.99)"."""
    figures = (f"{cell[key]:.3f}".lstrip("0") for key in ("share", "low", "high"))
    return "{} ({}-{})".format(*figures)


def table(rows: dict[str, dict[str, Cell]], columns: Sequence[str]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for title, cells in rows.items():
        values = (show(cells[name]) if name in cells else "" for name in columns)
        lines.append(f"| {title} | {' | '.join(values)} |")
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    columns = [*MAIN, "style", "all"]
    rows = {
        "judge on renders": report["ceilings"]["judge on renders"],
        "judge after the autoencoder": report["ceilings"]["judge after the autoencoder"],
        "text only, full captions": report["text only"]["full captions"],
        "text only, pairs never trained": report["text only"]["full captions, pairs never trained"],
        "control: no reference": report["control"]["control"],
    }
    for name, found in report["transfer"].items():
        rows[f"{name}, scale {report['settings']['scale']}"] = found["all"]
        rows[f"{name}, pairs never trained"] = found["never trained"]
    parts = [table(rows, columns), ""]
    changed: dict[str, dict[str, Cell]] = {}
    for name, found in report["overrides"].items():
        changed[f"{name}: text obeyed"] = {key: found[key]["obeyed"] for key in scenes.ATTRIBUTES}
        changed[f"{name}: others kept"] = found["kept over all"]
    parts.append(table(changed, [*MAIN, "style"]))
    overlaps = report["ceilings"]["overlap"] | {
        f"{name}, scale {report['settings']['scale']}": found["overlap"]
        for name, found in report["transfer"].items()
    }
    parts += ["", "| overlap of the object with the reference's | mean | nine of ten above |"]
    parts += ["|---|---|---|"]
    parts += [f"| {name} | {show(cell)} | {cell['tenth']:.2f} |" for name, cell in overlaps.items()]
    psnr = report["ceilings"]["autoencoder_psnr_db"]
    parts.append(f"\nAutoencoder: {psnr:.1f} dB. Settings: {json.dumps(report['settings'])}")
    return "\n".join(parts)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stack", choices=sorted(bundled.FOLDERS), default=bundled.NAME)
    parser.add_argument("--count", type=int, default=240, help="number of references")
    parser.add_argument("--overrides", type=int, default=80, help="references per attribute")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--override-scales", type=float, nargs="*", default=[0.5, 0.6])
    parser.add_argument("--steps", type=int, default=pipeline.STEPS)
    parser.add_argument("--guidance", type=float, default=pipeline.GUIDANCE)
    parser.add_argument("--adapters", nargs="*", default=["base", "plus"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def write_report(report: dict[str, Any], text: str, options: argparse.Namespace) -> None:
    """Print the tables, and write the files named on the command line."""
    print(text)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    started = time.monotonic()
    per_adapter = options.count + 5 * len(options.override_scales) * options.overrides
    bar = tqdm(total=2 * options.count + len(options.adapters) * per_adapter, unit="picture")
    bench = Bench(options, bar.update)
    report: dict[str, Any] = {
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("json", "markdown")
        },
        "ceilings": bench.ceilings(),
        "text only": bench.text_only(),
        "control": bench.control(),
        "transfer": {},
        "overrides": {},
    }
    for name in options.adapters:
        adapter = Adapter.load(bundled.adapter(name, options.stack), dtype=torch.float32)
        adapter.attach(bench.pipe, encoder=bench.encoder)
        report["transfer"][name] = bench.transfer(adapter)
        for scale in options.override_scales:
            report["overrides"][f"{name}, scale {scale}"] = bench.overrides(adapter, scale)
        adapter.detach()
    bar.close()
    report["settings"]["seconds"] = round(time.monotonic() - started)
    write_report(report, markdown(report), options)


if __name__ == "__main__":
    main()
