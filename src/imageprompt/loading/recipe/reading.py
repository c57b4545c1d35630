"""From JSON that a stranger may have written to a Recipe; formats 1 and 2."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.loading.recipe.recipe import FORMAT, Recipe, Shown, Source

MAX_JSON_BYTES = 256_000

_FORMAT_1 = {"scale", "adapter", "encoder", "references"}
"""What format 1 said of the one adapter that it knew."""
_FILES = ("init_image", "inpaint_mask", "controlnet", "control_image")
_SINCE_2 = {"shown", "guidance", "strength", "control_scale", *_FILES}


def read_recipe(text: str, where: str) -> Recipe:
    """Raises OptionError naming `where` and the key."""
    try:
        return Recipe(**_arguments(text))
    except TypeError as error:  # a key is missing: the dataclass names it
        reason = str(error).removeprefix("Recipe.__init__() ")
        raise OptionError(f"recipe in {where}", reason=reason) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"recipe in {where}", reason=str(error) or "nested too deeply") from error
    except OptionError as error:
        raise OptionError(f"recipe in {where}: {error.what}", reason=error.reason) from error


def _arguments(text: str) -> dict[str, Any]:
    """JSON to the keyword arguments of Recipe. Raises ValueError."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES // 1000} kB")
    data: Any = json.loads(text, parse_constant=_no_constant)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    version = data.get("format")
    if isinstance(version, bool) or version not in (1, FORMAT):
        raise ValueError(f"format {version!r}; this version reads 1 and {FORMAT}")
    if version == 1:
        data = _from_format_1(data)
    _known(data, _names(Recipe))
    for name in ("base", *_FILES):
        if data.get(name) is not None:
            data[name] = _source(data[name], name)
    if isinstance(data.get("shown"), list):
        data["shown"] = tuple(map(_shown, data["shown"]))
    if isinstance(data.get("guidance"), list):
        data["guidance"] = tuple(data["guidance"])
    arguments: dict[str, Any] = data
    return arguments


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    _known(data, [name for name in _names(Recipe) if name not in _SINCE_2] + [*_FORMAT_1])
    if missing := sorted(_FORMAT_1 - data.keys()):
        raise ValueError(f"missing: {', '.join(missing)}")
    said = {name: data.pop(name) for name in _FORMAT_1}
    if said["adapter"] is None:
        shown = []
    else:
        said["controls"] = {"scale": said.pop("scale")}
        shown = [said]
    return data | {"format": FORMAT, "shown": shown}


def _shown(data: Any) -> Shown:
    if not isinstance(data, dict):
        raise ValueError("shown: not an object with an adapter")
    _known(data, _names(Shown), "shown: ")
    if isinstance(data.get("how"), dict) and "prepare" in data["how"]:  # its name before 0.2
        data["how"]["framing"] = data["how"].pop("prepare")
    for name, value in data.items():
        if isinstance(value, list):
            data[name] = tuple(_source(entry, name) for entry in value)
        elif value is not None and name not in ("controls", "how"):
            data[name] = _source(value, name)
    try:
        return Shown(**data)
    except TypeError as error:  # as above
        raise ValueError(f"shown: {str(error).removeprefix('Shown.__init__() ')}") from None


def _source(data: object, name: str) -> Source:
    if not isinstance(data, dict) or not {"name", "hash"} <= data.keys():
        raise ValueError(f"{name}: not an object with name and hash")
    _known(data, _names(Source), f"{name}: ")
    return Source(**data)


def _known(data: Mapping[str, Any], names: Sequence[str], where: str = "") -> None:
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            raise ValueError(
                f"{where}unknown key {key[:60]!r}" + (f", not {near[0]!r}" if near else "")
            )


def _names(of: type) -> list[str]:
    return [item.name for item in fields(of)]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number here")
