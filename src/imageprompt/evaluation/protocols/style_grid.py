"""style-grid: each content with each style, and how far a style is from the other styles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import OptionError
from imageprompt.demo.scenes import ATTRIBUTES, named_words
from imageprompt.evaluation.protocols.contract import (
    MAX_TEXT,
    Choice,
    Figure,
    Measured,
    Protocol,
    ProtocolData,
    by_reference,
    likeness,
    mean_where,
    need_folder,
    of_metrics,
)
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.scoring.texts import read_text
from imageprompt.evaluation.settings import Setting
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference, name_of, pictures_below
from imageprompt.evaluation.study.results import CEILING

STYLES, CONTENTS = "style", "content"
_LAYOUT = (
    f"{STYLES}/ink/01.jpg ... (a folder for each style, or each picture a style of its own)\n"
    f"{CONTENTS}/house.txt ... (what the picture is to show)"
)
_EXPECTED = 20
_MAX_CONTENTS = 10_000
_STYLE_METRICS = ("csd", "clip-i")
"""What stands for style: the first of these that the study has."""
_OBJECT = "shape"
"""The word of a drawn scene that is its object."""


def read(folder: Path, root: Path, limit: int | None) -> ProtocolData:
    """Every text with every picture of a style; with a limit, of the first styles."""
    top = need_folder(folder / STYLES, "style-grid", f"{STYLES}/ and {CONTENTS}/")
    place = need_folder(folder / CONTENTS, "style-grid", f"{STYLES}/ and {CONTENTS}/")
    texts = sorted(place.glob("*.txt"))[: _MAX_CONTENTS + 1]
    if not 1 <= len(texts) <= _MAX_CONTENTS:
        raise OptionError(
            f"data {str(place)!r}", reason=f"has {len(texts)} texts, not 1 to {_MAX_CONTENTS:,}"
        )
    contents = [*dict.fromkeys(" ".join(read_text(path, MAX_TEXT).split()) for path in texts)]
    styles: dict[str, list[Path]] = {}
    for file in sorted(pictures_below(top)):
        name = file.stem if file.parent == top else file.parent.relative_to(top).as_posix()
        styles.setdefault(name, []).append(file)
    if len(styles) < 2:
        raise OptionError(
            f"data {str(top)!r}",
            reason=f"{len(styles)} styles; the gap to other styles needs two",
            hint="Make a folder of pictures for each style.",
        )
    chosen = [*styles.items()][:limit]
    references = [
        StudyReference(Picture(file, name_of(file, root)), name)
        for name, files in chosen
        for file in files
    ]
    cases = [Case(number, text) for number in range(len(references)) for text in contents]
    return ProtocolData(references, cases, len(chosen), len(styles), "styles", _EXPECTED)


def figures(measured: Measured) -> Iterator[Figure]:
    """The style, its gap to other styles, leakage, and how well the text is followed."""
    metric = next((one for one in _STYLE_METRICS if one in measured.scorer.metrics), None)
    if metric is not None:
        for setting in measured.settings:
            yield from _style_figures(measured, setting, metric)
    if "attributes" in measured.scorer.metrics:
        for setting in measured.settings:
            if setting.row != CEILING:
                yield from _object_figures(measured, setting)
    yield from of_metrics(measured, {"CLIP-T": "clip-t", "words": "words"})


def _style_figures(measured: Measured, setting: Setting, metric: str) -> Iterator[Figure]:
    """How like its own style a picture is, less how like the others: raw likeness says little."""
    role = str(measured.scorer.metrics[metric].extractor)
    source = measured.scorer.extractor(role).name
    references = [one.picture for one in measured.data.references]
    alike = likeness(
        measured.scorer.features(role, _pictures(setting)),
        measured.scorer.features(role, references),
    )
    styles, own = (
        np.array([one.subject for one in measured.data.references]),
        _own(measured, setting),
    )
    same = styles[None, :] == styles[own][:, None]
    shown = np.arange(len(styles))[None, :] == own[:, None]
    of_own, of_others = mean_where(alike, shown), mean_where(alike, ~same)
    labels = by_reference(setting)
    note = f"{metric} of {source}"
    yield Figure.of("style", setting.name, of_own, labels, note)
    yield Figure.of("style, less other styles", setting.name, of_own - of_others, labels, note)
    rest = same & ~shown
    if rest.any(1).all():
        leaked = of_own - mean_where(alike, rest)
        yield Figure.of(
            "likeness to the picture beyond its style", setting.name, leaked, labels, note
        )


def _object_figures(measured: Measured, setting: Setting) -> Iterator[Figure]:
    """Leakage on drawn scenes: how often the reference's object is there, and the text's is not.

    Pictures whose text names no object, or the reference's, are no part of it.
    """
    place = ATTRIBUTES.index(_OBJECT)
    scorer, references = measured.scorer, measured.data.references
    seen = scorer.features("judge", _pictures(setting))[:, place]
    shown = scorer.features("judge", [one.picture for one in references])[:, place]
    shown = shown[_own(measured, setting)]
    asked = np.array([_OBJECT in named_words(text or "") for text in setting.lines.prompt])
    texts = [*setting.lines.prompt]
    wanted = scorer.extractor("judge").encode_text([text or "" for text in texts])[:, place]  # type: ignore[attr-defined]
    counts = asked & (wanted != shown)
    if counts.any():
        labels = np.asarray(by_reference(setting))[counts]
        yield Figure.of("leaked object", setting.name, (seen == shown)[counts], labels)


def _own(measured: Measured, setting: Setting) -> NDArray[np.int64]:
    """The number of each line's reference, [n]."""
    numbers = {one.picture.name: i for i, one in enumerate(measured.data.references)}
    return np.array([numbers[str(name)] for name in setting.lines.reference], np.int64)


def _pictures(setting: Setting) -> Sequence[Picture]:
    known: dict[str, Picture] = {}
    for name in setting.lines.picture.distinct():
        known[name] = Picture(setting.lines.folder / name, name)
    return [known[str(name)] for name in setting.lines.picture]


PROTOCOL = Protocol(
    name="style-grid",
    title="Content x style",
    summary="each text with each style: style, its gap to other styles, leakage, text following",
    source="no single paper: StyleBench (arXiv 2407.01414) and CSD (arXiv 2404.01292) are the base",
    layout=_LAYOUT,
    choices=(
        Choice(
            "data", "StyleBench: 73 styles, 490 pictures", "yours; 20 texts x 20 styles or more"
        ),
        Choice("content", "a picture, or a text", "a text"),
        Choice("preset", "varies", "style"),
        Choice("style", "CSD cosine, or a Gram loss", "CSD; without its weights CLIP-I"),
        Choice("threshold of CSD", "often an absolute one", "none: less the mean of other styles"),
        Choice("leakage", "by eye", "likeness to the picture beyond its style; drawn: its object"),
        Choice("intervals", "none", "95 %, over style pictures"),
    ),
    defaults={"scales": [1.0], "seeds": 1, "preset": "style"},
    read=read,
    figures=figures,
)
