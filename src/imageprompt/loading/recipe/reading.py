"""From JSON that a stranger may have written to a Recipe; reads formats 1, 2 and 3."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import Budget, parse_json
from imageprompt.loading.recipe.recipe import FORMAT, Recipe, ReferenceMetadata, validate_recipe

MAX_JSON_BYTES = 256_000
MAX_DEPTH = 16  # of lists and objects; a scheduler's own numbers are the deepest, at 5


def read_recipe(text: str, where: str) -> Recipe:
    """The recipe in a JSON text. Raises OptionError that names `where` and the key."""
    try:
        return validate_recipe(_parse(text))
    except ValueError as error:
        raise OptionError(f"recipe in {where}", reason=str(error)) from error
    except OptionError as error:
        raise OptionError(f"recipe in {where}: {error.what}", reason=error.reason) from error


def _parse(text: str) -> dict[str, Any]:
    """JSON of any format to the data of format 3. Raises ValueError."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES // 1000} kB")
    data = parse_json(text, Budget(depth=MAX_DEPTH), unique=True)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    version = data.get("format")
    if isinstance(version, bool) or version not in (*_UPGRADES, FORMAT):
        raise ValueError(f"format {version!r:.60}; this version reads 1 to {FORMAT}")
    while version in _UPGRADES:
        data = _UPGRADES[version](data)
        version = data["format"]
    if isinstance(data.get("guidance"), list):
        data["guidance"] = tuple(data["guidance"])
    return dict(data)


# ── earlier formats ─────────────────────────────────────────────────────────────────────────────

_FILES = {"init_image", "inpaint_mask", "controlnet", "control_image"}
_KEYS_2 = {*(item.name for item in fields(Recipe)), "shown"} - {"references"}
_ADDED_IN_2 = {"shown", "guidance", "strength", "control_scale", *_FILES}
_ONLY_IN_1 = {"scale", "adapter", "encoder", "references"}
"""What format 1 said of its only adapter."""
_KEYS_1 = _KEYS_2 - _ADDED_IN_2 | _ONLY_IN_1

_RENAMED_IN_3: Mapping[str, str] = {
    "references": "pictures",
    "embeddings": "face_embeddings",
    "negative": "negative_reference",
    "how": "encode_options",
}
"""Key of an entry of `shown` in format 2 -> of an entry of `references` in format 3."""
_ENTRY_KEYS_2 = {item.name for item in fields(ReferenceMetadata)} - {
    *_RENAMED_IN_3.values(),
    "lora_mode",
} | _RENAMED_IN_3.keys()


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """One adapter with one scale."""
    _check_keys(data, _KEYS_1)
    if missing := sorted(_ONLY_IN_1 - data.keys()):
        raise ValueError(f"missing: {', '.join(missing)}")
    entry = {name: data.pop(name) for name in _ONLY_IN_1}
    if entry["adapter"] is None:
        shown = []
    else:
        entry["controls"] = {"scale": entry.pop("scale")}
        shown = [entry]
    return data | {"format": 2, "shown": shown}


def _from_format_2(data: dict[str, Any]) -> dict[str, Any]:
    """Other names of keys; `prepare` was the name of `framing` before 0.2."""
    _check_keys(data, _KEYS_2)
    if "shown" not in data:
        raise ValueError("missing: shown")
    entries = data.pop("shown")
    if not isinstance(entries, list):
        raise ValueError("shown: not a list")
    references = [_entry_from_format_2(entry) for entry in entries]
    return data | {"format": 3, "references": references}


def _entry_from_format_2(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("shown: not an object with an adapter")
    _check_keys(entry, _ENTRY_KEYS_2, "shown: ")
    if "references" not in entry:
        raise ValueError("shown: missing: references")
    read: dict[str, Any] = {_RENAMED_IN_3.get(key, key): entry[key] for key in entry}
    options = read.get("encode_options")
    if isinstance(options, dict):
        if "prepare" in options:
            options["framing"] = options.pop("prepare")
        if "lora_mode" in options:
            read["lora_mode"] = options.pop("lora_mode")
    return read


def _check_keys(data: Mapping[str, Any], known: set[str], where: str = "") -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}unknown key {key[:60]!r}{hint}")


_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_format_1,
    2: _from_format_2,
}
