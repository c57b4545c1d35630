"""Plug-ins by file: every module of a package that ends in one named constant is a member."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from typing import Generic, Protocol, TypeVar, cast

from imageprompt.core.errors import OptionError


class Named(Protocol):
    """What a plug-in must have: a unique short name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """The members of a package, found on first use, in order of their names.

    Modules whose name starts with `_` are parts of members and not looked at.
    """

    def __init__(self, package: str, constant: str) -> None:
        self._package, self._constant = package, constant

    @cached_property
    def _members(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for info in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
            if info.name.startswith("_"):
                continue
            module = importlib.import_module(f"{self._package}.{info.name}")
            if hasattr(module, self._constant):
                member = cast(T, getattr(module, self._constant))
                if member.name in found:
                    raise ValueError(
                        f"two modules of {self._package} call themselves {member.name}"
                    )
                found[member.name] = member
        return dict(sorted(found.items()))

    def __iter__(self) -> Iterator[T]:
        return iter(self._members.values())

    def __getitem__(self, name: str) -> T:
        """The member of that name; OptionError names the nearest one."""
        if name in self._members:
            return self._members[name]
        kind = self._constant.lower()
        near = get_close_matches(str(name), self._members, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(
            f"{kind} {name!r}",
            reason=f"not one of {', '.join(self._members)}",
            hint=f"Choose one of these.{hint}",
        )
