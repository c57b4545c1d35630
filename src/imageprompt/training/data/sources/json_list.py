"""json: the reference implementation's list of {image_file, text, id_embed_file}, or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imageprompt.core.yaml_file import brief, expand_user
from imageprompt.training.data.sources._index import JsonObjects, read_entry
from imageprompt.training.data.sources.contract import DataOptions, Record, Records


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


class _JsonSource:
    name = "json"
    summary = "a list of {image_file, text, id_embed_file} in a .json or .jsonl file"
    open: Callable[[DataOptions], Records] = JsonRecords

    def claims(self, path: str) -> bool:
        return path.endswith((".json", ".jsonl")) and "://" not in path


SOURCE = _JsonSource()
