"""Samples that cannot be used: counted against a ceiling, listed at the end, never silent."""

from __future__ import annotations

from collections.abc import Mapping

from imageprompt.errors import PictureError

_SHOWN = 5


class Quarantine:
    """What could not be read, each with the reason. At least one sample may always be broken."""

    def __init__(self, total: int, share: float, troubles: Mapping[str, str]) -> None:
        self._total, self._allowed = total, max(1, int(share * total))
        self._share = share
        self._troubles = dict(troubles)
        self._samples: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, index: int) -> bool:
        return index in self._samples

    def add(self, index: int, why: str) -> None:
        """A sample that cannot be read. Raises PictureError when there are too many."""
        self._samples[index] = why
        if len(self._samples) > self._allowed or len(self._samples) == self._total:
            raise PictureError(
                f"{len(self)} of {self._total} samples",
                rule=f"they cannot be read, and data.max_broken is {self._share:g}; the first are: "
                + " ".join(self.lines()[:_SHOWN]),
                remedy="Repair or remove them, or allow more.",
            )

    def lines(self) -> list[str]:
        """A line each: damaged shards first, then samples in their order."""
        shards = [f"{name}: {why}" for name, why in self._troubles.items()]
        return shards + [self._samples[index] for index in sorted(self._samples)]
