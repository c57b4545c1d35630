"""How a request names a picture: a part of its body, an upload, a result, or tokens in a PNG.

These are the only forms. A path, a Hub id or a URL has none of them, so no request can name one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from imageprompt.generation.reference import is_picture

PICTURES = ("reference", "content", "mask", "reference_mask", "negative_reference")
"""Fields of a reference that hold one picture or a list of them. `style` may hold some, too."""
START_PICTURES = ("init_image", "inpaint_mask")
TOKENS = "image_prompt"
WORKFLOW = "pictures"
"""The pictures of a workflow, by the names of its inputs."""

HASH = r"[0-9a-f]{64}"
JOB = r"[0-9a-f]{32}"
PART_NAME = r"[A-Za-z0-9_.\[\]-]{1,64}"
FORMS: Mapping[str, str] = {
    "part": f"part:{PART_NAME}",
    "upload": f"upload:{HASH}",
    "result": rf"result:{JOB}/\d{{1,4}}",
}
TOKENS_FORM = rf"tokens:{HASH}/\d{{1,2}}"
PICTURE_PATTERN = f"^({'|'.join(FORMS.values())})$"
TOKENS_PATTERN = f"^{TOKENS_FORM}$"


def kind_of(source: str) -> str | None:
    """ "part", "upload", "result" or "tokens"; None for anything else."""
    kind, _, _ = source.partition(":")
    form = TOKENS_FORM if kind == "tokens" else FORMS.get(kind, "(?!)")
    return kind if re.fullmatch(form, source, re.ASCII) else None


def upload_of(source: str) -> str:
    """The hash in `upload:HASH` or `tokens:HASH/INDEX`."""
    return source.partition(":")[2].partition("/")[0]


def places(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every picture and image prompt of a checked request: its place as `references.0.mask`, the
    object or list that holds it, and its key there."""
    for name in START_PICTURES:
        if data.get(name) is not None:
            yield name, data, name
    for name in data.get(WORKFLOW) or ():
        yield from _places_in(data[WORKFLOW], name, name)
    for index, reference in enumerate(data.get("references") or ()):
        style = ("style",) if is_picture(reference.get("style")) else ()
        for name in (*PICTURES, *style, TOKENS):
            yield from _places_in(reference, name, f"references.{index}.{name}")


def _places_in(holder: Any, name: str, place: str) -> Iterator[tuple[str, Any, Any]]:
    value = holder.get(name)
    if isinstance(value, list):
        for number in range(len(value)):
            yield f"{place}.{number}", value, number
    elif value is not None:
        yield place, holder, name


def replaced(data: MutableMapping[str, Any], change: Callable[[str, str], Any]) -> None:
    """Replace every source by `change(place, source)`, in place."""
    for place, holder, key in places(data):
        holder[key] = change(place, holder[key])


def uploads_in(data: Mapping[str, Any]) -> set[str]:
    """The hashes of the uploads that a stored request needs."""
    return {upload_of(holder[key]) for _, holder, key in places(data)}
