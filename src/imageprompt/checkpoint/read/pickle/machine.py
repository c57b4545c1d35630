"""A pickle's structure without Python's unpickler: nothing is imported, nothing is called.

Names of classes and functions go to `find`, which returns a `Global` of ours or raises; applying
one runs its `make`, which is our own code, or leaves an `Opaque` record of the call. Work and
memory are bounded by the length of the pickle and the items of a budget: one for each operation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from imageprompt.core.untrusted import Budget

MAX_PICKLE = 32 * 2**20  # bytes; the structure of a checkpoint takes about 200 per tensor
_MAX_KEY = 2**60  # smaller integers are their own hash
MAX_ARGUMENTS = 16  # of a call: a memoised tuple may be applied a million times
MAX_GLOBAL = 512  # characters of a class's name: a memoised text may be joined a million times


class PickleError(Exception):
    """Why a pickle is not read; `hint` says what to do."""

    hint = "Save the tensors alone, by name."


class PickleRefused(PickleError):
    """The pickle does what no pickle of weights does."""

    hint = "Nothing in it was run. Do not open it elsewhere: it may run code of its own."


class PickleDamaged(PickleError):
    """The pickle makes no sense."""

    hint = "Download it again."


class PickleCut(PickleDamaged):
    """The data ends before the pickle does."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function named in a pickle; `make` builds our substitute for what it returns."""

    name: str
    make: Callable[..., Any] | None = None


