"""Source: one ingredient of a picture, as the user named it and as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imageprompt.recipe.limits import text


@dataclass(frozen=True, kw_only=True)
class Source:
    """One ingredient: how the user named it (None: an object in memory), and what it was.

    `hash` is the sha256 of a file (64 hex digits: adapter, pictures, masks) or the fingerprint of
    weights (16: base, encoder, ControlNet).
    """

    name: str | None
    hash: str
    spec: Mapping[str, Any] = field(default_factory=dict)


def one(value: Any) -> None:
    """Raises ValueError for what is no source, or names no path or Hub id."""
    if not isinstance(value, Source):
        raise ValueError("not an object with name and hash")
    if value.name is not None:
        text(4096)(value.name)
        if "://" in value.name or value.name.startswith(("//", r"\\")):
            raise ValueError("the name of an ingredient is a path or a Hub id")
    if not isinstance(value.hash, str) or not re.fullmatch(
        r"[0-9a-f]{16}|[0-9a-f]{64}", value.hash
    ):
        raise ValueError("a hash is 16 or 64 hex digits")
    if not isinstance(value.spec, Mapping):
        raise ValueError("spec is not an object")


def maybe(value: Any) -> None:
    if value is not None:
        one(value)


def several(value: Any) -> None:
    if not isinstance(value, tuple) or len(value) > 1000:
        raise ValueError("not a list of at most 1000 sources")
    for entry in value:
        one(entry)
