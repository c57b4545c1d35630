"""Where the objects of a JSON list or of JSON lines begin and end, found without parsing them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.training.data.sources._compact import Spans

_CHUNK = 2**20
_LONGEST = 2**24  # bytes of one object; a list without an end is no list
# a whole string, the quote of one that goes on in the next chunk, or a bracket
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|"|[{}\[\]]', re.DOTALL)


class Objects:
    """The objects of a file, by number: each is read and parsed when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        try:
            with path.open("rb") as stream:
                self._spans = self._scan(stream)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"data {str(path)!r}", reason="there is no such file", hint="Check the path."
            ) from error
        except OSError as error:
            raise OptionError(
                f"data {str(path)!r}", reason=f"it cannot be read ({error.strerror})"
            ) from error

    def __len__(self) -> int:
        return len(self._spans)

    def digest(self) -> bytes:
        """Hash of the whole file."""
        return self._digest.digest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One object. Raises PictureError where it is no JSON."""
        offset, length = self._spans[index]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            text = stream.read(length)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise PictureError(
                f"entry {index + 1} of {str(self.path)!r}",
                reason=f"it is no JSON ({error})",
                hint="Correct it there.",
            ) from error
        return dict(found)

    def _scan(self, stream: BinaryIO) -> Spans:
        brackets, buffer, base = _Brackets(), b"", 0
        while len(buffer) <= _LONGEST and (chunk := stream.read(_CHUNK)):
            self._digest.update(chunk)
            buffer += chunk
            end = len(buffer)
            for token in _TOKEN.finditer(buffer):
                if token[0] == b'"':  # its end is in a chunk to come
                    end = token.start()
                    break
                brackets.take(token[0], base + token.start())
            buffer, base = buffer[end:], base + end
        if brackets.depth or buffer:
            raise OptionError(
                f"data {str(self.path)!r}",
                reason=f"it breaks off inside an object, after {len(brackets.spans)} whole ones",
                hint="Fetch or write it again.",
            )
        return brackets.spans


class _Brackets:
    """Finds the objects that lie in no other object: side by side, or in one list."""

    def __init__(self) -> None:
        self.spans = Spans()
        self.depth = 0
        self._outer = 0  # depth of the objects: 1 inside a list
        self._start = 0

    def take(self, token: bytes, place: int) -> None:
        """The next bracket (or string, which says nothing) and where it stands."""
        if token in (b"{", b"["):
            if self.depth == 0 and token == b"[":
                self._outer = 1
            elif self.depth == self._outer:
                self._start = place
            self.depth += 1
        elif token in (b"}", b"]"):
            self.depth -= 1
            if self.depth == self._outer and token == b"}":
                self.spans.append(self._start, place + 1 - self._start)
