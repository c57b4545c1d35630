"""Words of strength on the bundled stack: are they evenly spaced in what pictures show?

    python benchmarks/concept.py [--references 96] [--pairs 48] [--steps 12] [--sheet FILE]

The text names a shape, each reference is a held-out scene of another shape, and its look (colour,
texture, background and its style) is what words ask for: seven words from "without" to "extremely".
The adapter is calibrated on other scenes (six styles of the validation split). What is measured is
the judge's share of the look's words, which the calibration never sees, and the encoder's cosine,
which it uses. The control takes the words as plain scales; the ceiling is the drawn scene with the
text's shape and the reference's look. "spearman" is that of the word and the mean over references,
"each" the mean of those of single references, with 95 % intervals over references; "evenness" is
the root mean square distance of the seven means from a straight line, in shares of their range.
A mixture has a second style, "slightly", beside the first with all words. At last the time to
switch to a style that was used before. Prints one JSON object a row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import imageprompt as ip
from imageprompt.demo import scenes
from imageprompt.demo.judge import classify
from imageprompt.demo.scenes import Scene
from imageprompt.evaluation.metrics.contract import unit
from imageprompt.evaluation.statistics.intervals import mean_interval
from imageprompt.library import Library
from imageprompt.library.encoder_setup import load_with_encoder
from imageprompt.library.search import pooled_embeddings
from imageprompt.workflows.concept import LOOK, calibration
from imageprompt.workflows.concept.phrase import LADDER, parse
from imageprompt.workflows.result import draw_sheet

Array = NDArray[np.float64]
TEXT = "a star"
PRESET = "style"


def scenes_of(split: str, count: int, seed: int) -> list[Scene]:
    """Scenes of other shapes than the text names."""
    stream = (one for one in scenes.stream(split, seed=seed) if one.shape != "star")
    return list(islice(stream, count))


def ranks(values: Sequence[float]) -> Array:
    """Ranks, the mean of those of equal values."""
    found = np.asarray(values, np.float64)
    return np.asarray([(found < one).sum() + ((found == one).sum() - 1) / 2 for one in found])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """0 where all values are equal."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def three(values: Array) -> list[float]:
    interval = mean_interval(values)
    return [round(float(one), 3) for one in (values.mean(), interval.low, interval.high)]


