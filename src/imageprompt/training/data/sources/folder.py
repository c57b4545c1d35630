"""folder: pictures with captions in .txt files of the same name, or in metadata.jsonl."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.yaml_file import brief, expand_user
from imageprompt.training.data.sources._index import JsonObjects, Names, Ranges, read_entry
from imageprompt.training.data.sources.contract import (
    MAX_CAPTION_BYTES,
    PAIR_CAPTIONS,
    PAIR_COLUMNS,
    DataOptions,
    LocalFile,
    Record,
    Records,
    check_caption,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
MAX_DEPTH = 64
"""Folders within folders."""
_TEXT, _FACE = ".txt", ".npy"
_REFERENCES = ("reference", *PAIR_COLUMNS)
_HAS_TEXT, _HAS_FACE = 1, 2
_HAS_CAPTION = {name: 4 * 2**number for number, name in enumerate(PAIR_CAPTIONS)}


class SidecarRecords:
    """Pictures of a folder and its subfolders, sorted by name.

    `a/b.jpg` has its caption in `a/b.txt`, and may have a face embedding in `a/b.npy` and a picture
    to condition on in `a/b.reference.png`, or two in `a/b.content_reference.png` and
    `a/b.style_reference.png`; captions of one side alone in `a/b.content_caption.txt` and
    `a/b.style_caption.txt`.
    """

    def __init__(self, folder: Path, inside: Path | None) -> None:
        """`inside`: the folder that links must not lead out of."""
        self._folder, self._inside = folder, inside
        found = sorted(_files(folder))
        texts, faces = ({_stem(n) for n, _ in found if _ending(n) == e} for e in (_TEXT, _FACE))
        self._names, self._marks = Names(), Ranges()  # marks: size, and what is beside it
        self._references: dict[str, dict[str, str]] = {kind: {} for kind in _REFERENCES}
        no_caption = 0
        for name, size in found:
            stem = _stem(name)
            if _ending(name) not in SUFFIXES:
                continue
            of, dot, kind = stem.rpartition(".")
            if dot and kind in _REFERENCES:
                self._references[kind][of] = name
                continue
            self._names.append(name)
            marks = _HAS_TEXT * (stem in texts) + _HAS_FACE * (stem in faces)
            marks += sum(bit for own, bit in _HAS_CAPTION.items() if f"{stem}.{own}" in texts)
            self._marks.append(size, marks)
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
        named = (self._references[kind].get(stem) for kind in _REFERENCES)
        reference, *pair = (self._file(self._folder / one) if one else None for one in named)
        captions = {
            own: self._caption(beside.with_name(f"{beside.name}.{own}{_TEXT}"))
            for own, bit in _HAS_CAPTION.items()
            if marks & bit
        }
        return Record(
            name,
            self._caption(beside.with_name(beside.name + _TEXT)) if marks & _HAS_TEXT else "",
            self._file(self._folder / name),
            reference,
            self._file(beside.with_name(beside.name + _FACE)) if marks & _HAS_FACE else None,
            *pair,
            own_captions=captions,
        )

    def _file(self, path: Path) -> LocalFile:
        return LocalFile(path, self._inside)

    def _caption(self, path: Path) -> str:
        file = self._file(path)
        text = file.read(MAX_CAPTION_BYTES).decode("utf-8", errors="replace")
        return check_caption(text, file.label)

    def fingerprint(self) -> str:
        return hashlib.sha256(self._names.digest() + self._marks.digest()).hexdigest()[:16]

    def problems(self) -> Mapping[str, str]:
        return {}


class MetadataRecords:
    """Only those pictures of a folder that its metadata.jsonl lists as {file_name, text}."""

    def __init__(self, folder: Path, inside: Path | None, caption: str) -> None:
        """`inside`: the folder that paths and links must not lead out of."""
        self._folder, self._inside, self._caption = folder, inside, caption
        self._objects = JsonObjects(folder / METADATA, inside=inside)

    def __len__(self) -> int:
        return len(self._objects)

    def record(self, index: int) -> Record:
        label = f"line {index + 1} of {str(self._folder / METADATA)!r}"
        return read_entry(self._objects[index], self._folder, self._inside, self._caption, label)

    def fingerprint(self) -> str:
        return self._objects.digest().hex()[:16]

    def problems(self) -> Mapping[str, str]:
        return {}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _ending(name: str) -> str:
    return f".{name.rpartition('.')[2].lower()}"


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of the files in `folder` and below; hidden ones are left out.

    Raises OptionError if folders are nested too deeply.
    """
    skipped = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if folders and len(Path(place).relative_to(folder).parts) >= MAX_DEPTH:
            raise OptionError(
                f"data {str(folder)!r}",
                reason=f"folders are nested more than {MAX_DEPTH} deep",
                hint="Flatten them.",
            )
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size
            else:
                skipped += _ending(name) in SUFFIXES
    if skipped:
        warnings.warn(
            f"{skipped} files in {str(folder)!r} named like pictures are not files (broken links, "
            "pipes or devices) and are left out",
            stacklevel=4,
        )


def _open(options: DataOptions) -> Records:
    folder = expand_user(options.path, f"data {brief(options.path)}")
    if not os.path.isdir(folder):  # noqa: PTH112 - never raises
        raise NotFoundError(
            f"data {brief(options.path)}", reason="there is no such folder", hint="Check the path."
        )
    if options.images:
        raise OptionError(
            f"config key 'data.images': {options.images!r}",
            reason="pictures of a folder are always relative to it",
            hint="Remove the key.",
        )
    inside = None if options.allow_outside else folder
    if os.path.lexists(folder / METADATA):
        return MetadataRecords(folder, inside, options.caption)
    return SidecarRecords(folder, inside)


class _FolderSource:
    name = "folder"
    summary = "a folder of pictures with .txt captions beside them, or with a metadata.jsonl"
    open: Callable[[DataOptions], Records] = staticmethod(_open)

    def claims(self, path: str) -> bool:
        return os.path.isdir(os.path.expanduser(path))  # noqa: PTH111, PTH112 - never raises


SOURCE = _FolderSource()
