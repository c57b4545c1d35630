"""webdataset: tar shards, local or by any URL that fsspec knows, samples read by their offset."""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from imageprompt.core.errors import PictureError
from imageprompt.training.data.sources._compact import Names, Spans
from imageprompt.training.data.sources._shards import DamagedShardError, Shard, find_shards, members
from imageprompt.training.data.sources.blobs import RangeBlob
from imageprompt.training.data.sources.contract import DataOptions, Record, Records

# endings (after the first dot of the name) by what they hold
_KINDS = {
    "picture": ("jpg", "jpeg", "png", "webp"),
    "text": ("txt",),
    "json": ("json",),
    "reference": ("reference.jpg", "reference.jpeg", "reference.png", "reference.webp"),
    "id_embed": ("npy", "id_embed.npy"),
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings}
_NONE = (0, -1)


class TarRecords:
    """Samples of shards: `000.jpg` with `000.txt` (or `000.json`), next to one another."""

    def __init__(self, options: DataOptions) -> None:
        self._caption = options.caption
        self._shards = find_shards(options.path, options.storage)
        self._stamps = [shard.stamp() for shard in self._shards]
        self._keys, self._shard_of = Names(), array("l")
        self._spans = {kind: Spans() for kind in _KINDS}
        self._troubles: dict[str, str] = {}
        self._bare = self._silent = 0
        for number, shard in enumerate(self._shards):
            self._list(number, shard)
        for count, what in (
            (self._bare, "have no picture and are left out"),
            (self._silent, "have no .txt and no .json; their captions are empty"),
        ):
            if count:
                warnings.warn(f"{count} samples in {options.path!r} {what}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._keys)

    def record(self, index: int) -> Record:
        blobs = {kind: self._blob(kind, index) for kind in _KINDS}
        picture = blobs["picture"]
        assert picture is not None
        return Record(
            self._keys[index],
            self._text(blobs),
            picture,
            blobs["reference"],
            blobs["id_embed"],
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._keys.digest() + self._shard_of.tobytes())
        for spans in self._spans.values():
            digest.update(spans.digest())
        return digest.hexdigest()[:16]

    def troubles(self) -> Mapping[str, str]:
        return self._troubles

    def _list(self, number: int, shard: Shard) -> None:
        key, found = "", dict[str, tuple[int, int]]()
        try:
            for name, offset, size in members(shard):
                folder, slash, plain = name.rpartition("/")
                stem, _, ending = plain.partition(".")
                if (of := folder + slash + stem) != key:
                    self._add(number, key, found)
                    key, found = of, {}
                if kind := _KIND_OF.get(ending.lower()):
                    found[kind] = (offset, size)
        except DamagedShardError as error:
            if not found.keys() & {"text", "json"}:
                found = {}  # the last one lacks its caption, which lies behind the damage
            self._troubles[shard.path] = f"{error.reason}; what comes before that is used"
            warnings.warn(f"shard {shard.path}: {self._troubles[shard.path]}", stacklevel=2)
        self._add(number, key, found)

    def _add(self, number: int, key: str, found: Mapping[str, tuple[int, int]]) -> None:
        if "picture" not in found:
            self._bare += bool(found)
            return
        self._silent += not found.keys() & {"text", "json"}
        self._keys.append(key)
        self._shard_of.append(number)
        for kind, spans in self._spans.items():
            spans.append(*found.get(kind, _NONE))

    def _blob(self, kind: str, index: int) -> RangeBlob | None:
        offset, size = self._spans[kind][index]
        if size < 0:
            return None
        number = self._shard_of[index]
        shard = self._shards[number]
        return RangeBlob(
            shard.system, shard.path, f"{self._keys[index]} ({kind})", offset, size,
            self._stamps[number],
        )  # fmt: skip

    def _text(self, blobs: Mapping[str, RangeBlob | None]) -> str:
        if (plain := blobs["text"]) is not None:
            return plain.read().decode("utf-8", errors="replace").strip()
        if (described := blobs["json"]) is None:
            return ""
        try:
            entry: Any = json.loads(described.read())
        except ValueError:
            entry = None
        text = entry.get(self._caption) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise PictureError(
                described.label,
                reason=f"it has no {self._caption!r}, which is the caption",
                hint="Correct it there, or name the key in data.caption.",
            )
        return text


class _TarSource:
    name = "webdataset"
    summary = "tar shards of pictures and captions (.jpg + .txt), local or by URL"
    open: Callable[[DataOptions], Records] = TarRecords

    def claims(self, path: str) -> bool:
        return path.endswith(".tar")


SOURCE = _TarSource()
