"""Words that messages and pages about studies share."""

from __future__ import annotations

from collections.abc import Collection

from imageprompt.core.console import did_you_mean


def listed(names: Collection[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    *first, last = names or ("",)
    return f"{', '.join(first)} and {last}" if first else last


def counted(count: int, name: str) -> str:
    """ "1 seed", "2 seeds", "3 pairs of twins"."""
    first, *rest = name.split(" ")
    return " ".join((f"{count:,}", first if count == 1 else f"{first}s", *rest))


def known_ones(word: str, known: Collection[str]) -> str:
    """A hint beside a word that is not known: the nearest, and all that there are."""
    near = did_you_mean(word, known).removeprefix(". ")
    return f"{near} It has {listed(known) or 'none'}.".strip()