class Bench:
    """References, the engine and the encoder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.steps = options.steps
        self.engine = ip.Engine()
        self.loaded = load_with_encoder()
        self.strengths = [
            0.0 if word == "without" else parse(f"{word} NAME", {"NAME": ()})[0].strength
            for word in LADDER
        ]

    def calibrate(self, library: Library) -> calibration.Curve:
        """By the workflow itself."""
        names = []
        for index, scene in enumerate(scenes_of("validation", calibration.MOST_STYLES, 70)):
            names.append(f"style {index}")
            library.add(
                names[-1],
                self.loaded.adapter,
                scenes.draw(scene),
                made_with=self.loaded.made_with,
            )
        ip.workflows.concept(
            style=names[0],
            prompt=TEXT,
            library=library.folder,
            steps=self.steps,
            num_images=1,
            calibrate=True,
            engine=self.engine,
            progress=False,
        )
        entries: Any = library.show(names[0]).recipe[calibration.ENTRY]
        (plain,) = entries.values()
        curve = calibration.Curve.of(plain)
        assert curve is not None
        return curve

    def pictures(self, references: Sequence[Sequence[tuple[Scene, float]]]) -> list[Any]:
        """One for each list of scenes and scales."""
        requests: list[dict[str, Any]] = []
        for seed, chosen in enumerate(references):
            request: dict[str, Any] = {"prompt": TEXT, "steps": self.steps, "seed": 1 + seed}
            used = [(scene, scale) for scene, scale in chosen if scale > 0]
            if not used:
                request["scale"] = 0.0
            for index, (scene, scale) in enumerate(used):
                one = {"reference": scenes.draw(scene), "scale": scale, "preset": PRESET}
                if index == 0:
                    request |= one
                else:
                    request["also"] = [ip.Reference(**one)]
            requests.append(request)
        return [
            one.images[0]
            for one in self.engine.generate_many(requests, batch_size=16, progress=False)
        ]

    def look(self, pictures: Sequence[Any], wanted: Sequence[Scene]) -> Array:
        """[n]: the judge's share of the look's words."""
        found = classify(pictures)
        return np.asarray(
            [
                np.mean([words[name] == getattr(scene, name) for name in LOOK])
                for words, scene in zip(found, wanted, strict=True)
            ]
        )

    def cosine(self, pictures: Sequence[Any], wanted: Sequence[Scene]) -> Array:
        """[n]: of the pictures' and the references' embeddings."""
        encoder = self.loaded.adapter.encoder
        rows = [
            unit(pooled_embeddings(those, encoder).float().numpy())  # type: ignore[union-attr]
            for those in (pictures, [scenes.draw(one) for one in wanted])
        ]
        return np.asarray((rows[0] * rows[1]).sum(1))

    def ladder(self, name: str, values: Array, **facts: Any) -> None:
        """A row from values [references, words]."""
        means = values.mean(0)
        fit = np.polyval(np.polyfit(self.strengths, means, 1), self.strengths)
        each = np.asarray([spearman(row.tolist(), self.strengths) for row in values])
        line = {
            "row": name,
            "references": len(values),
            "means": [round(float(one), 3) for one in means],
            "intervals": [three(column)[1:] for column in values.T],
            "spearman": round(spearman(means.tolist(), self.strengths), 3),
            "each": three(each),
            "monotone": bool((np.diff(means) >= 0).all()),
            "evenness": round(float(np.sqrt(np.mean((means - fit) ** 2)) / np.ptp(means)), 3),
        }
        print(json.dumps(line | facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--references", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started, bench = time.process_time(), Bench(options)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(Path(folder) / "library")
        curve = bench.calibrate(library)
        print(json.dumps({"row": "curve", **vars(curve)}), flush=True)
        held_out = scenes_of("test", options.references, 71)
        calibrated = [curve.scale(one) for one in bench.strengths]
        for title, scales in (("calibrated", calibrated), ("control: plain", bench.strengths)):
            made = [bench.pictures([[(one, scale)] for one in held_out]) for scale in scales]
            facts = {"words": LADDER, "scales": scales, "steps": options.steps}
            for what, measure in (("judge", bench.look), ("cosine", bench.cosine)):
                values = np.stack([measure(column, held_out) for column in made], 1)
                bench.ladder(f"{title}, {what}", values, **facts)
            if options.sheet is not None and title == "calibrated":
                cells = []
                for row, scene in enumerate(held_out[:10]):
                    cells.append(("", scenes.draw(scene), True))
                    cells += [
                        (f"{word} {scale:.2f}", column[row], False)
                        for word, scale, column in zip(LADDER, scales, made, strict=True)
                    ]
                draw_sheet(cells, columns=1 + len(LADDER)).save(options.sheet)
        drawn = [scenes.draw(replace(one, shape="star")) for one in held_out]
        print(json.dumps({"row": "ceiling, judge", "look": three(bench.look(drawn, held_out))}))
        mixture(bench, curve, options.pairs)
        switch(bench, library)
    print(json.dumps({"row": "cost", "cpu_s": round(time.process_time() - started, 1)}))


def mixture(bench: Bench, curve: calibration.Curve, count: int) -> None:
    """The first style with all words beside "slightly" of the second."""
    first, second = scenes_of("test", count, 72), scenes_of("test", count, 73)
    beside = curve.scale(bench.strengths[LADDER.index("slightly")])
    made = [
        bench.pictures(
            [[(a, curve.scale(strength)), (b, beside)] for a, b in zip(first, second, strict=True)]
        )
        for strength in bench.strengths
    ]
    for name, wanted in (("first", first), ("second, slightly", second)):
        for what, measure in (("judge", bench.look), ("cosine", bench.cosine)):
            values = np.stack([measure(column, wanted) for column in made], 1)
            bench.ladder(f"mixture, {name}, {what}", values)


def switch(bench: Bench, library: Library) -> None:
    """Milliseconds to a style that was used before, until it can be sampled."""
    import torch

    adapter = bench.loaded.adapter
    wall, cpu = [], []
    adapter.attach(bench.engine.loaded.pipe)
    for turn in range(6):
        for name in library.names():
            clocks = time.perf_counter(), time.process_time()
            with torch.no_grad(), adapter.use(library.open(name, adapter)) as handle:
                taken = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
                handle.called = True
            if turn:
                wall.append(1e3 * taken[0])
                cpu.append(1e3 * taken[1])
    adapter.detach()
    medians = [round(float(np.median(one)), 2) for one in (wall, cpu)]
    print(json.dumps({"row": "switch", "wall_ms": medians[0], "cpu_ms": medians[1]}), flush=True)


if __name__ == "__main__":
    main()
