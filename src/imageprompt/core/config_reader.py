"""Reads a config from YAML and `key=value`, and says in one line what is wrong with it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Option, options
from imageprompt.core.yaml_file import MAX_DEPTH, MAX_WHOLE, brief, parse_yaml

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")

STRICT_KEYS = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's settings for the dataclasses of a config: no unknown key, no infinite number."""

# pydantic's error types by what the value must be
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "finite_number": "a number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
}

_COMPARED = 100  # characters of an unknown key
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")


@dataclass(frozen=True)
class Key(Option):
    """An Option whose value comes from YAML, which reads `1e-4` as text and `no` as false."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        inner = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(partial(_from_yaml, source), inner)


def apply_overrides(plain: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`plain` with each "key=value" or "key.inner=value" applied; values are parsed as YAML."""
    result = dict(plain)
    for override in overrides:
        name, sign, text = override.partition("=")
        if not sign or not name.strip():
            raise OptionError(
                f"--set {brief(override)}",
                reason="not of the form key=value",
                hint="Write it like --set learning_rate=1e-5.",
            )
        value = parse_yaml(text, f"--set {brief(override)}")
        *outer, last = name.strip().split(".", MAX_DEPTH)
        inner = result
        for key in outer:
            nested = inner.get(key)
            inner[key] = dict(nested) if isinstance(nested, Mapping) else {}
            inner = inner[key]
        inner[last] = value
    return result


def read_config(kind: type[T], plain: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """`plain` as an instance of `kind`, a dataclass whose fields are annotated with `Key`.

    `where` and `prefix` stand before a key in errors. Raises OptionError, which names the key that
    is wrong, and for an unknown key the nearest known one.
    """
    from pydantic import ValidationError

    required = _required(kind)
    provided = {
        name: value for name, value in plain.items() if value is not None or name not in required
    }
    try:
        found: T = _adapter(cast(Any, kind)).validate_python(provided)
        return found
    except ValidationError as error:
        raise _explain(error, kind, provided, where, prefix) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raises OptionError for the first number of a config (or a config in it) out of range."""
    for field in options(type(config)):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_ranges(value, f"{prefix}{field.name}.")
            continue
        try:
            field.option.check_range(value)
        except ValueError as error:
            raise bad_key(prefix + field.name, value, str(error)) from error


def bad_key(name: str, value: object, reason: str) -> OptionError:
    """The error for a key whose value cannot be used."""
    return OptionError(f"config key {name!r}: {brief(value)}", reason=reason, hint="Change it.")


def _from_yaml(hint: Any, value: Any) -> Any:
    """`value` without YAML's surprises. Raises ValueError for what pydantic would let pass."""
    choices = _choices(hint)
    if value is False and any(
        get_origin(one) is Literal and "no" in get_args(one) for one in choices
    ):
        return "no"
    numeric = int in choices or float in choices
    if numeric and isinstance(value, bool) and bool not in choices:
        raise ValueError(f"must be {'a number' if float in choices else 'a whole number'}")
    if numeric and isinstance(value, str) and str not in choices:
        value = _number(value)
    if numeric and isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ValueError("must be below 2^63")
    rows = next((get_args(one) for one in choices if get_origin(one) is tuple), None)
    if rows is not None and isinstance(value, list | tuple):
        if rows[-1] is not Ellipsis and len(value) != len(rows):
            raise ValueError(f"must be a list of {len(rows)}")
        return [_from_yaml(rows[0], item) for item in value]
    return value


def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _number(text: str) -> Any:
    """The number that `text` spells; `text` itself if it spells none."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < MAX_WHOLE else number


def _required(kind: type) -> set[str]:
    listed: Iterator[Field[Any]] = iter(fields(kind))
    return {one.name for one in listed if one.default is MISSING and one.default_factory is MISSING}


def _explain(
    error: ValidationError, kind: type, plain: Mapping[str, Any], where: str, prefix: str
) -> OptionError:
    """The first error of pydantic in the words of a config: unknown keys before all others."""
    errors = error.errors(include_url=False)
    unknown = [one for one in errors if one["type"] in _UNKNOWN]
    first = (unknown or errors)[0]
    path = _key_path(plain, first)
    what = f"{where}: key {brief(prefix + '.'.join(map(str, path)))}"
    if unknown:
        return _unknown_key(kind, path, what, prefix)
    if first["type"] == "missing":
        return OptionError(what, reason="missing", hint=f"Add a line `{path[-1]}: ...`.")
    # a union gives an error for each of its members
    reasons = [_expected(one) for one in errors if _key_path(plain, one) == path]
    value: Any = plain
    for part in path:
        value = value[part]
    reason = "must be " + " or ".join(dict.fromkeys(reasons))
    return OptionError(f"{what}: {brief(value)}", reason=reason, hint="Change it.")


def _unknown_key(kind: type, path: Sequence[Any], what: str, prefix: str) -> OptionError:
    for name in path[:-1]:
        kind = get_type_hints(kind)[name]
    names = [one.name for one in fields(kind)]
    outer = prefix + "".join(f"{name}." for name in path[:-1])
    near = get_close_matches(str(path[-1])[:_COMPARED], names, n=1)
    if near:
        hint = f"Did you mean {outer + near[0]!r}?"
    else:
        hint = f"Keys{' of ' + outer.rstrip('.') if outer else ''}: {', '.join(names)}."
    return OptionError(what, reason="unknown key", hint=hint)


def _key_path(plain: Mapping[str, Any], error: ErrorDetails) -> list[Any]:
    """The keys that lead to an error; the names of union members in its location are left out."""
    path: list[Any] = []
    value: Any = plain
    *outer, last = error["loc"]
    for part in outer:
        if isinstance(value, Mapping) and part in value:
            path.append(part)
            value = value[part]
    if error["type"] == "missing" or (isinstance(value, Mapping) and last in value):
        path.append(last)
    return path


def _expected(error: ErrorDetails) -> str:
    """What the value must be."""
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}".replace("'", "").replace(" or ", ", ")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]).removeprefix("must be ")
    return _EXPECTED.get(error["type"], error["msg"])
