"""What /openapi.json says of the routes: bodies that they read themselves, errors, the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from imageprompt.serve.bodies import REQUEST_PART

TAGS = (
    {"name": "jobs", "description": "Requests in the queue, and what comes of them."},
    {"name": "workflows", "description": "Whole jobs that people come for, with their figures."},
    {"name": "uploads", "description": "Pictures of yours by their SHA-256, and recipes in PNGs."},
    {"name": "catalog", "description": "What is served here."},
    {"name": "styles", "description": "The style library, which all keys share."},
    {"name": "references", "description": "Before a picture is used."},
    {"name": "operations", "description": "For those who run the server."},
    {"name": "OpenAI", "description": "For OpenAI's clients."},
    {
        "name": "A1111",
        "description": "For clients of A1111's web UI. The password of HTTP Basic may be the key.",
    },
)
_KEY = "key"
_FILE = {"type": "string", "format": "binary"}
_ERROR = {
    "type": "object",
    "description": "An error. OpenAI's and A1111's routes have the forms of theirs.",
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "hint"],
            "properties": {
                "type": {"type": "string", "description": "invalid_option, quota, ..."},
                "message": {"type": "string", "description": "what is wrong"},
                "param": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "description": "the place in the request",
                },
                "hint": {"type": "string", "description": "what to do, or empty"},
            },
        }
    },
}


def described(app: FastAPI) -> dict[str, Any]:
    """The document. Wrong requests are told of by `error`, not as FastAPI does by itself."""
    found = get_openapi(
        title=app.title, version=app.version, routes=app.routes, tags=[dict(one) for one in TAGS]
    )
    refused = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["tags"] = operation["tags"][-1:]  # the route's own, if it has one
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = refused
    found["components"] = {
        "schemas": {"Error": _ERROR},
        "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
    }
    found["security"] = [{_KEY: []}, {}]
    return found


def json_or_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """For a route that reads JSON of this schema, alone or as the first part of a form."""
    form = {
        "type": "object",
        "required": [REQUEST_PART],
        "properties": {REQUEST_PART: schema},
        "additionalProperties": _FILE,
    }
    return _body({"application/json": schema, "multipart/form-data": form})


def fields(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """The schema of an object with these fields alone."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def one_picture(kinds: Sequence[str] = ("image/png", "image/jpeg", "image/webp")) -> dict[str, Any]:
    """For a route that reads one picture: as the body, or as the only part of a form."""
    form = {"type": "object", "additionalProperties": _FILE, "minProperties": 1, "maxProperties": 1}
    return _body({**dict.fromkeys(kinds, _FILE), "multipart/form-data": form})


def _body(content: Mapping[str, Any]) -> dict[str, Any]:
    described = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": described}}