@dataclass(slots=True, eq=False)
class Opaque:
    """A value of a class that is not needed: its name, arguments and state, no live object."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass
class PickleMachine:
    """Runs the pickle that starts at `position` of `data`; afterwards `position` is its end."""

    data: bytes
    find: Callable[[str, str], Global]
    load: Callable[[Any], Any]
    budget: Budget
    position: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """The pickled value. Raises PickleError, or what `find` and `load` raise."""
        data, end = self.data, len(self.data)
        limit, done = self.budget.items_left, 0
        try:
            for done in range(1, limit + 1):  # noqa: B007 - counted below
                if self.position >= end:
                    raise PickleCut("the pickle is cut off")
                code = data[self.position]
                self.position += 1
                if code == 0x2E:  # STOP
                    return self.stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise PickleRefused(
                        f"the pickle uses opcode 0x{code:02x}, which no weights need"
                    )
                operation(self)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error):
            raise PickleDamaged("the pickle is damaged") from None
        finally:
            self.budget.add(done)
        raise PickleRefused(f"its pickles take more than {self.budget.items} operations")

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    def take(self, count: int) -> bytes:
        start = self.position
        self.position = end = start + count
        if end > len(self.data):
            raise PickleCut("the pickle is cut off")
        return self.data[start:end]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, width: int) -> str:
        return self.take(self.number(width)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleCut("the pickle is cut off")
        taken = self.take(end - self.position + 1)
        return taken[:-1].decode("utf-8", "replace")

    # ── building ────────────────────────────────────────────────────────────────────────────────

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Opaque):  # such as a deque: not needed
            raise TypeError

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(pairs(items))
        elif not isinstance(self.stack[-1], Opaque):
            raise TypeError

    def find_global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        if len(module) + len(name) > MAX_GLOBAL:
            raise PickleRefused(f"the pickle asks for {module[:60]}..., a name without end")
        return self.find(module, name)

    def apply(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise TypeError  # only what `find` returned is ever applied
        if len(args) > MAX_ARGUMENTS:
            raise PickleRefused(f"{function.name[:80]} in the pickle gets {len(args)} arguments")
        made = Opaque(function.name, args) if function.make is None else function.make(*args)
        self.push(made)

    def reduce(self) -> None:
        args = self.stack.pop()
        self.apply(self.stack.pop(), args)

    def new_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def instance(self) -> None:
        function = self.find_global(self.line(), self.line())
        self.apply(function, tuple(self.since_mark()))

    def object(self) -> None:
        function, *args = self.since_mark()
        self.apply(function, tuple(args))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Opaque):
            self.stack[-1].state = state  # dicts and tensors need no state

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.find_global(module, name))

    def memoize(self, index: int) -> None:
        if not 0 <= index < _MAX_KEY:
            raise ValueError
        self.memo[index] = self.stack[-1]


def pairs(items: list[Any]) -> dict[Any, Any]:
    """[key, value, key, value ...] as a dict; keys that could be costly to hash are replaced."""
    if len(items) % 2:
        raise ValueError
    return {key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}


def key(value: Any) -> Any:
    """The key itself if it is cheap to hash, else a substitute that equals nothing but itself.

    Tuples can be nested so deeply that hashing never ends, and large numbers can be chosen to share
    one hash, which makes a dict quadratic.
    """
    if isinstance(value, tuple) or (isinstance(value, int) and abs(value) >= _MAX_KEY):
        return Opaque(type(value).__name__)
    if value is None or isinstance(value, str | bytes | int | float | Opaque | Global):
        return value
    raise TypeError


def _operations() -> dict[int, Callable[[PickleMachine], Any]]:
    table: dict[bytes, Callable[[PickleMachine], Any]] = {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME: the data is in memory anyway
        # values
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"K": lambda m: m.push(m.number(1)),
        b"M": lambda m: m.push(m.number(2)),
        b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
        b"I": lambda m: m.push(int(m.line())),
        b"L": lambda m: m.push(int(m.line().removesuffix("L"))),
        b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
        b"F": lambda m: m.push(float(m.line())),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        b"X": lambda m: m.push(m.text(4)),
        b"\x8c": lambda m: m.push(m.text(1)),
        b"\x8d": lambda m: m.push(m.text(8)),
        b"V": lambda m: m.push(m.line()),
        b"S": lambda m: m.push(m.line().strip("'\"")),
        b"T": lambda m: m.push(m.text(4)),
        b"U": lambda m: m.push(m.text(1)),
        b"B": lambda m: m.push(m.take(m.number(4))),
        b"C": lambda m: m.push(m.take(m.number(1))),
        b"\x8e": lambda m: m.push(m.take(m.number(8))),
        # containers
        b"(": lambda m: m.mark(),
        b"0": lambda m: m.stack.pop() if m.stack else m.since_mark(),
        b"1": lambda m: m.since_mark(),
        b"2": lambda m: m.push(m.stack[-1]),
        b")": lambda m: m.push(()),
        b"t": lambda m: m.push(tuple(m.since_mark())),
        b"\x85": lambda m: m.tuple_of(1),
        b"\x86": lambda m: m.tuple_of(2),
        b"\x87": lambda m: m.tuple_of(3),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.since_mark()),
        b"a": lambda m: m.extend([m.stack.pop()]),
        b"e": lambda m: m.extend(m.since_mark()),
        b"}": lambda m: m.push({}),
        b"d": lambda m: m.push(pairs(m.since_mark())),
        b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        b"u": lambda m: m.set_items(m.since_mark()),
        b"\x8f": lambda m: m.push([]),  # a set: its order and uniqueness do not matter here
        b"\x90": lambda m: m.extend(m.since_mark()),
        b"\x91": lambda m: m.push(m.since_mark()),
        # memory
        b"p": lambda m: m.memoize(int(m.line())),
        b"q": lambda m: m.memoize(m.number(1)),
        b"r": lambda m: m.memoize(m.number(4)),
        b"\x94": lambda m: m.memoize(len(m.memo)),
        b"g": lambda m: m.push(m.memo[int(m.line())]),
        b"h": lambda m: m.push(m.memo[m.number(1)]),
        b"j": lambda m: m.push(m.memo[m.number(4)]),
        # classes, functions and storages
        b"c": lambda m: m.push(m.find_global(m.line(), m.line())),
        b"\x93": lambda m: m.stack_global(),
        b"R": lambda m: m.reduce(),
        b"\x81": lambda m: m.reduce(),  # NEWOBJ: class and arguments, as a call
        b"\x92": lambda m: m.new_with_keywords(),
        b"i": lambda m: m.instance(),
        b"o": lambda m: m.object(),
        b"b": lambda m: m.build(),
        b"P": lambda m: m.push(m.load(m.line())),
        b"Q": lambda m: m.push(m.load(m.stack.pop())),
    }
    return {opcode[0]: operation for opcode, operation in table.items()}


_OPERATIONS = _operations()
