"""What a client gets for an error: a status and a problem in words, without internals."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imageprompt.core.errors import (
    EncoderError,
    ImagePromptError,
    NotFoundError,
    OptionError,
    PictureError,
    WriteError,
    printable,
    shortened,
)

MAX_RETRY_AFTER = 120
"""Seconds; clients of OpenAI's API give up at once if they are asked to wait longer."""
RETRIED = (408, 409, 429, 503)
"""Statuses after which the same request may succeed."""


@dataclass(frozen=True)
class Problem:
    """What is wrong: `param` is the place in the request, `hint` says what to do."""

    type: str
    message: str
    param: str | None = None
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        return cls(**data)


class ApiError(Exception):
    """Answers a request with `status`; `retry_after` are seconds."""

    def __init__(self, status: int, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(problem.message)
        self.status, self.problem, self.retry_after = status, problem, retry_after

    def body(self) -> dict[str, Any]:
        return {"error": self.problem.as_dict()}

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.status not in RETRIED:
            found["x-should-retry"] = "false"
        elif self.retry_after is not None:
            found["retry-after"] = str(max(1, min(MAX_RETRY_AFTER, round(self.retry_after))))
        if self.status in (408, 413):  # what is left of the body is not read
            found["connection"] = "close"
        return found


def bad_request(
    message: str, *, type: str = "invalid_request", param: str | None = None, hint: str = ""
) -> ApiError:
    """A 400."""
    return ApiError(400, Problem(type, shortened(printable(message), 500), param, hint))


def not_found(what: str) -> ApiError:
    """A 404; also for what belongs to somebody else."""
    return ApiError(404, Problem("not_found", shortened(printable(f"no such {what}"), 300)))


def problem_of(error: ImagePromptError, param: str | None = None) -> Problem:
    """A typed error of the library in the words of the API. Paths are left out."""
    kind = next((name for known, name in _TYPES if isinstance(error, known)), "invalid_request")
    what, reason, hint = map(_in_words_of_the_api, (error.what, error.reason, error.hint))
    message = f"{what}: {reason}" if reason else what
    return Problem(kind, shortened(printable(message), 500), param, shortened(printable(hint), 300))


_TYPES: tuple[tuple[type[ImagePromptError], str], ...] = (
    (PictureError, "invalid_picture"),
    (WriteError, "storage"),
    (NotFoundError, "not_found"),
    (EncoderError, "invalid_option"),
    (OptionError, "invalid_option"),
)


_PATH = re.compile(r"(?:(?<=^)|(?<=[\s'\"(=]))(?:[A-Za-z]:\\|~?/)[^\s'\"]*[/\\]([^\s'\"/\\]*)")


_FLAG = re.compile(r"--([a-z][a-z-]+)")
_IN_PYTHON = re.compile(r" \([^()]*in Python\)")


def _in_words_of_the_api(text: str) -> str:
    """Without absolute paths, but for their last part; flags as names of fields."""
    text = _PATH.sub(r"\1", " ".join(text.split()))
    text = _IN_PYTHON.sub("", text).removeprefix("Value error, ")
    return _FLAG.sub(lambda found: found[1].replace("-", "_"), text)


def param_of(error: ImagePromptError, names: Container[str]) -> str | None:
    """The field that an error is about: its `what` begins with the name, or with the flag."""
    words = error.what.removeprefix("--").replace("-", "_").split()
    for count in range(min(3, len(words)), 0, -1):
        name = re.split(r"[^a-z_]", "_".join(words[:count]).lower())[0]
        for found in (name, _ALIASES.get(name, "")):
            if found in names:
                return found
    return None


_ALIASES = {
    "masks": "mask",
    "picture": "reference",
    "weight": "weights",
    "width": "size",
    "height": "size",
}
