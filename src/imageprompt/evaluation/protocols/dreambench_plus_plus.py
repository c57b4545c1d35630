"""dreambench++: 150 pictures with nine prompts each, rated by a judge model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.protocols.contract import (
    MAX_TEXT,
    Choice,
    Figure,
    Measured,
    Protocol,
    ProtocolData,
    by_reference,
    need_folder,
    of_metrics,
)
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.scoring.texts import read_texts
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference, name_of, pictures_below
from imageprompt.evaluation.study.results import ADAPTER

PICTURES, CAPTIONS = "images", "captions"
_LAYOUT = (
    f"{PICTURES}/object/00.jpg, {PICTURES}/live_subject/animal/00.jpg ...\n"
    f"{CAPTIONS}/object/00.txt ... (the subject in the first line, then a prompt a line)"
)
_EXPECTED = 150
_CONCEPT, _PROMPT = "concept preservation", "prompt following"
_BEST = 4
"""The highest score of the judge."""


def read(folder: Path, root: Path, limit: int | None) -> ProtocolData:
    """Each picture with the prompts of the text file of the same name."""
    top = need_folder(folder / PICTURES, "dreambench++", f"{PICTURES}/ and {CAPTIONS}/")
    files = sorted(pictures_below(top))
    if not files:
        raise OptionError(f"data {str(top)!r}", reason="no pictures in this folder")
    references, cases = [], []
    for number, file in enumerate(files[:limit]):
        text = folder / CAPTIONS / file.relative_to(top).with_suffix(".txt")
        lines = [line.strip() for line in read_texts(text, MAX_TEXT)]
        prompts = [line for line in lines[1:] if line]
        if not prompts:
            raise OptionError(f"data {str(text)!r}", reason="no prompt after the first line")
        references.append(StudyReference(Picture(file, name_of(file, root)), ""))
        cases += [Case(number, prompt) for prompt in prompts]
    return ProtocolData(references, cases, len(references), len(files), "pictures", _EXPECTED)


def figures(measured: Measured) -> Iterator[Figure]:
    """The judge's two axes from 0 to 1 and their product, where there is one; then the metrics."""
    if measured.verdicts is not None:
        failed = len(measured.verdicts.failed)
        note = f"{failed} calls failed and are no part of it" if failed else ""
        for setting in measured.settings:
            if setting.row == ADAPTER:
                labels = by_reference(setting)
                concept, prompt = (
                    measured.verdicts.values(name, setting.lines) / _BEST
                    for name in (_CONCEPT, _PROMPT)
                )
                for name, values in (
                    (_CONCEPT, concept),
                    (_PROMPT, prompt),
                    ("product", concept * prompt),
                ):
                    if np.isfinite(values).any():
                        yield Figure.of(name, setting.name, values, labels, note)
    names = {"DINO": "dino", "CLIP-I": "clip-i", "CLIP-T": "clip-t"}
    yield from of_metrics(measured, names | {"attributes": "attributes", "words": "words"})


PROTOCOL = Protocol(
    name="dreambench++",
    title="DreamBench++",
    summary="150 pictures x 9 prompts, with a judge model or without one",
    source="DreamBench++, arXiv 2406.16855; github.com/yuangpeng/dreambench_plus",
    layout=_LAYOUT,
    choices=(
        Choice("data", "150 pictures x 9 prompts", "the same"),
        Choice("adapter", "scale 0.6, guidance 7.5, 100 steps", "the same"),
        Choice("seed", "42, one generator for all pictures", "42 for each picture"),
        Choice("size", "1024 x 1024 (SDXL)", "the base's own"),
        Choice("negative prompt", "in its generate_images.py", "none; --negative-prompt adds it"),
        Choice("judge", "gpt-4o-2024-05-13, 0 to 4, two prompts", "a plug-in, or none; raw kept"),
        Choice("failed calls", "count as 0", "counted apart"),
        Choice("CLIP", "ViT-B/32, x 100", "--extractor clip=openai/clip-vit-base-patch32, x 1"),
        Choice("DINO", "ViT-S/8, and DINOv2 small", "--extractor dino=facebook/dinov2-small"),
        Choice("intervals", "none", "95 %, over pictures"),
    ),
    defaults={
        "scales": [0.6],
        "seeds": 1,
        "seed": 42,
        "steps": 100,
        "guidance_scale": 7.5,
    },
    read=read,
    figures=figures,
    published={
        "IP-Adapter ViT-G, SDXL": {_CONCEPT: 0.593, _PROMPT: 0.640},
        "IP-Adapter-Plus ViT-H, SDXL": {_CONCEPT: 0.833, _PROMPT: 0.413},
    },
)
