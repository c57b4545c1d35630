"""webdataset: tar shards, local or at any URL that fsspec opens; samples are read by offset.

One pass over the headers of a shard finds its members; nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import (
    ImagePromptError,
    NotFoundError,
    OptionError,
    PictureError,
    printable,
)
from imageprompt.core.untrusted import parse_json
from imageprompt.core.yaml_file import brief
from imageprompt.training.data.sources._index import MAX_ENTRY, Names, Ranges, own_captions
from imageprompt.training.data.sources.contract import (
    MAX_CAPTION_BYTES,
    PAIR_CAPTIONS,
    PAIR_COLUMNS,
    DataOptions,
    Record,
    Records,
    check_caption,
    check_size,
    unreadable,
)

if TYPE_CHECKING:
    from imageprompt.training.data.sources._tar import Member

# name endings (after the first dot) by what the member is
_KINDS: dict[str, tuple[str, ...]] = {
    "picture": ("jpg", "jpeg", "png", "webp"),
    "text": ("txt",),
    "json": ("json",),
    "reference": ("reference.jpg", "reference.jpeg", "reference.png", "reference.webp"),
    "id_embed": ("npy", "id_embed.npy"),
}
for _name in PAIR_COLUMNS:
    _KINDS[_name] = tuple(f"{_name}.{ending}" for ending in _KINDS["picture"])
for _name in PAIR_CAPTIONS:
    _KINDS[_name] = (f"{_name}.txt",)
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings}
_NONE = (0, -1)

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class TarRecords:
    """Samples of shards: `000.jpg` and `000.txt` (or `000.json`), next to each other."""

    def __init__(self, options: DataOptions) -> None:
        self._caption = options.caption
        self._shards = find_shards(options)
        self._stamps = [shard.stamp() for shard in self._shards]
        self._keys, self._shard_of = Names(), array("l")
        self._ranges = {kind: Ranges() for kind in _KINDS}
        self._problems: dict[str, str] = {}
        self._no_picture = self._no_caption = self._not_files = 0
        self._own = set[str]()  # what some sample has for one adapter of a pair
        for number, shard in enumerate(self._shards):
            self._list(number, shard)
        for count, what in (
            (self._no_picture, "have no picture and are left out"),
            (self._no_caption, "have no .txt and no .json; their captions are empty"),
            (
                self._not_files,
                "have parts that are links, devices or sparse files; these are left out",
            ),
        ):
            if count:
                warnings.warn(f"{count} samples in {brief(options.path)} {what}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._keys)

    def record(self, index: int) -> Record:
        files = {kind: self._member(kind, index) for kind in _KINDS}
        picture = files["picture"]
        assert picture is not None
        text, own = self._captions(files)
        return Record(
            self._keys[index],
            text,
            picture,
            files["reference"],
            files["id_embed"],
            *(files[name] for name in PAIR_COLUMNS),
            own_captions=own,
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._keys.digest() + self._shard_of.tobytes())
        for kind, ranges in self._ranges.items():
            group = next((names for names in (PAIR_COLUMNS, PAIR_CAPTIONS) if kind in names), None)
            if group is None or not self._own.isdisjoint(group):
                digest.update(ranges.digest())
        return digest.hexdigest()[:16]

    def problems(self) -> Mapping[str, str]:
        return self._problems

    def _list(self, number: int, shard: Shard) -> None:
        key, found = "", dict[str, tuple[int, int]]()
        try:
            for member in _members(shard):
                if not member.usable:
                    self._not_files += 1
                    continue
                folder, slash, plain = member.name.rpartition("/")
                stem, _, ending = plain.partition(".")
                if (of := folder + slash + stem) != key:
                    self._add(number, key, found)
                    key, found = of, {}
                if kind := _KIND_OF.get(ending.lower()):
                    found[kind] = (member.offset, member.size)
        except DamagedShardError as error:
            if not found.keys() & {"text", "json"}:
                found = {}  # the last one lacks its caption, which is beyond the damage
            problem = printable(f"{error.reason}; the samples before that are used")
            self._problems[printable(shard.path)] = problem
            warnings.warn(f"shard {printable(shard.path)}: {problem}", stacklevel=2)
        self._add(number, key, found)

    def _add(self, number: int, key: str, found: Mapping[str, tuple[int, int]]) -> None:
        if "picture" not in found:
            self._no_picture += bool(found)
            return
        self._no_caption += not found.keys() & {"text", "json"}
        self._own |= found.keys() & {*PAIR_COLUMNS, *PAIR_CAPTIONS}
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

    def _captions(self, files: Mapping[str, ShardMember | None]) -> tuple[str, dict[str, str]]:
        """The caption, and those of one side of a pair: from .txt members, else from the .json."""
        plain = {name: _read_caption(one) for name in PAIR_CAPTIONS if (one := files[name])}
        if (text := files["text"]) is not None:
            return _read_caption(text), plain
        if (metadata := files["json"]) is None:
            return "", plain
        entry = _read_entry(metadata)
        caption = entry.get(self._caption)
        if not isinstance(caption, str):
            raise PictureError(
                metadata.label,
                reason=f"has no caption {self._caption!r}",
                hint="Correct it, or name the key in data.caption.",
            )
        return check_caption(caption, metadata.label), own_captions(entry, metadata.label) | plain


def _read_caption(plain: ShardMember) -> str:
    text = plain.read(MAX_CAPTION_BYTES).decode("utf-8", errors="replace")
    return check_caption(text, plain.label)


def _read_entry(metadata: ShardMember) -> dict[str, Any]:
    """The object in a .json member; empty if there is none."""
    try:
        entry = parse_json(metadata.read(MAX_ENTRY))
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


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

    def read(self, limit: int | None = None) -> bytes:
        check_size(self.size, self.label, limit)
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
        """Size, and the time or hash that the filesystem reports, if any. Raises OptionError."""
        try:
            info = self.system.info(self.path)
        except Exception as error:  # every protocol has exceptions of its own
            raise _unreachable(self.path, error) from error
        known = [info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime")]
        return ":".join(str(value) for value in (info["size"], *known) if value is not None)


class DamagedShardError(ImagePromptError):
    """A shard that is damaged from some byte on; the members before it are usable."""


def find_shards(options: DataOptions) -> list[Shard]:
    """The shards named by a path or URL with `{000..009}`, `{a,b}` or `*`, in order.

    Raises NotFoundError, OptionError.
    """
    from imageprompt.training.data.sources._remote import expand_braces, filesystem, paths_at

    shards: list[Shard] = []
    for one in expand_braces(options.path):
        try:
            system, path = filesystem(one, options.storage, allow_outside=options.allow_outside)
            paths = paths_at(system, path, one)
            missing = [name for name in paths if not system.isfile(name)] or paths[:0]
        except OptionError:
            raise
        except ImportError as error:
            raise OptionError(
                f"data {brief(options.path)}",
                reason=f"the protocol needs another package ({error})",
                hint="Install that package.",
            ) from error
        except Exception as error:  # every protocol has exceptions of its own
            raise _unreachable(options.path, error) from error
        if missing or not paths:
            raise NotFoundError(
                f"shard {brief(missing[0] if missing else one)}",
                reason="there is no such file",
                hint="Check data.path.",
            )
        shards += [Shard(system, name) for name in paths]
    return shards


def _unreachable(url: str, error: Exception) -> OptionError:
    return OptionError(
        f"data {brief(url)}",
        reason=f"cannot be reached ({type(error).__name__}: {error})",
        hint="Check the URL and data.storage.",
    )


def _members(shard: Shard) -> Iterator[Member]:
    """The members of a shard. Raises DamagedShardError, and OptionError if it is compressed."""
    from imageprompt.training.data.sources._tar import DamagedTarError, members

    try:
        with shard.system.open(shard.path, "rb") as stream:
            try:
                yield from members(stream, shard.size())
            except DamagedTarError as error:
                if error.offset == 0:
                    _check_plain(stream, shard)
                raise DamagedShardError(f"shard {shard.path}", reason=str(error)) from error
    except ImagePromptError:
        raise
    except Exception as error:  # every protocol has exceptions of its own
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DamagedShardError(f"shard {shard.path}", reason=reason) from error


def _check_plain(stream: Any, shard: Shard) -> None:
    stream.seek(0)
    kind = _COMPRESSED.get(stream.read(2))
    if kind:
        raise OptionError(
            f"shard {shard.path}",
            reason=f"compressed with {kind}, so single samples cannot be read",
            hint="Decompress it; compression does not make pictures smaller.",
        )


class _TarSource:
    name = "webdataset"
    summary = "tar shards of pictures and captions (.jpg + .txt), local or by URL"
    open: Callable[[DataOptions], Records] = TarRecords

    def claims(self, path: str) -> bool:
        return path.endswith(".tar")


SOURCE = _TarSource()
