"""YAML of a config, within limits: text, numbers, lists and mappings, and nothing that runs."""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from imageprompt.core.errors import NotFoundError, OptionError, shortened
from imageprompt.core.untrusted import Budget, LimitError, read_regular

MAX_BYTES = 2**18
"""Of a config; the longest examples have 3,000."""
MAX_NODES = 10_000
"""Values of a config. An alias counts as all that it stands for."""
MAX_DEPTH = 16
MAX_DIGITS = 40
"""Characters of a number."""
MAX_WHOLE = 2**63 - 1
_SHOWN = 300  # characters of a reason
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
# a date or a `=` is text here
_UNREAD = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_HALF = re.compile("[\ud800-\udfff]")
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _UNREAD]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, hint: str) -> dict[str, Any]:
    """The mapping in a YAML file; `hint` is how to get one.

    Raises NotFoundError, OptionError (also for a repeated key).
    """
    what = f"config {str(path)!r}"
    try:
        text = read_regular(expand_user(path, what), MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(what, reason="there is no such file", hint=hint) from None
    except UnicodeDecodeError as error:
        raise OptionError(
            what, reason=f"not UTF-8 text (byte {error.start})", hint="Save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            what, reason=f"cannot be read ({reason})", hint="Give a file of YAML."
        ) from error
    plain = parse_yaml(text, what)
    if not isinstance(plain, dict):
        raise OptionError(what, reason="contains no keys", hint="Write `key: value` lines.")
    return plain


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; `what` names it in errors. Raises OptionError."""
    budget = Budget(nbytes=MAX_BYTES, items=MAX_NODES, depth=MAX_DEPTH)
    reason = ""
    try:
        budget.read(len(text))
        return _Loader(text, budget).get_single_data()
    except LimitError as error:
        reason = f"too large for a config ({error})"
    except (yaml.YAMLError, ValueError) as error:
        reason = f"not valid YAML ({shortened(' '.join(str(error).split()), _SHOWN)})"
    raise OptionError(what, reason=reason, hint="Correct it.")


class _Loader(yaml.SafeLoader):
    """Counts values before it makes them; no tags, no keys but text, no alias of itself."""

    def __init__(self, text: str, budget: Budget) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = _RESOLVERS
        self._budget, self._depth = budget, 0
        self._sizes: dict[str, int] = {}  # values in each anchored one that is complete

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, parent, index)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ValueError(f"the tag {reprlib.repr(tag)} (line {_line(event)}); quote text")
        before = self._budget.items_left
        self._budget.add()
        self._budget.check_depth(self._depth)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        elif node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise LimitError(f"a number of {len(node.value)} characters, line {_line(node)}")
        elif isinstance(node, yaml.ScalarNode) and _HALF.search(node.value):
            raise ValueError(f"half a character (a lone surrogate) in line {_line(node)}")
        if event.anchor is not None:
            self._sizes[event.anchor] = before - self._budget.items_left
        return node

    def _alias(self, anchor: Any, parent: Any, index: Any) -> Any:
        if anchor in self.anchors and anchor not in self._sizes:
            raise ValueError(f"the alias {reprlib.repr(anchor)} contains itself")
        self._budget.add(self._sizes.get(anchor, 1))
        return super().compose_node(parent, index)


def _check_keys(node: yaml.MappingNode) -> None:
    """Keys are text, each once: YAML itself would silently take the last value."""
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in (_TEXT, _MERGE):
            shown = reprlib.repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list"
            raise ValueError(f"the key {shown} is not text (line {_line(key)}); quote it")
        if key.value in seen:
            raise ValueError(f"key {brief(key.value)} appears twice (line {_line(key)})")
        seen.add(key.value)


def _line(part: Any) -> int:
    return int(part.start_mark.line) + 1


# ── values of a config in messages and paths ────────────────────────────────────────────────────


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlevel = 4

    def repr_int(self, value: int, level: int) -> str:
        bits = value.bit_length()
        return repr(value) if bits < 256 else f"a number of {bits} bits"


def brief(value: object) -> str:
    """`value` as Python writes it, without the middle of what is long."""
    return _BRIEF.repr(value)


_BRIEF = _Brief()


def expand_user(path: str | os.PathLike[str], what: str) -> Path:
    """`path` with `~` replaced. Raises OptionError for a user that does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(
            what, reason=f"cannot be found ({error})", hint="Write the whole path."
        ) from error
