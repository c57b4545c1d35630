"""The questions of a page: opaque to raters, with the answers' meaning in a key kept apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.rating.subjects import Subject

Mode = Literal["pairs", "scales"]
Asked = tuple[int, tuple[str, ...]]
"""The number of a subject, and the conditions whose pictures of it are shown."""
KEY_FORMAT = "imageprompt-rate-key"
VERSION = 1
REPEATED = 0.08
"""Share of the questions that each rater sees twice, drawn anew for each."""
PLANTED = 0.06
"""Share of the questions whose answer is known: the reference beside an unrelated picture."""


@dataclass(frozen=True)
class Axis:
    """A five-point scale, with words at every point."""

    name: str
    title: str
    question: str
    anchors: tuple[str, str, str, str, str]
    needs: Literal["reference", "prompt", ""] = ""


AXES = (
    Axis(
        "content",
        "Content",
        "Does the picture show what the reference shows?",
        ("nothing of it", "a trace", "some of it", "most of it", "all of it"),
        "reference",
    ),
    Axis(
        "style",
        "Style",
        "Does it look like the reference: colours, light, technique?",
        ("not at all", "a little", "half-way", "closely", "exactly"),
        "reference",
    ),
    Axis(
        "text",
        "Text",
        "Does it show what the text says?",
        ("nothing of it", "a trace", "some of it", "most of it", "all of it"),
        "prompt",
    ),
    Axis(
        "overall",
        "Overall",
        "How good is it as an answer to the request?",
        ("unusable", "poor", "fair", "good", "excellent"),
    ),
)
PLANTED_AXIS = "content"
"""The reference itself has 4 or 5 here, an unrelated picture 1 or 2."""


@dataclass(frozen=True)
class Question:
    """Pictures by opaque id, beside a reference and a text. `expected` is for planted ones.

    In pairs it is the id of the right picture; on scales "high" or "low".
    """

    id: str
    subject: int
    reference: str | None
    conditions: dict[str, str]
    """Picture id -> condition; of planted questions -> "reference" or "unrelated"."""
    expected: str | None = None


@dataclass
class Questions:
    """All questions, and which file each picture id stands for."""

    study: str
    mode: Mode
    subjects: Sequence[Subject]
    conditions: list[str]
    items: list[Question] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """What `ratings` needs and raters must not have."""
        return {
            "format": KEY_FORMAT,
            "version": VERSION,
            "study": self.study,
            "mode": self.mode,
            "conditions": self.conditions,
            "items": [self._key_of(one) for one in self.items],
        }

    def _key_of(self, one: Question) -> dict[str, Any]:
        subject = self.subjects[one.subject]
        return {
            "id": one.id,
            "subject": subject.name,
            "prompt": subject.prompt,
            "reference": subject.reference_name,
            "pictures": one.conditions,
            "expected": one.expected,
        }

    def for_raters(self) -> list[dict[str, Any]]:
        """The questions as the page has them, without a word about conditions."""
        return [
            {
                "id": one.id,
                "text": self.subjects[one.subject].prompt,
                "reference": one.reference,
                "pictures": sorted(one.conditions),
            }
            for one in sorted(self.items, key=lambda one: one.id)
        ]


def ask(
    subjects: Sequence[Subject],
    hashes: Mapping[Path, str],
    mode: Mode,
    *,
    count: int | None = None,
) -> Questions:
    """The questions about these subjects, `count` of them drawn evenly over the subjects.

    `hashes` are those of the files.
    Ids and planted questions are drawn by a hash of all that is asked, so the same study gives the
    same page, and nobody can tell from an id what it stands for. Raises OptionError.
    """
    conditions = list(dict.fromkeys(name for one in subjects for name in one.pictures))
    if mode == "pairs" and len(conditions) < 2:
        raise OptionError(
            "pairs of one condition",
            reason=f"only {conditions[0]!r} has pictures",
            hint="Give a second adapter or folder, or use --mode scales.",
        )
    salt = _fingerprint(subjects, hashes, mode, count)
    rng = np.random.default_rng(int(salt, 16))
    groups = list(combinations(conditions, 2 if mode == "pairs" else 1))
    asked: list[Asked] = [(number, group) for number in range(len(subjects)) for group in groups]
    asked = _drawn(asked, count, rng)
    planted = _plant(subjects, mode, max(1, round(PLANTED * len(asked))), rng)
    made = Questions(salt[:12], mode, subjects, conditions)
    ids = _Ids(made.files, len(asked) + len(planted), rng)
    for number, group in asked:
        subject = subjects[number]
        named = {ids.picture(subject.pictures[name]): name for name in group}
        made.items.append(Question(ids.question(), number, ids.of_reference(subject), named))
    for number, files, right in planted:
        named = {ids.picture(path, anew=True): name for name, path in files.items()}
        expected = next((one for one, name in named.items() if name == right), right)
        reference = ids.of_reference(subjects[number])
        made.items.append(Question(ids.question(), number, reference, named, expected))
    return made


def _drawn(asked: list[Asked], count: int | None, rng: np.random.Generator) -> list[Asked]:
    """All, or `count` of them: each subject once before any twice. Raises OptionError."""
    if count is None:
        return asked
    if not 1 <= count <= len(asked):
        raise OptionError(f"count {count}", reason=f"not a whole number from 1 to {len(asked)}")
    shuffled = [asked[i] for i in rng.permutation(len(asked))]
    seen: dict[int, int] = {}
    turns = []
    for one in shuffled:
        turns.append(seen.setdefault(one[0], 0))
        seen[one[0]] += 1
    order = sorted(range(len(shuffled)), key=lambda i: turns[i])
    return [shuffled[i] for i in order[:count]]


def _plant(
    subjects: Sequence[Subject], mode: Mode, count: int, rng: np.random.Generator
) -> list[tuple[int, dict[str, Path], str]]:
    """Subject, files and the right answer; none where no two subjects have other references."""
    with_reference = [i for i, one in enumerate(subjects) if one.reference is not None]
    found: list[tuple[int, dict[str, Path], str]] = []
    for turn, number in enumerate(rng.permutation(with_reference)[:count].tolist()):
        reference = subjects[number].reference
        others = [i for i in with_reference if subjects[i].reference != reference]
        if reference is None or not others:
            continue
        other = subjects[int(rng.choice(others))]
        unrelated = next(iter(other.pictures.values()))
        if mode == "pairs":
            found.append((number, {"reference": reference, "unrelated": unrelated}, "reference"))
        elif turn % 2:
            found.append((number, {"reference": reference}, "high"))
        else:
            found.append((number, {"unrelated": unrelated}, "low"))
    return found


class _Ids:
    """Opaque ids: numbers in an order that has nothing to do with conditions."""

    def __init__(self, files: dict[str, Path], questions: int, rng: np.random.Generator) -> None:
        self._files, self._rng = files, rng
        self._questions = iter(rng.permutation(questions).tolist())
        self._known: dict[Path, str] = {}

    def question(self) -> str:
        return f"q{next(self._questions) + 1:04d}"

    def picture(self, path: Path, *, anew: bool = False) -> str:
        """The id of a file; `anew`: another one, for a file that is shown as something else."""
        if anew or path not in self._known:
            found = f"p{int(self._rng.integers(16**8)):08x}"
            while found in self._files:
                found = f"p{int(self._rng.integers(16**8)):08x}"
            self._files[found] = path
            if anew:
                return found
            self._known[path] = found
        return self._known[path]

    def of_reference(self, subject: Subject) -> str | None:
        return None if subject.reference is None else self.picture(subject.reference)


def _fingerprint(
    subjects: Sequence[Subject], hashes: Mapping[Path, str], mode: Mode, count: int | None
) -> str:
    """SHA-256 of what is asked: names, texts, conditions and the bytes of the files.

    Raters have no bytes of the files, only pictures made from them, so they cannot compute it.
    """
    plain = [
        [one.name, one.prompt, "" if one.reference is None else hashes[one.reference]]
        + [[name, hashes[path]] for name, path in one.pictures.items()]
        for one in subjects
    ]
    return hashlib.sha256(json.dumps([plain, mode, count, VERSION]).encode()).hexdigest()
