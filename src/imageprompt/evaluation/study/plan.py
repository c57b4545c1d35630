"""What a study makes: its rows in a fixed order, in chunks that a resumed study makes again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, overload

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.study.config import StudyConfig, folder_names
from imageprompt.evaluation.study.references import StudyReference
from imageprompt.evaluation.study.results import ADAPTER, CEILING, CONTROL

MAX_ROWS = 5_000_000
CHUNK = 32
"""Rows that are generated, scored and written together; at least one batch."""
PICTURES = "pictures"


@dataclass(frozen=True)
class Case:
    """A reference with a prompt. References are numbers: see `Plan.references`."""

    reference: int
    prompt: str
    text: str | None = None
    """What the picture's text following is scored against; None for the prompt."""
    targets: tuple[int, ...] = ()
    """The references that the picture is compared with, on average; () for its own."""

    @property
    def compared_with(self) -> tuple[int, ...]:
        return self.targets or (self.reference,)


class Grid(Sequence[Case]):
    """Each reference with each prompt; cases are made when they are asked for."""

    def __init__(self, references: int, prompts: Sequence[str]) -> None:
        self._references, self._prompts = references, prompts

    def __len__(self) -> int:
        return self._references * len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        reference, prompt = divmod(index, len(self._prompts))
        return Case(reference, self._prompts[prompt])


@dataclass(frozen=True)
class Row:
    """A line of the results that is to be made."""

    row: str
    picture: str
    """Its path in the folder of the study."""
    reference: int
    compared_with: tuple[int, ...]
    prompt: str | None = None
    text: str | None = None
    """What its text following is scored against; None without a text."""
    seed: int | None = None
    scale: float | None = None
    adapter: int | None = None
    new: bool = True
    """Is the picture made for this row? Not if an earlier one has it."""
    source: int | None = None
    """Of a ceiling row: the reference that is its picture."""
    beside: int | None = None
    """Of a pair of adapters: the reference of the other one."""


