"""Test ids that are the same in every process: no memory addresses."""

from __future__ import annotations

import re


def stable(value: object) -> str:
    """`str(value)` on one line, without addresses, at most 80 characters."""
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", " ".join(str(value).split()))
    return text if len(text) <= 80 else f"{text[:77]}..."
