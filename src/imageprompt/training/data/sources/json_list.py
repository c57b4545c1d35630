"""json: the reference implementation's list of {image_file, text, id_embed_file}, or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imageprompt.core.errors import PictureError
from imageprompt.training.config.yaml_file import brief, expand_user
from imageprompt.training.data.sources._index import JsonObjects
from imageprompt.training.data.sources.contract import (
    MAX_PATH,
    DataOptions,
    LocalFile,
    Record,
    Records,
    check_caption,
)

# the reference implementation's name first, then that of `metadata.jsonl`
_PICTURE = ("image_file", "file_name")
_REFERENCE, _ID_EMBED = "reference_file", "id_embed_file"


class JsonRecords:
    """Entries of a list; their paths are relative to `images`, or to the list's own folder."""

    def __init__(self, options: DataOptions) -> None:
        self._path = expand_user(options.path, f"data {brief(options.path)}")
        self._objects = JsonObjects(self._path)
        images = options.images and expand_user(options.images, f"data {brief(options.images)}")
        self._folder, self._caption = images or self._path.parent, options.caption
        self._inside = None if options.allow_outside else self._folder

    def __len__(self) -> int:
        return len(self._objects)

    def record(self, index: int) -> Record:
        return read_entry(
            self._objects[index],
            self._folder,
            self._inside,
            self._caption,
            f"entry {index + 1} of {str(self._path)!r}",
        )

    def fingerprint(self) -> str:
        return self._objects.digest().hex()[:16]

    def problems(self) -> Mapping[str, str]:
        return {}


def read_entry(
    entry: Mapping[str, Any], folder: Path, inside: Path | None, caption: str, label: str
) -> Record:
    """The record of a list entry, whose paths are relative to `folder`.

    `inside` is the folder that they must not lead out of. Raises PictureError if a key is missing
    or not a string.
    """
    name = next((entry[key] for key in _PICTURE if key in entry), None)
    if not isinstance(name, str) or not name:
        raise PictureError(label, reason=f"has no {_PICTURE[0]}", hint="Add it there.")
    text = entry.get(caption)
    if not isinstance(text, str):
        raise PictureError(
            label,
            reason=f"has no caption {caption!r}",
            hint="Add it, or name its key in data.caption.",
        )
    others = {key: entry[key] for key in (_REFERENCE, _ID_EMBED) if entry.get(key)}
    for key, other in {_PICTURE[0]: name, **others}.items():
        if not isinstance(other, str) or len(other) > MAX_PATH:
            reason = f"its {key} is not a path of at most {MAX_PATH} characters"
            raise PictureError(label, reason=reason, hint="Correct it.")
    files = {key: LocalFile(folder / other, inside) for key, other in others.items()}
    return Record(
        name,
        check_caption(text, label),
        LocalFile(folder / name, inside),
        files.get(_REFERENCE),
        files.get(_ID_EMBED),
    )


class _JsonSource:
    name = "json"
    summary = "a list of {image_file, text, id_embed_file} in a .json or .jsonl file"
    open: Callable[[DataOptions], Records] = JsonRecords

    def claims(self, path: str) -> bool:
        return path.endswith((".json", ".jsonl")) and "://" not in path


SOURCE = _JsonSource()
