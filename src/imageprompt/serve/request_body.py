"""The JSON of a request, held against the dataclasses that Python and the command line use."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError
from imageprompt.core.hub import PARTS, part_of
from imageprompt.core.schema import json_schema, options, validate
from imageprompt.generation.reference import Reference, is_picture
from imageprompt.generation.request import Request
from imageprompt.serve import sources
from imageprompt.serve.errors import ApiError, bad_request, param_of, problem_of
from imageprompt.serve.settings import Limits

NOT_SERVED = (
    *("library", "dtype", "device", "batch_size"),
    *("controlnet", "control_image", "control_scale"),
    *("encoder", "variant", "reading", "text_encoder", "faces", "face_embeddings", "lora_mode"),
    "controls",
)
"""Fields that name files, models or devices of the server, or that are the operator's to choose."""
REFERENCE = tuple(f.name for f in options(Reference) if f.name not in NOT_SERVED)
TOP = (*(f.name for f in options(Request) if f.name not in NOT_SERVED), "references")
ENCODING = (
    *("fusion", "weights", "framing", "reference_mask", "negative_reference", "noise"),
    *("noise_seed", "subtract_text", "subtract_strength", "fusion_text", "face", "face_strength"),
)
"""Fields that say how the pictures of a reference, or of a new style, are encoded."""


PICTURE = {"type": "string", "format": "picture", "pattern": sources.PICTURE_PATTERN}
"""The schema of a picture in a request."""


def checked_request(data: Any, limits: Limits) -> Request:
    """A request with its pictures still by name. Raises ApiError for the first thing wrong."""
    _check_object(data, TOP, "")
    references = data.get("references")
    if references is not None and not isinstance(references, list):
        raise bad_request("references: not a list", param="references")
    if len(references or ()) > limits.references:
        raise bad_request(f"references: more than {limits.references}", param="references")
    described = [
        checked_reference(reference, limits, f"references.{index}")
        for index, reference in enumerate(references or ())
    ]
    _check_sources(data, limits)
    plain = {name: value for name, value in data.items() if name != "references"}
    _check_types(plain, Request, "")
    request: Request = _build(
        Request, plain | {"references": described or [Reference(scale=0)]}, ""
    )
    _check(request, "", TOP)
    _check_cost(request, limits)
    return request


def checked_reference(data: Any, limits: Limits, place: str) -> Reference:
    """One reference. Raises ApiError."""
    _check_object(data, REFERENCE, place)
    _check_types(data, Reference, place)
    for name in sources.PICTURES:
        value = data.get(name)
        if isinstance(value, list) and len(value) > limits.references:
            raise bad_request(
                f"{name}: more than {limits.references} pictures", param=f"{place}.{name}"
            )
    reference: Reference = _build(Reference, data, place)
    _check(reference, place, REFERENCE)
    return reference


