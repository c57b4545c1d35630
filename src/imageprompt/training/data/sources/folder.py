"""folder: pictures with captions in .txt files of the same name, or in metadata.jsonl."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.training.data.sources._index import JsonObjects, Names, Ranges
from imageprompt.training.data.sources.contract import DataOptions, LocalFile, Record, Records
from imageprompt.training.data.sources.json_list import read_entry

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
_TEXT, _FACE, _REFERENCE = ".txt", ".npy", ".reference"
_HAS_TEXT, _HAS_FACE = 1, 2


class SidecarRecords:
    """Pictures of a folder and its subfolders, sorted by name.

    `a/b.jpg` has its caption in `a/b.txt`, and may have a face embedding in `a/b.npy` and a picture
    to condition on in `a/b.reference.png`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = sorted(_files(folder))
        texts, faces = ({_stem(n) for n, _ in found if _ending(n) == e} for e in (_TEXT, _FACE))
        self._names, self._marks = Names(), Ranges()  # marks: size, and what is beside it
        self._references: dict[str, str] = {}
        no_caption = 0
        for name, size in found:
            stem = _stem(name)
            if _ending(name) not in SUFFIXES:
                continue
            if stem.endswith(_REFERENCE):
                self._references[stem[: -len(_REFERENCE)]] = name
                continue
            self._names.append(name)
            self._marks.append(size, _HAS_TEXT * (stem in texts) + _HAS_FACE * (stem in faces))
            no_caption += stem not in texts
        if no_caption:
            warnings.warn(
                f"{no_caption} of {len(self._names)} pictures in {str(folder)!r} have no .txt; "
                "their captions are empty",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._names)

    def record(self, index: int) -> Record:
        name = self._names[index]
        stem, marks = _stem(name), self._marks[index][1]
        beside = self._folder / stem
        reference = self._references.get(stem)
        return Record(
            name,
            _caption(beside.with_name(beside.name + _TEXT)) if marks & _HAS_TEXT else "",
            LocalFile(self._folder / name),
            LocalFile(self._folder / reference) if reference else None,
            LocalFile(beside.with_name(beside.name + _FACE)) if marks & _HAS_FACE else None,
        )

    def fingerprint(self) -> str:
        return hashlib.sha256(self._names.digest() + self._marks.digest()).hexdigest()[:16]

    def problems(self) -> Mapping[str, str]:
        return {}


class MetadataRecords:
    """Only those pictures of a folder that its metadata.jsonl lists as {file_name, text}."""

    def __init__(self, folder: Path, caption: str) -> None:
        self._folder, self._caption = folder, caption
        self._objects = JsonObjects(folder / METADATA)

    def __len__(self) -> int:
        return len(self._objects)

    def record(self, index: int) -> Record:
        label = f"line {index + 1} of {str(self._folder / METADATA)!r}"
        return read_entry(self._objects[index], self._folder, self._caption, label)

    def fingerprint(self) -> str:
        return self._objects.digest().hex()[:16]

    def problems(self) -> Mapping[str, str]:
        return {}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _ending(name: str) -> str:
    return f".{name.rpartition('.')[2].lower()}"


def _caption(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError as error:
        raise PictureError(
            f"caption {str(path)!r}",
            reason=f"cannot be read ({error.strerror})",
            hint="Check its permissions.",
        ) from error


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of the files in `folder` and below; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def _open(options: DataOptions) -> Records:
    folder = Path(options.path).expanduser()
    if not folder.is_dir():
        raise NotFoundError(
            f"data {options.path!r}", reason="there is no such folder", hint="Check the path."
        )
    if options.images:
        raise OptionError(
            f"config key 'data.images': {options.images!r}",
            reason="pictures of a folder are always relative to it",
            hint="Remove the key.",
        )
    if (folder / METADATA).is_file():
        return MetadataRecords(folder, options.caption)
    return SidecarRecords(folder)


class _FolderSource:
    name = "folder"
    summary = "a folder of pictures with .txt captions beside them, or with a metadata.jsonl"
    open: Callable[[DataOptions], Records] = staticmethod(_open)

    def claims(self, path: str) -> bool:
        return Path(path).expanduser().is_dir()


SOURCE = _FolderSource()
