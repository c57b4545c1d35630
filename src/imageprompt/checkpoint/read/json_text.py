"""JSON from strangers: bounded, and no name given twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.read.refusals import refuse

MAX_JSON = 32 * 2**20  # bytes
MAX_ITEMS = 500_000  # brackets and commas, of which a reader makes objects: 50,000 tensors
_AGAIN = "Download it again."


def parse_table(path: Path, content: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`; `what` names it in errors ("header", "index")."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json lets the last of two equal names win, in silence
        names = dict(pairs)
        if len(names) != len(pairs):
            refuse(path, f"its {what} names something twice", _AGAIN)
        return names

    if (
        len(content) > MAX_JSON
        or sum(content.count(mark) for mark in (b"[", b"{", b",")) > MAX_ITEMS
    ):
        refuse(path, f"its {what} has more than {MAX_JSON} bytes or {MAX_ITEMS} items", _AGAIN)
    try:
        table = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        refuse(path, f"its {what} is no JSON", _AGAIN)
    if not isinstance(table, dict):
        refuse(path, f"its {what} is no table", _AGAIN)
    return table
