"""dreambench: the subjects and prompts of DreamBooth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.protocols.contract import (
    Choice,
    Figure,
    Measured,
    Protocol,
    ProtocolData,
    folders_of,
    need_folder,
    of_metrics,
    pictures_of,
)
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.scoring.texts import read_text
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference, name_of

CLASSES = "prompts_and_classes.txt"
MAX_FILE = 2**18
"""Of the file of prompts, which has 2 kB."""
_LIVE = frozenset(("cat", "dog"))
_LAYOUT = f"backpack/00.jpg ... (a folder for each subject)\n{CLASSES}"
_EXPECTED = 30
_TEMPLATE = re.compile(r"^'((?:[^'\\]|\\')*)'\.format\(", re.MULTILINE)
_CLASS = re.compile(r"^([\w-]+),([\w -]+)$", re.MULTILINE)
_TOKEN, _NOUN = "{0}", "{1}"


def read(folder: Path, root: Path, limit: int | None) -> ProtocolData:
    """Each subject with the prompts of its kind; its first picture is the reference."""
    need_folder(folder, "dreambench", f"a folder for each subject, and {CLASSES}")
    classes, objects, live = read_prompts(folder / CLASSES)
    subjects = [one for one in folders_of(folder) if one.name in classes]
    if not subjects:
        raise OptionError(
            f"data {str(folder)!r}",
            reason=f"no folder is one of the subjects in {CLASSES}",
            hint="Name the folder `dataset` of google/dreambooth.",
        )
    references: list[StudyReference] = []
    cases: list[Case] = []
    for subject in subjects[:limit]:
        first = len(references)
        for file in pictures_of(subject):
            references.append(StudyReference(Picture(file, name_of(file, root)), subject.name))
        targets, noun = tuple(range(first, len(references))), classes[subject.name]
        for template in live if noun in _LIVE else objects:
            text = " ".join(template.replace(_TOKEN, "").replace(_NOUN, noun).split())
            cases.append(Case(first, text, targets=targets))
    used = min(len(subjects), limit or len(subjects))
    return ProtocolData(references, cases, used, len(subjects), "subjects", _EXPECTED)


def read_prompts(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Subject -> its noun, the prompts for objects, and those for live subjects.

    The file is read as text; the Python in it is not run. Raises OptionError.
    """
    head, _, rest = read_text(path, MAX_FILE).partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    classes = {subject: noun.strip() for subject, noun in _CLASS.findall(head)}
    classes.pop("subject_name", None)
    found = [[one for one in _TEMPLATE.findall(part) if _NOUN in one] for part in (objects, live)]
    if not (classes and found[0] and found[1]):
        raise OptionError(
            f"data {str(path)!r}",
            reason="without subjects, object prompts or live subject prompts",
            hint="Use the file of google/dreambooth as it is.",
        )
    return classes, found[0], found[1]


def figures(measured: Measured) -> Iterator[Figure]:
    """The usual three; the ceiling are pairs of real pictures of one subject."""
    names = {"DINO": "dino", "CLIP-I": "clip-i", "CLIP-T": "clip-t"}
    names |= {"attributes": "attributes", "words": "words"}
    yield from of_metrics(measured, names)


PROTOCOL = Protocol(
    name="dreambench",
    title="DreamBench",
    summary="30 subjects x 25 prompts x 4: the subject in another scene",
    source="DreamBooth, arXiv 2208.12242; github.com/google/dreambooth",
    layout=_LAYOUT,
    choices=(
        Choice("data", "30 subjects x 25 prompts x 4 pictures", "the same"),
        Choice("subject", "fine-tuned on all of its pictures", "the first picture is shown"),
        Choice("rare token", "in the prompt", "left out: an adapter has none"),
        Choice("CLIP-T", "with or without the rare token: not stated", "without it"),
        Choice("DINO, CLIP-I", "mean over all real pictures of the subject", "the same"),
        Choice("DINO", "ViT-S/16", "--extractor dino=facebook/dino-vits16"),
        Choice("CLIP", "varies between papers", "--extractor clip=openai/clip-vit-base-patch32"),
        Choice("real pictures", "DINO of pairs of one subject: about .77", "the ceiling"),
        Choice("adapter scale", "no adapter", "0.6; more than one is better"),
        Choice("intervals", "none", "95 %, over subjects"),
    ),
    defaults={"scales": [0.6], "seeds": 4, "seed": 0},
    read=read,
    figures=figures,
)
