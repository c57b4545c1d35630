"""Where the members of a tar shard lie; found in one pass over its headers, nothing unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imageprompt.core.errors import ImagePromptError, NotFoundError, OptionError

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True)
class Shard:
    """One tar file on a filesystem of fsspec."""

    system: Any
    path: str

    def size(self) -> int:
        return int(self.system.info(self.path)["size"])

    def stamp(self) -> str:
        """Size, and time or hash, as far as the filesystem knows one."""
        info = self.system.info(self.path)
        known = [info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime")]
        return ":".join(str(value) for value in (info["size"], *known) if value is not None)


class DamagedShardError(ImagePromptError):
    """A shard that cannot be read from some byte on; what was found before it is good."""


def find_shards(url: str, storage: dict[str, Any]) -> list[Shard]:
    """The shards that a path or URL with `{000..009}`, `{a,b}` or `*` names, in order.

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
                reason=f"its protocol needs a package ({error})",
                hint="Install it.",
            ) from error
        except Exception as error:  # every protocol has exceptions of its own
            raise OptionError(
                f"data {url!r}",
                reason=f"it cannot be reached ({type(error).__name__}: {error})",
                hint="Check the URL, and data.storage.",
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
    """`a{00..02}b` and `{x,y}` written out; `{00..02}` keeps its zeros. Raises OptionError."""
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
            f"data {text!r}", reason="braces are {000..099} or {a,b}", hint="Correct it."
        )
    return [head + choice + end for choice in choices for end in expand_braces(tail)]


def members(shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a shard. Raises DamagedShardError at the damage."""
    try:
        total = shard.size()
        with shard.system.open(shard.path, "rb") as stream:
            _check_plain(stream, shard)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                    if member.offset_data + member.size > total:
                        raise _damaged(shard, member.offset_data)
                    if member.isfile():
                        yield member.name, member.offset_data, member.size
                end = tar.offset
            stream.seek(end)
            # tarfile takes a damaged header for the end; the real one is a block of zeros
            if stream.read(_BLOCK) != bytes(_BLOCK):
                raise _damaged(shard, end)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedShardError(
            f"shard {shard.path}", reason=f"it cannot be read ({error})"
        ) from error


def _check_plain(stream: Any, shard: Shard) -> None:
    kind = _COMPRESSED.get(stream.read(2))
    stream.seek(0)
    if kind:
        raise OptionError(
            f"shard {shard.path}",
            reason=f"it is compressed ({kind}), so that no sample can be read alone",
            hint="Decompress it; pictures do not become smaller by it.",
        )


def _damaged(shard: Shard, offset: int) -> DamagedShardError:
    return DamagedShardError(
        f"shard {shard.path}", reason=f"it is damaged or cut short at byte {offset}"
    )