@dataclass(frozen=True)
class Plan:
    """The rows: control, then each adapter at each scale, then the ceiling.

    Within those, references come before prompts, and prompts before seeds. All of it is counted,
    not listed. A pair of adapters is two here: the pictures of its content have lines for its
    style too, whose reference is half the list further on.
    """

    references: Sequence[StudyReference]
    cases: Sequence[Case]
    adapters: Sequence[str]
    parts: Sequence[str | None]
    """For each adapter: content or style if it is one of a pair."""
    made_by: Sequence[int]
    """For each adapter: the one whose pictures its lines are of, usually itself."""
    scales: Sequence[float]
    seeds: range
    control: bool
    ceiling: Mapping[int, int]
    """Reference -> its ceiling: another of its subject, or itself (see `decoded`)."""
    decoded: bool
    """Is the ceiling the reference after the base's autoencoder?"""
    chunk: int

    @classmethod
    def of(
        cls, config: StudyConfig, references: Sequence[StudyReference], cases: Sequence[Case]
    ) -> Plan:
        """Raises OptionError for a study of too many rows."""
        ceiling = ceilings(references) if config.ceiling else {}
        entries = config.entries
        alike = [replace(entry, name=None, part=None) for entry in entries]
        parts = [entry.part for entry in entries]
        if any(parts) and len(references) < 2:
            raise OptionError(
                "one reference for a pair of adapters",
                reason="content and style are taken from two",
                hint="Give a folder of several.",
            )
        plan = cls(
            references,
            cases,
            [entry.title for entry in entries],
            parts,
            [alike.index(one) if parts[i] else i for i, one in enumerate(alike)],
            config.scales,
            range(config.seed, config.seed + config.seeds),
            config.control,
            ceiling,
            all(own == other for own, other in ceiling.items()),
            config.batch_size * max(1, CHUNK // config.batch_size),
        )
        if len(plan) > MAX_ROWS:
            raise OptionError(
                f"a study of {len(plan):,} rows",
                reason=f"more than {MAX_ROWS:,}",
                hint="Use fewer references, prompts, scales or seeds.",
            )
        return plan

    def __len__(self) -> int:
        settings = self.control + len(self.adapters) * len(self.scales)
        return settings * len(self.cases) * len(self.seeds) + len(self.ceiling)

    @property
    def pictures(self) -> int:
        """Pictures to generate; rows of the control share theirs."""
        control = len(self._prompts) * len(self.seeds) if self.control else 0
        settings = len({*self.made_by}) * len(self.scales)
        return control + settings * len(self.cases) * len(self.seeds)

    @property
    def prompts(self) -> list[str]:
        """The distinct prompts, in the order of the cases."""
        return [*self._prompts]

    @cached_property
    def _prompts(self) -> dict[str, tuple[int, int]]:
        """Prompt -> its number, and the first case that has it."""
        found: dict[str, tuple[int, int]] = {}
        for index, case in enumerate(self.cases):
            found.setdefault(case.prompt, (len(found), index))
        return found

    @cached_property
    def _folders(self) -> list[str]:
        parts = zip(self.adapters, self.parts, strict=True)
        return folder_names([name.removesuffix(f", {part}") for name, part in parts])

    def chunks(self) -> Iterator[list[Row]]:
        """The rows, never rows of two settings in a chunk."""
        for rows in self._settings():
            while chunk := [*islice(rows, self.chunk)]:
                yield chunk

    def _settings(self) -> Iterator[Iterator[Row]]:
        if self.control:
            yield self._control_rows()
        for adapter in range(len(self.adapters)):
            for scale in self.scales:
                yield self._adapter_rows(adapter, scale)
        yield self._ceiling_rows()

    def _control_rows(self) -> Iterator[Row]:
        for index, case in enumerate(self.cases):
            number, first = self._prompts[case.prompt]
            for seed in self.seeds:
                picture = f"{PICTURES}/control/{number:06}-{seed}.png"
                yield _row(CONTROL, case, seed, picture, scale=0.0, new=index == first)

    def _adapter_rows(self, adapter: int, scale: float) -> Iterator[Row]:
        made_by, part, beside = self.made_by[adapter], self.parts[adapter], None
        folder = f"{PICTURES}/{self._folders[made_by]}-{scale:g}"
        of_adapter = {"scale": scale, "adapter": adapter, "new": made_by == adapter}
        for index, case in enumerate(self.cases):
            if part is not None:
                look = (case.reference + len(self.references) // 2) % len(self.references)
                content = part == "content"
                beside = look if content else case.reference
                case = case if content else replace(case, reference=look)
            for seed in self.seeds:
                picture = f"{folder}/{index:06}-{seed}.png"
                yield _row(ADAPTER, case, seed, picture, beside=beside, **of_adapter)

    def _ceiling_rows(self) -> Iterator[Row]:
        for reference, source in self.ceiling.items():
            picture = f"{PICTURES}/ceiling/{reference:06}.png"
            yield Row(CEILING, picture, reference, (reference,), source=source)

    def identity(self) -> dict[str, Any]:
        """Plain values of all that the results depend on, beside the config."""
        digest = hashlib.sha256()
        for case in self.cases:
            digest.update(json.dumps([*vars(case).values()]).encode())
        return {
            "references": {one.picture.name: one.picture.hash for one in self.references},
            "cases": digest.hexdigest()[:32],
            "chunk": self.chunk,
        }


def _row(kind: str, case: Case, seed: int, picture: str, **more: Any) -> Row:
    text = case.prompt if case.text is None else case.text
    compared = case.compared_with
    return Row(kind, picture, case.reference, compared, case.prompt, text or None, seed, **more)


def ceilings(references: Sequence[StudyReference]) -> dict[int, int]:
    """For each reference, the next one of its subject; for all, itself if no subject has two."""
    subjects: dict[str, list[int]] = {}
    for index, one in enumerate(references):
        if one.subject:
            subjects.setdefault(one.subject, []).append(index)
    several = [members for members in subjects.values() if len(members) > 1]
    if not several:
        return {index: index for index in range(len(references))}
    pairs = (
        (one, members[(place + 1) % len(members)])
        for members in several
        for place, one in enumerate(members)
    )
    return dict(sorted(pairs))
