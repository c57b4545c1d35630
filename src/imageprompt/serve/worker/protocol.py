"""Messages between server and worker: a line of JSON, then the bytes that it announces.

Nothing in a message is executed: no pickle, no names of classes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_LINE = 16 * 2**20
MAX_CONTENT = 2**30


class ProtocolError(Exception):
    """What came is not a message."""


@dataclass(frozen=True)
class Message:
    """`kind` and `data` travel as JSON, `content` as it is."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    content: bytes = b""

    def as_bytes(self) -> bytes:
        head = {"kind": self.kind, "data": self.data, "bytes": len(self.content)}
        return json.dumps(head).encode() + b"\n" + self.content


def read(stream: BinaryIO) -> Message | None:
    """The next message; None at the end of the stream."""
    line = stream.readline(MAX_LINE + 1)
    if not line.endswith(b"\n"):
        return None
    kind, data, count = _head(line)
    content = stream.read(count)
    return Message(kind, data, content) if len(content) == count else None


async def receive(stream: asyncio.StreamReader) -> Message | None:
    """The same from a pipe of asyncio, made with `limit=MAX_LINE`. Raises ProtocolError."""
    try:
        line = await stream.readuntil(b"\n")
        kind, data, count = _head(line)
        return Message(kind, data, await stream.readexactly(count))
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as error:
        raise ProtocolError("a line is too long") from error


def _head(line: bytes) -> tuple[str, dict[str, Any], int]:
    try:
        head = json.loads(line)
        kind, data, count = head["kind"], head["data"], head["bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError("not a message") from error
    sized = type(count) is int and 0 <= count <= MAX_CONTENT
    if not isinstance(kind, str) or not isinstance(data, dict) or not sized:
        raise ProtocolError("not a message")
    return kind, data, count