def pairs_apart(references: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checked references; a content and a style picture are one each, for their own adapters."""
    found: list[dict[str, Any]] = []
    for reference in references:
        plain = {name: value for name, value in reference.items() if name not in PARTS}
        style = reference.get("style")
        pictures = {"content": reference.get("content")}
        pictures |= {"style": style} if is_picture(style) else {}
        for part, picture in pictures.items():
            if picture is not None:
                adapter = part_of(plain.get("adapter") or bundled.PAIR, part)
                found.append({**plain, "reference": picture, "adapter": adapter})
        if "style" in pictures:
            continue
        if pictures["content"] is None:
            found.append(dict(reference))
        elif style is not None:  # of the library, with its own adapter
            found.append({**plain, "style": style, "adapter": None})
    return found


def schema(bases: Sequence[str], adapters: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a request: that of `Request` without what is not served."""
    found = copy.deepcopy(_schema())
    found["properties"]["base"]["enum"] = [*bases, None]
    found["$defs"]["Reference"]["properties"]["adapter"]["enum"] = [*adapters, None]
    return found


def body_schema() -> dict[str, Any]:
    """The same for OpenAPI, in one piece: its references cannot lead inside."""
    found = copy.deepcopy(_schema())
    found["properties"]["references"]["items"] = found.pop("$defs")["Reference"]
    return found


@cache
def _schema() -> dict[str, Any]:
    whole = json_schema(Request)
    _reduce(whole, TOP)
    reference = whole["$defs"]["Reference"]
    _reduce(reference, REFERENCE)
    for name in sources.START_PICTURES:
        whole["properties"][name] |= {"anyOf": [PICTURE, {"type": "null"}]}
    for name in sources.PICTURES:
        pictures = {"type": "array", "items": PICTURE}
        reference["properties"][name] |= {"anyOf": [PICTURE, pictures, {"type": "null"}]}
    tokens = {"type": "string", "format": "tokens", "pattern": sources.TOKENS_PATTERN}
    reference["properties"][sources.TOKENS] |= {"anyOf": [tokens, {"type": "null"}]}
    return whole


def _reduce(described: dict[str, Any], names: Sequence[str]) -> None:
    properties = described["properties"]
    described["properties"] = {name: properties[name] for name in names if name in properties}
    described["additionalProperties"] = False
    described.pop("description", None)


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _check_object(data: Any, names: Sequence[str], place: str) -> None:
    if not isinstance(data, dict):
        raise bad_request(f"{place or 'the request'}: not an object", param=place or None)
    for name in data:
        if name in names:
            continue
        shown = _join(place, name[:60])
        if name in NOT_SERVED:
            raise bad_request(
                f"{shown}: not a part of the API", param=shown, hint="The server chooses it."
            )
        near = difflib.get_close_matches(name[:60], names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "GET /api/v1/schema lists the fields."
        raise bad_request(f"{shown}: no such field", param=shown, hint=hint)


def _check_types(data: Mapping[str, Any], kind: type, place: str) -> None:
    """Hold values against the JSON types of fields that hold any object in Python."""
    for name, value in data.items():
        expected = _json_types(kind).get(name)
        if expected is not None and not _fits(value, expected):
            where = _join(place, name)
            raise bad_request(f"{where}: not of the right type", param=where, hint=_SCHEMA)


_SCHEMA = "GET /api/v1/schema tells the type of each field."


@cache
def _json_types(kind: type) -> Mapping[str, Mapping[str, Any]]:
    return {f.name: f.option.json for f in options(kind) if f.option.json is not None}


def _fits(value: Any, expected: Mapping[str, Any]) -> bool:
    """Is it of a type that the schema names? Ranges and words are checked later."""
    if "anyOf" in expected:
        return any(_fits(value, each) for each in expected["anyOf"])
    if isinstance(value, bool):
        return expected.get("type") == "boolean"
    kind = expected.get("type")
    if kind == "array":
        inside = expected.get("items", {})
        return isinstance(value, list) and all(_fits(each, inside) for each in value)
    return kind not in _JSON_TYPES or isinstance(value, _JSON_TYPES[kind])


_JSON_TYPES: Mapping[Any, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "object": dict,
    "null": type(None),
}


def _build(kind: type, data: Mapping[str, Any], place: str) -> Any:
    try:
        return validate(kind, data, what="")
    except ImagePromptError as error:
        name = re.split(r"[.:]", error.what.removeprefix(": "))[0]
        where = _join(place, name) or None
        raise bad_request(
            f"{where or 'the request'}: {error.reason.removeprefix('Value error, ')}",
            type="invalid_option",
            param=where,
        ) from error


def _check(described: Request | Reference, place: str, names: Sequence[str]) -> None:
    try:
        described.check()
    except ImagePromptError as error:
        name = param_of(error, names)
        where = _join(place, name) if name else place or None
        raise ApiError(400, problem_of(error, where)) from error


def _check_sources(data: Mapping[str, Any], limits: Limits) -> None:
    """Every picture has one of the forms of `sources`, whatever else it looks like."""
    count = 0
    for place, holder, key in sources.places(data):
        count += 1
        source, tokens = holder[key], sources.TOKENS in place
        kind = sources.kind_of(source) if isinstance(source, str) else None
        if kind is None or (kind == "tokens") != tokens:
            forms = "tokens:HASH/INDEX" if tokens else "part:NAME, upload:HASH or result:JOB/N"
            raise bad_request(
                f"{place}: not {forms}",
                param=place,
                hint="A request cannot name a path, a Hub id or a URL.",
            )
    if count > limits.sources:
        raise bad_request(f"{count} pictures and masks: more than {limits.sources}")


def _check_cost(request: Request, limits: Limits) -> None:
    for name, reason in _too_much(request, limits):
        raise bad_request(f"{name}: {reason}", type="invalid_option", param=name)


def _too_much(request: Request, limits: Limits) -> Iterator[tuple[str, str]]:
    if request.num_images > limits.num_images:
        yield "num_images", f"{request.num_images} is more than {limits.num_images}"
    if (request.steps or 0) > limits.steps:
        yield "steps", f"{request.steps} is more than {limits.steps}"
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name)) > limits.prompt_characters:
            yield name, f"more than {limits.prompt_characters} characters"
    if request.size is not None:
        width, height = request.size
        if max(width, height) > limits.side or width * height > limits.pixels:
            yield (
                "size",
                f"{width}x{height} is more than {limits.pixels} pixels, or {limits.side} on a side",
            )


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place and name else place or name
