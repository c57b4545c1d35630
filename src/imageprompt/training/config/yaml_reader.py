"""Reads YAML and `key=value` into a frozen dataclass; unknown keys name the nearest known one."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from imageprompt.core.errors import NotFoundError, OptionError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a key that stands there twice is an error, not the last one."""
    import yaml

    path = path.expanduser()
    if not path.is_file():
        raise NotFoundError(
            f"config {str(path)!r}",
            reason="there is no such file",
            hint="Write one with `imageprompt train --example tiny-base > config.yaml`.",
        )
    try:
        text = path.read_text(encoding="utf-8")
        _check_repeated(yaml.compose(text, Loader=yaml.SafeLoader), path)
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(
            f"config {str(path)!r}",
            reason=f"it is no YAML ({' '.join(str(error).split())})",
            hint="Correct it there.",
        ) from error
    if not isinstance(plain, dict):
        raise OptionError(
            f"config {str(path)!r}", reason="it holds no keys", hint="Write `key: value` lines."
        )
    return plain


def _check_repeated(node: Any, path: Path) -> None:
    pairs = node.value if getattr(node, "id", "") == "mapping" else []
    seen: set[str] = set()
    for key, value in pairs:
        if key.value in seen:
            raise OptionError(
                f"config {str(path)!r}",
                reason=f"key {key.value!r} is there twice (line {key.start_mark.line + 1})",
                hint="Remove one of them.",
            )
        seen.add(key.value)
        _check_repeated(value, path)


def overridden(plain: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`plain` with "key=value" or "key.inner=value" changes; values are read as YAML."""
    import yaml

    result = dict(plain)
    for change in changes:
        name, sign, text = change.partition("=")
        if not sign or not name.strip():
            raise OptionError(
                f"--set {change!r}",
                reason="it is not of the form key=value",
                hint="Write it like --set learning_rate=1e-5.",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(
                f"--set {change!r}", reason="the value is no YAML", hint="Quote it."
            ) from error
        *outer, last = name.strip().split(".")
        inside = result
        for key in outer:
            within = inside.get(key)
            inside[key] = dict(within) if isinstance(within, Mapping) else {}
            inside = inside[key]
        inside[last] = value
    return result


def read_into(kind: type[T], plain: Mapping[str, Any], where: str, above: str = "") -> T:
    """An instance of a dataclass from plain values, each checked against its type."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for key in plain:
        if key not in names:
            near = get_close_matches(str(key), names, n=1)
            raise OptionError(
                f"{where}: key {above + str(key)!r}",
                reason="there is no such key",
                hint=f"Did you mean {above + near[0]!r}?"
                if near
                else f"Keys{' of ' + above.rstrip('.') if above else ''}: {', '.join(names)}.",
            )
    for one in fields(kind):  # type: ignore[arg-type]
        needed = one.default is MISSING and one.default_factory is MISSING
        if needed and plain.get(one.name) is None:
            raise OptionError(
                f"{where}: key {above + one.name!r}",
                reason="it is missing",
                hint=f"Add a line `{one.name}: ...`.",
            )
    values = {
        key: _fitted(value, hints[key], f"{where}: key {above + key!r}", above + key)
        for key, value in plain.items()
    }
    return kind(**values)


def _fitted(value: Any, hint: Any, what: str, key: str) -> Any:
    """`value` as `hint` wants it. Raises OptionError."""
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _misfit(what, value, "keys and values of its own")
        return read_into(hint, value, what.partition(": key ")[0], f"{key}.")
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        # YAML reads a bare `no` as false
        value = "no" if value is False and "no" in parts else value
        if value not in parts:
            raise _misfit(what, value, f"one of {', '.join(map(str, parts))}")
        return value
    if origin in (Union, types.UnionType):
        return _first_fit(value, parts, what, key)
    if origin is tuple:
        return _row(value, parts, what, key)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _misfit(what, value, "keys and values of its own")
        return dict(value)
    return _scalar(value, hint, what)


def _first_fit(value: Any, parts: Sequence[Any], what: str, key: str) -> Any:
    if value is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    for part in kinds:
        try:
            return _fitted(value, part, what, key)
        except OptionError:
            continue
    return _fitted(value, kinds[0], what, key)  # the words of the first kind's refusal


def _row(value: Any, parts: Sequence[Any], what: str, key: str) -> tuple[Any, ...]:
    endless = len(parts) == 2 and parts[1] is Ellipsis
    fits = isinstance(value, list | tuple) and (endless or len(value) == len(parts))
    if not fits:
        raise _misfit(what, value, "a list" if endless else f"a list of {len(parts)}")
    kinds = [parts[0]] * len(value) if endless else parts
    return tuple(_fitted(one, kind, what, key) for one, kind in zip(value, kinds, strict=True))


def _scalar(value: Any, kind: type, what: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool) and kind is not bool:
        raise _misfit(what, value, _WORDS[kind])
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and isinstance(value, int | float | str):
        try:
            number = float(value)  # YAML takes 1e-4 for a word
        except ValueError:
            number = float("nan")
        if kind is float and abs(number) != float("inf") and number == number:
            return number
        if kind is int and number.is_integer():
            return int(value) if isinstance(value, int) else int(number)
    raise _misfit(what, value, _WORDS[kind])


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "words",
}


def _misfit(what: str, value: object, rule: str) -> OptionError:
    return OptionError(f"{what}: {value!r}", reason=f"it has to be {rule}", hint="Change it.")
