"""What is rated: pictures of several conditions, made from the same prompts and references."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.untrusted import is_inside
from imageprompt.evaluation.study.results import ADAPTER, MIN_CLUSTERS, Results, read_results

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
MAX_SUBJECTS = 20_000
_LISTED = 5  # missing pictures that a message names


@dataclass(frozen=True)
class Subject:
    """What was asked for once: each condition has a picture of it.

    `name` and `reference_name` are for the key alone.
    """

    name: str
    prompt: str
    reference: Path | None
    reference_name: str
    pictures: Mapping[str, Path]
    """Condition, such as an adapter at a scale -> its picture."""


def of_study(
    folder: Path, *, adapters: Collection[str] = (), scales: Collection[float] = ()
) -> list[Subject]:
    """The pictures of a study, only those of some adapters and scales if any are named.

    Raises NotFoundError, and OptionError for unequal sets, with what is missing.
    """
    results = read_results(folder).where(row=ADAPTER)
    for adapter in adapters:
        if adapter not in results.adapter.distinct():
            known = ", ".join(results.adapter.distinct())
            raise OptionError(
                f"adapter {adapter!r}", reason="not in the study", hint=f"Has {known}."
            )
    kept = np.ones(len(results), bool)
    if adapters:
        kept &= np.array([name in adapters for name in results.adapter], bool)
    if scales:
        kept &= np.isclose(results.scale[:, None], [*scales], atol=1e-9).any(1)
    results = results.take(kept)
    if not len(results):
        raise OptionError(f"study {str(folder)!r}", reason="has no pictures of these settings")
    several = len(np.unique(results.scale)) > 1
    rows: dict[tuple[str, str, int], dict[str, int]] = {}
    for row in range(len(results)):
        scale = f", scale {results.scale[row]:g}" if several else ""
        key = (results.prompt[row] or "", results.reference[row] or "", int(results.seed[row]))
        rows.setdefault(key, {})[f"{results.adapter[row]}{scale}"] = row
    return _complete(list(_subjects(results, rows)))


def _subjects(
    results: Results, rows: Mapping[tuple[str, str, int], Mapping[str, int]]
) -> Iterator[Subject]:
    for (prompt, reference, seed), found in rows.items():
        first = next(iter(found.values()))
        name = ", ".join(part for part in (prompt, reference, f"seed {seed}") if part)
        pictures = {condition: _inside(results, row) for condition, row in found.items()}
        yield Subject(name, prompt, _reference(results, first), reference, pictures)


def _inside(results: Results, row: int) -> Path:
    """A page is given away: a study may not fetch files of its reader into it."""
    path = results.picture_path(row)
    if not is_inside(path, results.folder):
        raise OptionError(
            f"picture {str(path)!r}",
            reason="not in the folder of its study",
            hint="Use only studies that you trust, with their pictures inside.",
        )
    return path


def _reference(results: Results, row: int) -> Path | None:
    path = results.reference_path(row)
    if path is not None and not results.may_show(row, path):
        raise OptionError(
            f"reference {str(path)!r}",
            reason="not in the folder of the study, and not the picture that was measured",
            hint="Restore it, and use only studies that you trust.",
        )
    return path


def of_folders(folders: Sequence[Path], references: Path | None = None) -> list[Subject]:
    """Pictures of the same name in several folders, with the reference of that name if any.

    Endings may differ. Raises NotFoundError, and OptionError for unequal sets.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    found = {name: _by_stem(folder) for name, folder in zip(names, folders, strict=True)}
    known = {} if references is None else _by_stem(references)
    stems = dict.fromkeys(stem for pictures in found.values() for stem in pictures)
    subjects = [
        Subject(stem, "", known.get(stem), stem if stem in known else "", pictures)
        for stem in stems
        for pictures in ({n: paths[stem] for n, paths in found.items() if stem in paths},)
    ]
    if references is not None and (lost := [one.name for one in subjects if not one.reference]):
        raise _unequal(f"references {str(references)!r}", lost)
    return _complete(subjects, names)


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder, by name without ending. Raises NotFoundError, OptionError."""
    if not folder.is_dir():
        raise NotFoundError(f"folder {str(folder)!r}", reason="not found", hint="Check the path.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise OptionError(
                f"pictures {found[path.stem].name!r} and {path.name!r}",
                reason="have the same name but for the ending",
                hint="Delete one.",
            )
        found[path.stem] = path
    if not found:
        raise OptionError(f"folder {str(folder)!r}", reason=f"has no {', '.join(SUFFIXES)} file")
    return found


def _complete(subjects: list[Subject], conditions: Sequence[str] = ()) -> list[Subject]:
    """Each must have a picture of each condition. Raises OptionError."""
    names = conditions or list(dict.fromkeys(name for one in subjects for name in one.pictures))
    for name in names:
        if lost := [one.name for one in subjects if name not in one.pictures]:
            raise _unequal(name, lost)
    if len(subjects) > MAX_SUBJECTS:
        raise OptionError(f"{len(subjects)} subjects", reason=f"the limit is {MAX_SUBJECTS}")
    return subjects


def _unequal(what: str, lost: Sequence[str]) -> OptionError:
    more = f" and {len(lost) - _LISTED} more" if len(lost) > _LISTED else ""
    return OptionError(
        f"unequal sets: {what}",
        reason=f"lacks {len(lost)}: {'; '.join(lost[:_LISTED])}{more}",
        hint="Generate what is missing, or rate what all have.",
    )


def clusters_of(subjects: Sequence[tuple[str, str]]) -> tuple[str, list[str]]:
    """What is resampled, and the label of each (prompt, reference): the prompt, as studies have it.

    The reference, where there are only a few prompts and more references; each by itself, where
    there is one of both.
    """
    prompts, references = ([one[part] for one in subjects] for part in (0, 1))
    count, others = len(set(prompts)), len(set(references))
    if count >= MIN_CLUSTERS or count >= max(2, others):
        return "prompts", prompts
    if others > 1:
        return "references", references
    return "pictures", [str(number) for number in range(len(subjects))]
