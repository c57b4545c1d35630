"""Numbers as users have them: numpy scalars, and arrays or tensors that hold a single number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
