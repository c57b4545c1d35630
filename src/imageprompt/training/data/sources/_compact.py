"""Lists of many names and numbers in little memory: names joined in one string, numbers packed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator


class Names:
    """A list of strings, 8 bytes each beside their letters."""

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
        """Hash of all names and of where each ends."""
        return hashlib.sha256(self._letters + self._ends.tobytes()).digest()


class Spans:
    """Stretches of a file: offset and length, 16 bytes each."""

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
        """Hash of all stretches."""
        return hashlib.sha256(self._numbers.tobytes()).digest()
