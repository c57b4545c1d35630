"""The references of a study: files of a folder, whose folders are subjects, or drawn scenes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imageprompt.core import bundled
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.scoring.pictures import SUFFIXES

MAX_REFERENCES = 100_000
MAX_ENTRIES = 500_000
"""Of a folder of references: files and folders of all kinds."""
DRAWN = "references"
"""Where drawn references lie in the folder of a study."""


@dataclass(frozen=True)
class StudyReference:
    """A reference picture: `picture.name` is its name in the results."""

    picture: Picture
    subject: str
    """References of one subject show the same; "" if subjects are not told."""

    @property
    def path(self) -> Path:
        return Path(str(self.picture.source))


def references_in(folder: str | os.PathLike[str], root: Path) -> list[StudyReference]:
    """The picture at a path, or those of a folder sorted by path; its folders are subjects.

    Raises NotFoundError, PictureError, and OptionError for a folder of too many files.
    """
    top = Path(folder).expanduser()
    if not top.exists():
        raise NotFoundError(
            f"references {str(folder)!r}", reason="no such file or folder", hint="Check the path."
        )
    if not top.is_dir():
        return [StudyReference(Picture(top, name_of(top, root)), "")]
    files = sorted(pictures_below(top))
    if not files:
        raise PictureError(
            f"references {str(folder)!r}",
            reason="no pictures in this folder",
            hint="Name one that has PNG, JPEG or WEBP files.",
        )
    return [
        StudyReference(
            Picture(file, name_of(file, root)),
            "" if file.parent == top else file.parent.relative_to(top).as_posix(),
        )
        for file in files
    ]


def drawn_references(folder: Path, count: int, base: str) -> list[StudyReference]:
    """Held-out scenes of a bundled stack as files in the folder of a study; written if new.

    Raises OptionError for a base that does not know them.
    """
    if base not in bundled.ONE_OBJECT:
        raise OptionError(
            "no references",
            reason=f"drawn ones suit {' and '.join(bundled.ONE_OBJECT)} only",
            hint="Give pictures of a kind that the base generates: --references DIR.",
        )
    from imageprompt.demo.datasets import draw_references

    place = folder / DRAWN
    place.mkdir(parents=True, exist_ok=True)
    found = []
    for index, picture in enumerate(draw_references(count).pictures):
        path = place / f"{index:04}.png"
        if not path.exists():
            with write_atomically(path, durable=False) as temporary:
                picture.save(temporary, format="PNG")
        found.append(StudyReference(Picture(path, name_of(path, folder)), ""))
    return found


def name_of(path: Path, root: Path) -> str:
    """A path as the results name it: relative to `root` where it lies below, else absolute."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name
    base = Path(os.path.abspath(root))  # noqa: PTH100
    if absolute.is_relative_to(base):
        return absolute.relative_to(base).as_posix()
    return absolute.as_posix()


def check_pictures(references: Sequence[StudyReference]) -> None:
    """Open each once, so that none is found broken in the middle. Raises PictureError."""
    for one in references:
        one.picture.open()
        _ = one.picture.hash


def pictures_below(top: Path) -> Iterator[Path]:
    """The pictures in a folder and its folders; hidden ones and linked folders are left out."""
    seen = found = 0
    places = [top]
    while places:
        with os.scandir(places.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES or found > MAX_REFERENCES:
                    raise OptionError(
                        f"references {str(top)!r}",
                        reason=f"more than {MAX_REFERENCES:,} pictures, or {MAX_ENTRIES:,} files",
                        hint="Name a folder that has only the references.",
                    )
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    places.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in SUFFIXES:
                    found += 1
                    yield Path(entry.path)
