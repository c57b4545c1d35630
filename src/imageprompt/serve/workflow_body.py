"""The JSON that asks for a workflow, held against the dataclass of its inputs.

Inputs that name files, folders or models of the server are not part of the API.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from imageprompt.core.errors import ImagePromptError
from imageprompt.core.schema import without_none
from imageprompt.generation.option_values import FILE, FILES, NUMBERS
from imageprompt.serve import sources
from imageprompt.serve.errors import ApiError, Problem, bad_request, not_found, problem_of
from imageprompt.serve.settings import Limits

if TYPE_CHECKING:
    from imageprompt.core.schema import Field
    from imageprompt.workflows import Workflow

PICTURES_OF_ONE = 12
"""Pictures that a workflow samples for each that is asked for: a guess, for the queue."""
NOT_SERVED = ("base", "adapter", "encoder", "dtype", "device", "calibrate")
"""Inputs that are the operator's to choose, or that write to the library."""
_NAMES = ("order",)
"""Inputs that may be any object in Python, and are words here."""
_REFUSED = Problem(
    "invalid_option",
    "this workflow reads files or folders, which no request can name",
    None,
    "Run it by command: imageprompt workflow run.",
)


def find(name: str) -> Workflow:
    """A workflow by its name. Raises ApiError, a 404 for none, a 400 for one that is not served."""
    from imageprompt.workflows import WORKFLOWS

    workflow = WORKFLOWS.get(name)
    if workflow is None:
        raise not_found(f"workflow {name:.60}")
    if not is_served(workflow):
        raise ApiError(400, _REFUSED)
    return workflow


def is_served(workflow: Workflow) -> bool:
    """Can a request give all that it needs?"""
    served = [one.name for one in served_fields(workflow)]
    return "seed" in served and all(one.name in served for one in workflow.fields() if one.required)


def served_fields(workflow: Workflow) -> Iterator[Field]:
    """Its inputs that a request can have."""
    for one in workflow.fields():
        if one.name in NOT_SERVED:
            continue
        if is_picture(one) or one.name in _NAMES or one.option.json not in (FILE, FILES):
            yield one


def is_picture(one: Field) -> bool:
    """Is this input one picture or several?"""
    from imageprompt.workflows.inputs import PICTURES

    return one.option.group == PICTURES and one.option.metavar == "PIC"


def described(workflow: Workflow) -> dict[str, Any]:
    """As `workflow list --json` has it; its inputs are those of the API, with their kind."""
    found = workflow.as_dict()
    by_name = {one.name: one for one in served_fields(workflow)}
    found["served"] = is_served(workflow)
    found["inputs"] = [
        {**one, **_kind(by_name[one["name"]])} for one in found["inputs"] if one["name"] in by_name
    ]
    return found


def _kind(one: Field) -> dict[str, Any]:
    """What a form shows for it: `kind`, and the words that a choice has."""
    if is_picture(one):
        return {"kind": "pictures" if one.option.repeat else "picture"}
    hint = without_none(one.type)
    if get_origin(hint) is Literal:
        return {"kind": "choice", "choices": list(get_args(hint))}
    if hint in _KINDS:
        return {"kind": _KINDS[hint]}
    numbers = one.option.json == NUMBERS or get_origin(hint) is tuple
    return {"kind": "numbers" if numbers else "text"}


_KINDS: Mapping[Any, str] = {bool: "switch", int: "number", float: "number"}


def checked(name: str, data: Any, limits: Limits) -> dict[str, Any]:
    """What is stored: the workflow, its plain inputs, and its pictures by the names of inputs.

    Raises ApiError for the first thing wrong.
    """
    workflow = find(name)
    fields = {one.name: one for one in served_fields(workflow)}
    if not isinstance(data, dict):
        raise bad_request("the request: not an object")
    for key in data:
        if key not in fields:
            raise _unknown(key[:60], workflow, list(fields))
    given = {key: value for key, value in data.items() if value is not None}
    pictures = {key: value for key, value in given.items() if is_picture(fields[key])}
    inputs = {key: value for key, value in given.items() if key not in pictures}
    _check_pictures(pictures, fields, limits)
    for key in _NAMES:
        if not isinstance(inputs.get(key, ""), str | list):
            raise bad_request(f"{key}: not of the right type", param=key)
    check_inputs(workflow, {**inputs, **pictures}, limits)
    return {"workflow": workflow.name, "inputs": inputs, "pictures": pictures}


def check_inputs(workflow: Workflow, given: Mapping[str, Any], limits: Limits) -> Any:
    """An instance of the workflow's inputs. Raises ApiError."""
    try:
        inputs = workflow.check(given)
    except ImagePromptError as error:
        named = [one.name for one in workflow.fields() if one.name in error.what.split(".")[0]]
        missing = [one.name for one in workflow.fields() if one.flag in error.what.split()]
        raise ApiError(400, problem_of(error, next(iter([*missing, *named]), None))) from error
    for name, most in (("steps", limits.steps), ("num_images", limits.num_images)):
        if (value := getattr(inputs, name, None)) is not None and value > most:
            raise bad_request(
                f"{name}: {value} is more than {most}", type="invalid_option", param=name
            )
    _check_count(workflow, inputs, limits)
    for one in workflow.fields():
        value = getattr(inputs, one.name)
        if isinstance(value, str) and len(value) > limits.prompt_characters:
            raise bad_request(
                f"{one.name}: more than {limits.prompt_characters} characters",
                type="invalid_option",
                param=one.name,
            )
    size = getattr(inputs, "size", None)
    if size is not None and (max(size) > limits.side or size[0] * size[1] > limits.pixels):
        raise bad_request(
            f"size: {size[0]}x{size[1]} is more than {limits.pixels} pixels, or {limits.side} on "
            "a side",
            type="invalid_option",
            param="size",
        )
    return inputs


def _check_count(workflow: Workflow, inputs: Any, limits: Limits) -> None:
    """Seeds times the values of each list of numbers. Raises ApiError."""
    count = getattr(inputs, "num_images", 1)
    for one in workflow.fields():
        value = getattr(inputs, one.name)
        if one.option.json == NUMBERS and isinstance(value, list | tuple):
            count *= len(value)
            if count > limits.workflow_pictures:
                raise bad_request(
                    f"{one.name}: {count} pictures are more than {limits.workflow_pictures}",
                    type="invalid_option",
                    param=one.name,
                )


def _check_pictures(
    pictures: Mapping[str, Any], fields: Mapping[str, Field], limits: Limits
) -> None:
    for name, value in pictures.items():
        several = isinstance(value, list)
        if several and not fields[name].option.repeat:
            raise bad_request(f"{name}: one picture is expected", param=name)
        found = value if several else [value]
        if not 1 <= len(found) <= limits.references:
            raise bad_request(f"{name}: not 1 to {limits.references} pictures", param=name)
        for one in found:
            kind = sources.kind_of(one) if isinstance(one, str) else None
            if kind is None or kind == "tokens":
                raise bad_request(
                    f"{name}: not part:NAME, upload:HASH or result:JOB/N",
                    param=name,
                    hint="A request cannot name a path, a Hub id or a URL.",
                )


def _unknown(name: str, workflow: Workflow, names: list[str]) -> ApiError:
    if name in (one.name for one in workflow.fields()):
        hint = "The server chooses it."
        return bad_request(f"{name}: not a part of the API", param=name, hint=hint)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Inputs: {', '.join(names)}."
    return bad_request(f"{name}: no such input", param=name, hint=hint)
