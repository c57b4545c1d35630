"""How programs of other APIs are refused, send their keys, and send pictures: by their paths."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imageprompt.serve.errors import ApiError


@dataclass(frozen=True)
class Dialect:
    """What the routes below some paths have in common."""

    paths: tuple[str, ...]
    """Their prefixes."""
    body: Callable[[ApiError], Mapping[str, Any]]
    """The JSON of an error."""
    challenge: str = "Bearer"
    """The `WWW-Authenticate` of a 401."""
    basic: bool = False
    """Is the password of HTTP Basic a key?"""
    pictures_in_json: bool = False
    """May bodies hold pictures as base64?"""
    conflict_is_final: bool = False
    """Do clients repeat a 409 by themselves, unless they are told not to?"""

    def headers(self, error: ApiError) -> dict[str, str]:
        """Of the answer to an error."""
        headers = error.headers()
        if error.status == 409 and self.conflict_is_final:
            headers["x-should-retry"] = "false"
        if error.status == 401:
            headers["www-authenticate"] = self.challenge
        return headers

    def secret(self, authorization: str) -> str | None:
        """The key in an `Authorization` header."""
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "bearer":
            return value.strip()
        if kind.lower() == "basic" and self.basic:
            try:
                return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        return None


def dialect_of(path: str) -> Dialect:
    """The dialect of a route by its path."""
    return next((one for one in _OTHERS if path.startswith(one.paths)), OWN)


def _openai_error(error: ApiError) -> Mapping[str, Any]:
    problem = error.problem
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": _sentences(problem.message, problem.hint),
            "type": kinds.get(error.status, kind),
            "param": problem.param,
            "code": problem.type,
        }
    }


def _a1111_error(error: ApiError) -> Mapping[str, Any]:
    problem = error.problem
    told = _sentences(problem.message, problem.hint)
    return {"error": problem.type, "detail": told, "body": "", "errors": problem.param or ""}


def _sentences(message: str, hint: str) -> str:
    return f"{message}. {hint}" if hint else message


OWN = Dialect(paths=("/",), body=lambda error: error.body())
_OTHERS = (
    Dialect(
        paths=("/v1/",),
        body=_openai_error,
        pictures_in_json=True,
        conflict_is_final=True,
    ),
    Dialect(
        paths=("/sdapi/", "/controlnet/"),
        body=_a1111_error,
        challenge='Basic realm="imageprompt"',
        basic=True,
        pictures_in_json=True,
    ),
)
