"""Second-stage tuning on the bundled stack by the workflow: one domain gained, others kept.

    python benchmarks/tune_style.py [--pictures 720] [--references 96] [--train-steps 500]
                                    [--share 0.5] [--adapter base] [--output DIR]

The domain is what the stack's adapters have never seen: the eight pairs of shape and colour that
are held out of their training. "match" is the judge's share of the five words of a reference,
"whole" the share of pictures with all five; before, after, without a reference (control), and the
references after the autoencoder (ceiling), with the paired change and its 95 % interval. Prints
one JSON object; with --output, also the sheet and the adapter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import imageprompt as ip
from imageprompt.demo import scenes


def draw_domain(folder: Path, count: int) -> Path:
    """Pictures of the domain, with captions."""
    folder.mkdir(parents=True)
    stream = (
        scene
        for scene in scenes.stream("validation", seed=9)
        if (scene.shape, scene.colour) in scenes.HELD_OUT_PAIRS
    )
    for index, scene in enumerate(islice(stream, count)):
        scenes.draw(scene).save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(scenes.caption(scene))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=720)
    parser.add_argument("--references", type=int, default=96)
    parser.add_argument("--train-steps", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--adapter", default="base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = ip.workflows.tune_style(
            domain=draw_domain(Path(folder) / "domain", options.pictures),
            references=options.references,
            train_steps=options.train_steps,
            share=options.share,
            adapter=options.adapter,
            steps=options.steps,
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
