"""Options as data: one annotation gives argparse its flag and pydantic its JSON schema.

Requests, recipes and training configs are plain dataclasses whose fields are annotated:

    scale: Annotated[float, Option("0..2", metavar="S", ge=0, le=2)] = 0.8

`options` reads the annotations for the command line without importing pydantic; `json_schema` and
`validate` import it when they are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from inspect import get_annotations
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """The help text of one field, and the range of its value.

    `parse` turns the text of a flag into a value (default: by the field's type). `repeat` allows
    the flag several times. `flag` is its name if that differs from the field's. `group` is its
    heading in the help. `json` is the field's JSON schema where the Python type is wider (a
    picture is a path in JSON, but may be an object in Python): pydantic then accepts any value,
    and the options class checks it.
    """

    help: str
    metavar: str | None = None
    ge: float | None = None
    le: float | None = None
    parse: Callable[[str], Any] | None = None
    repeat: bool = False
    flag: str | None = None
    group: str | None = None
    json: Mapping[str, Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        inner = handler(source) if self.json is None else core_schema.any_schema()
        if self.ge is None and self.le is None:
            return inner
        return core_schema.no_info_after_validator_function(self.check_range, inner)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        described = dict(handler(schema) if self.json is None else self.json)
        described["description"] = self.help
        if self.ge is not None:
            described["minimum"] = self.ge
        if self.le is not None:
            described["maximum"] = self.le
        return described

    def check_range(self, value: Any) -> Any:
        """Return `value` unchanged. Raises ValueError for a number out of range."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = self.ge, self.le
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise ValueError(f"must be {_range(low, high)}")
        return value


class _PythonOnly:
    """See PYTHON_ONLY."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        from pydantic_core import PydanticOmit

        raise PydanticOmit


PYTHON_ONLY = _PythonOnly()
"""Annotates a field that JSON and the command line cannot give, such as a loaded object."""


@dataclass(frozen=True)
class Field:
    """A field of an options class as the command line needs it."""

    name: str
    type: Any
    option: Option
    default: Any
    """MISSING where the field has to be given."""

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def flag(self) -> str:
        return self.option.flag or f"--{self.name.replace('_', '-')}"


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Field name -> type of every annotated field, `Annotated` included.

    Other fields may name types that are imported for type checking only; they are not evaluated.
    """
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        namespace = vars(sys.modules[base.__module__])
        for name, hint in get_annotations(base).items():
            found[name] = _evaluated(hint, namespace) if isinstance(hint, str) else hint
    return found


def _evaluated(hint: str, namespace: Mapping[str, Any]) -> Any:
    """The type that an annotation writes as `Annotated[...]` or names; else the text itself."""
    if hint.startswith("Annotated["):
        return eval(hint, dict(namespace), {"Annotated": Annotated})
    found: Any = SimpleNamespace(**namespace)
    for name in hint.split("."):
        found = getattr(found, name, None)
    return found if get_origin(found) is Annotated else hint


def options(kind: type) -> Iterator[Field]:
    """The annotated fields of a dataclass, in order."""
    hints = _hints(kind)
    for item in fields(kind):
        hint = hints[item.name]
        if get_origin(hint) is not Annotated:
            continue
        inner, *extras = get_args(hint)
        found = next((extra for extra in extras if isinstance(extra, Option)), None)
        if found is not None:
            default = item.default
            if default is MISSING and item.default_factory is not MISSING:
                default = item.default_factory()
            yield Field(item.name, inner, found, default)


def field_type(kind: type, name: str) -> Any:
    """The type of one field, without its annotation and without `| None`."""
    return without_none(get_type_hints(kind)[name])


def without_none(hint: Any) -> Any:
    """`X` for `X | None`; any other type as it is."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = [member for member in get_args(hint) if member is not NoneType]
    return members[0] if len(members) == 1 else hint


@cache
def type_adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of a type, built once."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a dataclass."""
    return type_adapter(kind).json_schema()


def validate(kind: type[T], data: Any, *, what: str) -> T:
    """`data` (a mapping, as JSON or YAML gives it) as an instance of `kind`.

    Raises OptionError that names `what` and the first wrong key.
    """
    from pydantic import ValidationError

    try:
        found: T = type_adapter(cast(Any, kind)).validate_python(data)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise OptionError(f"{what}: {key}" if key else what, reason=first["msg"]) from error


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"


# ── numbers of other libraries ────────────────────────────────────────────────────────────


def plain_number(value: Any) -> Any:
    """A numpy scalar, or an array or tensor with one element, as a Python number; else `value`."""
    item, shape = getattr(value, "item", None), getattr(value, "shape", None)
    if shape is None or not callable(item) or any(side != 1 for side in shape):
        return value
    return item()


def plain_numbers(value: Any) -> Any:
    """`plain_number` for a value and for what lists, tuples and mappings hold."""
    if isinstance(value, Mapping):
        return {plain_number(key): plain_numbers(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    return plain_number(value)
