"""Second-stage tuning on the bundled stack by the workflow: one domain gained, others kept.

    python benchmarks/tune_style.py [--pictures 720] [--references 96] [--train-steps 500]
                                    [--share 0.5] [--forgetting 0.03] [--adapter base]
                                    [--domain pairs|sepia|pastel] [--output DIR]

The domain `pairs` is what the stack's adapters have never seen: the eight pairs of shape and colour
that are held out of their training. `sepia` and `pastel` are scenes in colours that the stack's
palette lacks, which the judge has no words for: "match" is the distance of the Lab colours then
(lower is better), and "place" tells where it is between the control (0) and the ceiling (1); the
general pictures are measured alike. With pairs, "match" is the judge's share of the
five words of a reference, "whole" the share of pictures with all five. Rows are before, after,
without a reference (control), and the references after the autoencoder (ceiling), with the paired
change and its 95 % interval. Prints one JSON object; with --output, also the sheet and the adapter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps

import imageprompt as ip
from imageprompt.demo import scenes

PAIRS = "pairs"


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(picture.convert("L"), black=(60, 38, 20), white=(236, 214, 176))


def pastel(picture: Image.Image) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.6)


RECOLOURED: dict[str, Callable[[Image.Image], Image.Image]] = {"sepia": sepia, "pastel": pastel}


def draw_domain(folder: Path, count: int, domain: str) -> Path:
    """Pictures of the domain, with captions; those of other colours name the shape alone."""
    folder.mkdir(parents=True)
    stream = (
        scene
        for scene in scenes.stream("validation", seed=9)
        if domain != PAIRS or (scene.shape, scene.colour) in scenes.HELD_OUT_PAIRS
    )
    for index, scene in enumerate(islice(stream, count)):
        picture, caption = scenes.draw(scene), scenes.caption(scene)
        if domain != PAIRS:
            picture, caption = RECOLOURED[domain](picture), f"a {scene.shape}"
        picture.save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(caption)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=720)
    parser.add_argument("--references", type=int, default=96)
    parser.add_argument("--train-steps", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--forgetting", type=float, default=0.03)
    parser.add_argument("--adapter", default="base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--domain", choices=[PAIRS, *RECOLOURED], default=PAIRS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = ip.workflows.tune_style(
            domain=draw_domain(Path(folder) / "domain", options.pictures, options.domain),
            references=options.references,
            train_steps=options.train_steps,
            share=options.share,
            forgetting=options.forgetting,
            adapter=options.adapter,
            steps=options.steps,
            metric=None if options.domain == PAIRS else "lab",
            num_images=8,
            progress=False,
        )
        row = {name: value for name, value in vars(options).items() if name != "output"}
        cpu = round(time.process_time() - started, 1)
        print(json.dumps({**row, **result.measured, "notes": result.notes, "cpu_s": cpu}))
        if options.output is not None:
            result.save(options.output)


if __name__ == "__main__":
    main()
