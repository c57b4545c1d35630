"""faces: who a picture shows, by a recogniser that the adapter does not read."""

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
    folders_of,
    likeness,
    mean_where,
    need_folder,
    of_metrics,
    pictures_of,
)
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.scoring.texts import read_texts
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference, name_of

PEOPLE, PROMPTS = "people", "prompts.txt"
_LAYOUT = (
    f"{PEOPLE}/anna/1.jpg ... (a folder for each person, one picture or more)\n"
    f"{PROMPTS} (a text a line)"
)
_EXPECTED = 100


def read(folder: Path, root: Path, limit: int | None) -> ProtocolData:
    """Each person with each text; the first picture is shown, all are compared with."""
    people = folders_of(need_folder(folder / PEOPLE, "faces", f"{PEOPLE}/ and {PROMPTS}"))
    prompts = [line.strip() for line in read_texts(folder / PROMPTS, MAX_TEXT) if line.strip()]
    if not prompts or len(people) < 2:
        raise OptionError(
            f"data {str(folder)!r}",
            reason=f"{len(people)} people and {len(prompts)} texts; the zero line needs two people",
        )
    references: list[StudyReference] = []
    cases: list[Case] = []
    for person in people[:limit]:
        first = len(references)
        for file in pictures_of(person):
            references.append(StudyReference(Picture(file, name_of(file, root)), person.name))
        targets = tuple(range(first, len(references)))
        cases += [Case(first, prompt, targets=targets) for prompt in dict.fromkeys(prompts)]
    used = min(len(people), limit or len(people))
    return ProtocolData(references, cases, used, len(people), "people", _EXPECTED)


def check(config: StudyConfig) -> None:
    """The recogniser must be another than the one that an adapter reads. Raises OptionError."""
    source = config.extractors.get("face")
    if source is None:
        raise OptionError(
            "faces without a recogniser",
            reason="who a picture shows is measured by one",
            hint="Name a model pack that no adapter reads: --extractor face=antelopev2.",
        )
    for entry in config.entries:
        if entry.faces is not None and Path(entry.faces).name == Path(source).name:
            raise OptionError(
                f"recogniser {source!r}",
                reason=f"adapter {entry.title} is conditioned by it, and would be flattered",
                hint="Measure with another model pack.",
            )


def figures(measured: Measured) -> Iterator[Figure]:
    """Likeness with failures as 0 and without them, pictures without a face, and the zero line."""
    for setting in measured.settings:
        values, labels = setting.lines.metrics["face"], by_reference(setting)
        lost = np.isnan(values)
        yield Figure.of("identity, no face is 0", setting.name, np.where(lost, 0, values), labels)
        if not lost.all():
            yield Figure.of("identity where a face is", setting.name, values, labels)
        yield Figure.of("pictures without a face", setting.name, lost, labels)
    yield from _zero_line(measured)
    yield from of_metrics(measured, {"CLIP-T": "clip-t", "words": "words"})


def _zero_line(measured: Measured) -> Iterator[Figure]:
    """How alike the references of different people are: each with all those of others."""
    references = measured.data.references
    rows = measured.scorer.features("face", [one.picture for one in references])
    people = np.array([one.subject for one in references])
    alike = likeness(rows, rows)
    other = (people[:, None] != people[None, :]) & np.isfinite(alike)
    yield Figure.of("identity of different people", "references", mean_where(alike, other), people)
    if other.any():
        highest = float(np.quantile(alike[other], 0.99))
        yield Figure(
            "identity of different people, 99 %", "references", highest, None, int(other.sum())
        )


PROTOCOL = Protocol(
    name="faces",
    title="Faces",
    summary="identity by a second recogniser, pictures without a face, a zero line",
    source="no agreed set; used: PuLID's 120 people, IBench's 100 people x 41 texts",
    layout=_LAYOUT,
    choices=(
        Choice("data", "varies", "yours; 100 people x 5 texts or more"),
        Choice("recogniser", "often the one that conditions", "another one: refused else"),
        Choice("no face found", "often left out", "counts as 0, and apart"),
        Choice("zero line", "rarely given", "different people among the references"),
        Choice("compared with", "varies", "all pictures of the person, on average"),
        Choice("intervals", "none", "95 %, over people"),
    ),
    defaults={"scales": [1.0], "seeds": 1},
    read=read,
    figures=figures,
    check=check,
)
