"""What a workflow made: pictures with recipes, figures, and the files that keep them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.atomic_files import check_folder, write_atomically
from imageprompt.core.console import json_text
from imageprompt.loading.recipe import Recipe, library_versions, write_picture

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class WorkflowPicture:
    """A picture that a workflow hands over."""

    label: str
    """What it is, in a few words; under it on the sheet."""
    image: Image
    recipe: Recipe | None = None
    """Of the generation that it comes from; None if it was not generated."""
    tokens: Sequence[bytes | None] = ()
    """The image prompts of the recipe."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Its own figures."""


@dataclass(frozen=True)
class Saved:
    """The files of a result."""

    pictures: list[Path]
    report: Path
    """JSON: inputs, figures, checks and costs."""
    sheet: Path | None
    """PNG: the inputs and the pictures beside each other."""
    files: list[Path]
    """What else the workflow made."""


@dataclass(frozen=True)
class WorkflowResult:
    """Pictures and figures of one run of a workflow."""

    workflow: str
    inputs: Mapping[str, Any]
    """As JSON: pictures as {"name": path or null, "hash": sha256}."""
    pictures: list[WorkflowPicture]
    measured: dict[str, Any]
    notes: list[str]
    """What a person should know, one line each: problems of the references, what was left out."""
    checks: list[dict[str, Any]]
    """The quality of each reference picture, as `check` gives it."""
    cost: dict[str, Any]
    """generated (pictures), denoising_steps (over all of them), seconds (wall time)."""
    shown: list[tuple[str, Image]]
    """Pictures for the sheet that are no results: the inputs, a baseline."""
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    """Suffix of a further file, such as `-curve.png` -> what writes it."""

    @property
    def images(self) -> list[Image]:
        return [one.image for one in self.pictures]

    def save(self, folder: str | os.PathLike[str]) -> Saved:
        """Write `0001.png` ... with their recipes, `0001.json` and `0001-sheet.png`.

        Numbers continue after those in the folder; nothing is overwritten. Raises OptionError if
        the folder cannot be written.
        """
        from imageprompt.generation.result import free_numbers

        top = check_folder(folder)
        top.mkdir(parents=True, exist_ok=True)
        paths = []
        for one in self.pictures:
            for path in free_numbers(top):
                with contextlib.suppress(FileExistsError):  # another process was faster
                    record = json_text(self._record(one))
                    tokens = one.tokens
                    write_picture(path, one.image, one.recipe, tokens, new=True, workflow=record)
                    paths.append(path)
                    break
        first = paths[0] if paths else next(free_numbers(top))
        sheet = self._save_sheet(first.with_name(f"{first.stem}-sheet.png"))
        files = []
        for suffix, write in self.files.items():
            files.append(first.with_name(f"{first.stem}{suffix}"))
            with write_atomically(files[-1]) as temporary:
                write(temporary)
        saved = Saved(paths, first.with_suffix(".json"), sheet, files)
        with write_atomically(saved.report) as temporary:
            temporary.write_text(f"{json_text(self.as_dict(saved))}\n", encoding="utf-8")
        return saved

    def as_dict(self, saved: Saved | None = None) -> dict[str, Any]:
        """As plain data for JSON; with the paths if it is saved."""
        paths: Sequence[Path | None] = [None] * len(self.pictures) if not saved else saved.pictures
        pictures = [
            {"path": path and str(path), "label": one.label, "measured": dict(one.measured)}
            for path, one in zip(paths, self.pictures, strict=True)
        ]
        data: dict[str, Any] = {
            "workflow": self.workflow,
            "pictures": pictures,
            "measured": self.measured,
            "inputs": dict(self.inputs),
            "notes": self.notes,
            "checks": self.checks,
            "cost": self.cost,
            "versions": library_versions(),
        }
        if saved is not None:
            data |= {
                "report": str(saved.report),
                "sheet": saved.sheet and str(saved.sheet),
                "files": list(map(str, saved.files)),
            }
        return data

    def _record(self, one: WorkflowPicture) -> dict[str, Any]:
        """What the file of a picture keeps of the workflow."""
        return {
            "name": self.workflow,
            "label": one.label,
            "inputs": dict(self.inputs),
            "measured": {**self.measured, **one.measured},
            "notes": self.notes,
            "versions": library_versions(),
        }

    def _save_sheet(self, path: Path) -> Path | None:
        cells = [(label, image, True) for label, image in self.shown]
        cells += [(one.label, one.image, False) for one in self.pictures]
        if not cells:
            return None
        with write_atomically(path) as temporary:
            draw_sheet(cells).save(temporary, format="PNG", optimize=True)
        return path


# ── sheet ───────────────────────────────────────────────────────────────────────────────────────

CELL, GAP, MARGIN, CAPTION = 192, 16, 24, 44  # px
COLUMNS = 6


def draw_sheet(cells: Sequence[tuple[str, Image, bool]], *, columns: int = COLUMNS) -> Image:
    """Pictures with a text below each, row by row; those with True are framed: the inputs."""
    from imageprompt.core.contact_sheet import Page

    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = 2 * MARGIN + columns * (CELL + GAP) - GAP, 2 * MARGIN + rows * (CELL + CAPTION)
    page = Page(width, height, cell=CELL)
    for index, (label, image, framed) in enumerate(cells):
        x = MARGIN + index % columns * (CELL + GAP)
        y = MARGIN + index // columns * (CELL + CAPTION)
        factor = CELL / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        page.picture(image, x, y, framed=framed, size=size)
        page.text(x + CELL // 2, y + CELL + 8, label, width=CELL)
    return page.image
