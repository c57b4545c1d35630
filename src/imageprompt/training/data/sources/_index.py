"""Indexes of millions of samples in little memory: names, byte ranges, entries of a list."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.core.untrusted import open_regular, parse_json
from imageprompt.training.data.sources.contract import (
    MAX_PATH,
    PAIR_CAPTIONS,
    PAIR_COLUMNS,
    LocalFile,
    Record,
    check_caption,
)

# the reference implementation's name first, then that of `metadata.jsonl`
_PICTURE = ("image_file", "file_name")
_REFERENCE, _ID_EMBED = "reference_file", "id_embed_file"

CHUNK = 2**20
"""Bytes of a list read at a time."""
MAX_ENTRY = 2**20
"""Bytes of one object, or of one string; a longer one is the sign of a missing bracket or quote."""
# a whole string, the quote of one that continues in the next chunk, or a bracket; nothing that
# was matched is tried again (*+), which would take memory for every escape of a string
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[{}\[\]]', re.DOTALL)


class Names:
    """A list of strings that takes 8 bytes each besides their letters."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._letters = bytearray()
        self._ends = array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._letters += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._letters))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        letters = self._letters[self._ends[index] : self._ends[index + 1]]
        return letters.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> bytes:
        """Hash of all names and their lengths."""
        return hashlib.sha256(self._letters + self._ends.tobytes()).digest()


class Ranges:
    """Byte ranges of a file: offset and length, 16 bytes each."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def append(self, offset: int, length: int) -> None:
        self._numbers.extend((offset, length))

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._numbers[2 * index], self._numbers[2 * index + 1]

    def digest(self) -> bytes:
        """Hash of all ranges."""
        return hashlib.sha256(self._numbers.tobytes()).digest()


class JsonObjects:
    """The objects of a JSON list or of JSON lines, by number; each is parsed when it is needed.

    One pass finds where objects begin and end, without parsing them.
    """

    def __init__(self, path: Path, *, inside: Path | None = None) -> None:
        """`inside`: the folder that a link must not lead out of.

        Raises NotFoundError, and OptionError for a list that ends inside an object.
        """
        self.path, self._inside = path, inside
        self._digest = hashlib.sha256()
        try:
            with open_regular(path, inside=inside) as stream:
                self._ranges = self._scan(stream)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"data {str(path)!r}", reason="there is no such file", hint="Check the path."
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise OptionError(
                f"data {str(path)!r}",
                reason=f"cannot be read ({getattr(error, 'strerror', None) or error})",
                hint="Give a regular file.",
            ) from error

    def __len__(self) -> int:
        return len(self._ranges)

    def digest(self) -> bytes:
        """Hash of the whole file."""
        return self._digest.digest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One object. Raises PictureError if it is not valid JSON, or too large."""
        offset, length = self._ranges[index]
        label = f"entry {index + 1} of {str(self.path)!r}"
        if length > MAX_ENTRY:
            raise PictureError(
                label, reason=f"larger than {MAX_ENTRY} bytes", hint="Correct the file."
            )
        try:
            with open_regular(self.path, inside=self._inside) as stream:
                stream.seek(offset)
                text = stream.read(length)
            return dict(parse_json(text))
        except OSError as error:
            raise PictureError(
                label, reason=f"cannot be read ({error.strerror})", hint="Check the file."
            ) from error
        except (ValueError, TypeError) as error:  # TypeError: the file was replaced meanwhile
            raise PictureError(
                label, reason=f"not valid JSON ({error})", hint="Correct the file."
            ) from error

    def _scan(self, stream: BinaryIO) -> Ranges:
        brackets, buffer, base = _Brackets(), b"", 0
        while len(buffer) <= MAX_ENTRY and (chunk := stream.read(CHUNK)):
            self._digest.update(chunk)
            buffer += chunk
            end = len(buffer)
            for token in _TOKEN.finditer(buffer):
                if token[0] == b'"':  # the string ends in a later chunk
                    end = token.start()
                    break
                brackets.take(token[0], base + token.start())
            buffer, base = buffer[end:], base + end
        if brackets.depth or buffer:
            raise OptionError(
                f"data {str(self.path)!r}",
                reason=f"ends inside an object, after {len(brackets.ranges)} complete ones",
                hint="Fetch or write the file again.",
            )
        return brackets.ranges


class _Brackets:
    """Finds the outermost objects of a text: side by side, or in one list."""

    def __init__(self) -> None:
        self.ranges = Ranges()
        self.depth = 0
        self._outer = 0  # depth of the objects: 1 inside a list
        self._start = 0

    def take(self, token: bytes, offset: int) -> None:
        """The next bracket (or string, which is ignored) and its offset."""
        if token in (b"{", b"["):
            if self.depth == 0 and token == b"[":
                self._outer = 1
            elif self.depth == self._outer:
                self._start = offset
            self.depth += 1
        elif token in (b"}", b"]"):
            self.depth -= 1
            if self.depth == self._outer and token == b"}":
                self.ranges.append(self._start, offset + 1 - self._start)


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
    others = {key: entry[key] for key in (_REFERENCE, _ID_EMBED, *PAIR_COLUMNS) if entry.get(key)}
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
        *(files.get(key) for key in PAIR_COLUMNS),
        own_captions=own_captions(entry, label),
    )


def own_captions(entry: Mapping[str, Any], label: str) -> dict[str, str]:
    """The captions of one side of a pair that an entry has. Raises PictureError."""
    found = {key: entry[key] for key in PAIR_CAPTIONS if entry.get(key) is not None}
    for key, text in found.items():
        if not isinstance(text, str):
            raise PictureError(label, reason=f"its {key} is not text", hint="Correct it.")
    return {key: check_caption(text, label) for key, text in found.items()}
