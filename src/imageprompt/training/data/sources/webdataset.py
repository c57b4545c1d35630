"""webdataset: tar shards, local or at any URL that fsspec opens; samples are read by offset.

One pass over the headers of a shard finds its members; nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imageprompt.core.errors import ImagePromptError, NotFoundError, OptionError, PictureError
from imageprompt.training.data.sources._index import Names, Ranges
from imageprompt.training.data.sources.contract import (
    DataOptions,
    Record,
    Records,
    check_size,
    unreadable,
)

# name endings (after the first dot) by what the member is
_KINDS = {
    "picture": ("jpg", "jpeg", "png", "webp"),
    "text": ("txt",),
    "json": ("json",),
    "reference": ("reference.jpg", "reference.jpeg", "reference.png", "reference.webp"),
    "id_embed": ("npy", "id_embed.npy"),
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings}
_NONE = (0, -1)

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class TarRecords:
    """Samples of shards: `000.jpg` and `000.txt` (or `000.json`), next to each other."""

    def __init__(self, options: DataOptions) -> None:
        self._caption = options.caption
        self._shards = find_shards(options.path, options.storage)
        self._stamps = [shard.stamp() for shard in self._shards]
        self._keys, self._shard_of = Names(), array("l")
        self._ranges = {kind: Ranges() for kind in _KINDS}
        self._problems: dict[str, str] = {}
        self._no_picture = self._no_caption = 0
        for number, shard in enumerate(self._shards):
            self._list(number, shard)
        for count, what in (
            (self._no_picture, "have no picture and are left out"),
            (self._no_caption, "have no .txt and no .json; their captions are empty"),
        ):
            if count:
                warnings.warn(f"{count} samples in {options.path!r} {what}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._keys)

    def record(self, index: int) -> Record:
        files = {kind: self._member(kind, index) for kind in _KINDS}
        picture = files["picture"]
        assert picture is not None
        return Record(
            self._keys[index],
            self._text(files),
            picture,
            files["reference"],
            files["id_embed"],
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._keys.digest() + self._shard_of.tobytes())
        for ranges in self._ranges.values():
            digest.update(ranges.digest())
        return digest.hexdigest()[:16]

    def problems(self) -> Mapping[str, str]:
        return self._problems

    def _list(self, number: int, shard: Shard) -> None:
        key, found = "", dict[str, tuple[int, int]]()
        try:
            for name, offset, size in _members(shard):
                folder, slash, plain = name.rpartition("/")
                stem, _, ending = plain.partition(".")
                if (of := folder + slash + stem) != key:
                    self._add(number, key, found)
                    key, found = of, {}
                if kind := _KIND_OF.get(ending.lower()):
                    found[kind] = (offset, size)
        except DamagedShardError as error:
            if not found.keys() & {"text", "json"}:
                found = {}  # the last one lacks its caption, which is beyond the damage
            self._problems[shard.path] = f"{error.reason}; the samples before that are used"
            warnings.warn(f"shard {shard.path}: {self._problems[shard.path]}", stacklevel=2)
        self._add(number, key, found)

    def _add(self, number: int, key: str, found: Mapping[str, tuple[int, int]]) -> None:
        if "picture" not in found:
            self._no_picture += bool(found)
            return
        self._no_caption += not found.keys() & {"text", "json"}
        self._keys.append(key)
        self._shard_of.append(number)
        for kind, ranges in self._ranges.items():
            ranges.append(*found.get(kind, _NONE))

    def _member(self, kind: str, index: int) -> ShardMember | None:
        offset, size = self._ranges[kind][index]
        if size < 0:
            return None
        number = self._shard_of[index]
        shard = self._shards[number]
        return ShardMember(
            shard.system, shard.path, f"{self._keys[index]} ({kind})", offset, size,
            self._stamps[number],
        )  # fmt: skip

    def _text(self, files: Mapping[str, ShardMember | None]) -> str:
        if (plain := files["text"]) is not None:
            return plain.read().decode("utf-8", errors="replace").strip()
        if (metadata := files["json"]) is None:
            return ""
        try:
            entry: Any = json.loads(metadata.read())
        except ValueError:
            entry = None
        text = entry.get(self._caption) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise PictureError(
                metadata.label,
                reason=f"has no caption {self._caption!r}",
                hint="Correct it, or name the key in data.caption.",
            )
        return text


@dataclass(frozen=True)
class ShardMember:
    """A DataFile: `size` bytes from `offset` on in a shard."""

    system: Any
    shard: str
    name: str
    offset: int
    size: int
    shard_stamp: str

    @property
    def label(self) -> str:
        return f"member {self.name!r} of {self.shard}"

    def stamp(self) -> str:
        return f"{self.shard}:{self.shard_stamp}:{self.offset}:{self.size}"

    def source(self) -> bytes:
        return self.read()

    def read(self) -> bytes:
        check_size(self.size, self.label)
        try:
            data: bytes = self.system.cat_file(
                self.shard, start=self.offset, end=self.offset + self.size
            )
        except Exception as error:  # every protocol has exceptions of its own
            raise unreadable(self.label, error) from error
        if len(data) != self.size:
            raise PictureError(
                self.label,
                reason=f"only {len(data)} of its {self.size} bytes could be read",
                hint="Fetch the shard again.",
            )
        return data


@dataclass(frozen=True)
class Shard:
    """One tar file on an fsspec filesystem."""

    system: Any
    path: str

    def size(self) -> int:
        return int(self.system.info(self.path)["size"])

    def stamp(self) -> str:
        """Size, and the time or hash that the filesystem reports, if any."""
        info = self.system.info(self.path)
        known = [info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime")]
        return ":".join(str(value) for value in (info["size"], *known) if value is not None)


class DamagedShardError(ImagePromptError):
    """A shard that is damaged from some byte on; the members before it are usable."""


def find_shards(url: str, storage: dict[str, Any]) -> list[Shard]:
    """The shards named by a path or URL with `{000..009}`, `{a,b}` or `*`, in order.

    Raises NotFoundError, OptionError.
    """
    import fsspec

    shards: list[Shard] = []
    for one in expand_braces(url):
        try:
            system, path = fsspec.core.url_to_fs(one, **storage)
            paths = sorted(system.glob(path)) if "*" in path else [path]
            missing = [name for name in paths if not system.isfile(name)] or paths[:0]
        except ImportError as error:
            raise OptionError(
                f"data {url!r}",
                reason=f"the protocol needs another package ({error})",
                hint="Install that package.",
            ) from error
        except Exception as error:  # every protocol has exceptions of its own
            raise OptionError(
                f"data {url!r}",
                reason=f"cannot be reached ({type(error).__name__}: {error})",
                hint="Check the URL and data.storage.",
            ) from error
        if missing or not paths:
            raise NotFoundError(
                f"shard {missing[0] if missing else one!r}",
                reason="there is no such file",
                hint="Check data.path.",
            )
        shards += [Shard(system, name) for name in paths]
    return shards


def expand_braces(text: str) -> list[str]:
    """All names that `a{00..02}b` or `{x,y}` stands for; zeros are kept. Raises OptionError."""
    head, opening, rest = text.partition("{")
    inner, closing, tail = rest.partition("}")
    if not opening:
        return [text]
    first, dots, last = inner.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        numbers = range(int(first), int(last) + 1)
        choices = [str(number).zfill(len(first)) for number in numbers]
    else:
        choices = inner.split(",")
    if not closing or not choices or (dots and not (first.isdecimal() and last.isdecimal())):
        raise OptionError(
            f"data {text!r}", reason="braces must be {000..099} or {a,b}", hint="Correct it."
        )
    return [head + choice + end for choice in choices for end in expand_braces(tail)]


def _members(shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a shard. Raises DamagedShardError."""
    try:
        total = shard.size()
        with shard.system.open(shard.path, "rb") as stream:
            _check_plain(stream, shard)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep all
                    if member.offset_data + member.size > total:
                        raise _damaged(shard, member.offset_data)
                    if member.isfile():
                        yield member.name, member.offset_data, member.size
                end = tar.offset
            stream.seek(end)
            # tarfile takes a damaged header for the end; the true end is a block of zeros
            if stream.read(_BLOCK) != bytes(_BLOCK):
                raise _damaged(shard, end)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedShardError(
            f"shard {shard.path}", reason=f"cannot be read ({error})"
        ) from error


def _check_plain(stream: Any, shard: Shard) -> None:
    kind = _COMPRESSED.get(stream.read(2))
    stream.seek(0)
    if kind:
        raise OptionError(
            f"shard {shard.path}",
            reason=f"compressed with {kind}, so single samples cannot be read",
            hint="Decompress it; compression does not make pictures smaller.",
        )


def _damaged(shard: Shard, offset: int) -> DamagedShardError:
    return DamagedShardError(f"shard {shard.path}", reason=f"damaged or truncated at byte {offset}")


class _TarSource:
    name = "webdataset"
    summary = "tar shards of pictures and captions (.jpg + .txt), local or by URL"
    open: Callable[[DataOptions], Records] = TarRecords

    def claims(self, path: str) -> bool:
        return path.endswith(".tar")


SOURCE = _TarSource()
