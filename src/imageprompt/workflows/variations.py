"""variations: pictures like a picture, spread over seeds and scales; near-copies are flagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.generation import option_values as values
from imageprompt.generation.option_values import NUMBERS
from imageprompt.generation.reference import as_list
from imageprompt.workflows._judged import kept
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control, numbers, pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.generation.result import GenerationResult
    from imageprompt.workflows.job import Job

BITS = 8
"""Of the 64 of a perceptual hash: pictures that differ in no more are near-copies."""
_NEAR = 1 - 2 * BITS / 64


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """One picture or several of the same thing."""

    picture: Annotated[Any, pictures("the picture to vary; may be repeated")]
    prompt: Annotated[str, control("text beside it (default: none)", metavar="TEXT")] = ""
    scales: Annotated[
        Any,
        control(
            "scales to spread over, 0..2, each with all seeds (default 0.4,0.7,1)",
            metavar="A,B",
            parse=values.parse_numbers,
            json=NUMBERS,
        ),
    ] = (0.4, 0.7, 1.0)
    num_images: Annotated[
        int, control("seeds for each scale (default 2)", metavar="N", ge=1, le=16)
    ] = 2


def steps(inputs: Inputs, job: Job) -> None:
    scales = numbers("scales", inputs.scales, highest=2)
    from imageprompt.encoding.images.open_image import open_picture

    given = as_list(inputs.picture)
    references = [open_picture(one) for one in given]
    for reference in references:
        job.show("the picture", reference)
    job.expect(len(scales) * inputs.num_images)
    made: list[_Variation] = []
    for scale in scales:
        found = job.generate(
            inputs.prompt, given, scale=scale, size=inputs.size, num_images=inputs.num_images
        )
        made += [_Variation(scale, found, index, inputs.seed) for index in range(len(found))]
    copying, flags, diversity = _compare(made, references)
    shares = kept(job, [one.image for one in made], references[0])
    for number, one in enumerate(made):
        figures: dict[str, Any] = {"copying": copying[number], "near_copy": flags[number] or None}
        if shares:
            figures["attributes_kept"] = shares[number]
        label = f"{one.label}: {flags[number]}" if flags[number] else one.label
        job.add(label, one.image, one.result, one.index, **figures)
    copies = sum(map(bool, flags))
    job.measured |= {"near_copies": copies, "diversity": diversity}
    for scale in scales:
        own = [number for number, one in enumerate(made) if one.scale == scale]
        job.measured[f"copying_scale_{scale:g}"] = float(np.mean([copying[i] for i in own]))
        if shares:
            share = float(np.mean([shares[i] for i in own]))
            job.measured[f"attributes_kept_scale_{scale:g}"] = share
    if copies:
        job.notes.append(f"{copies} of {len(made)} are near-copies; lower the scales, or add text")


@dataclass(frozen=True)
class _Variation:
    scale: float
    result: GenerationResult
    index: int
    seed: int

    @property
    def image(self) -> Image:
        return self.result[self.index]

    @property
    def label(self) -> str:
        return f"scale {self.scale:g}, seed {self.seed + self.index}"


def _compare(
    made: Sequence[_Variation], references: Sequence[Image]
) -> tuple[list[float], list[str], float]:
    """Cosine of each one's hash with the nearest reference's, what it copies or "", diversity."""
    from imageprompt.evaluation.extractors.copy import PerceptualHash

    hashes = PerceptualHash()
    rows = hashes.encode([one.image for one in made])
    copying = (rows @ hashes.encode(references).T).max(1) / hashes.width
    cosines = rows @ rows.T / hashes.width
    flags = []
    for number in range(len(made)):
        earlier = cosines[number, :number]
        flag = "near-copy of the picture" if copying[number] >= _NEAR else ""
        if not flag and earlier.max(initial=-1) >= _NEAR:
            flag = f"near-copy of {made[int(earlier.argmax())].label}"
        flags.append(flag)
    pairs = len(made) * (len(made) - 1)
    diversity = 1 - (float(cosines.sum()) - len(made)) / pairs if pairs else float("nan")
    return [float(one) for one in copying], flags, diversity


WORKFLOW = Workflow(
    name="variations",
    summary="pictures like a picture, spread over seeds and scales, near-copies flagged",
    inputs=Inputs,
    steps=steps,
    measures={
        "near_copies": f"pictures of whose 64-bit perceptual hash at most {BITS} bits differ from "
        "the picture's or an earlier one's",
        "diversity": "mean distance of two perceptual hashes: 0 all alike, 1 unrelated",
        "copying_scale_*": "mean cosine of the hashes with the picture's, by scale",
        "attributes_kept_scale_*": "share of five attributes of the picture that are kept, by "
        "scale; the judge of the bundled stacks only",
    },
    references=("picture",),
)
