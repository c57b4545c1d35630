"""Plug-ins by file: every module of a package that defines a certain constant is a member.

A registry with a group also has what other packages offer as entry points of that group.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Named(Protocol):
    """A plug-in: anything with a unique short name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """The members of a package, loaded on first use and sorted by name.

    Modules whose name starts with `_` are skipped: they are parts that members share. `group` is
    that of other packages' entry points: one that cannot be loaded, or whose name is taken, is left
    out with a warning.
    """

    def __init__(self, package: str, constant: str, *, group: str = "") -> None:
        self._package, self._constant, self._group = package, constant, group

    @cached_property
    def _stems(self) -> frozenset[str]:
        """The names of the package's modules; nothing is loaded."""
        path = importlib.import_module(self._package).__path__
        stems = frozenset(info.name for info in pkgutil.iter_modules(path))
        if not stems:
            next(Path(path[0]).iterdir())  # raises the reason, which iter_modules does not
        return stems

    @cached_property
    def _members(self) -> dict[str, T]:
        return dict(sorted(((one.name, one) for one in self._load()), key=lambda pair: pair[0]))

    def _load(self) -> Iterator[T]:
        """The members in the order of their files; each file is loaded when its turn comes."""
        names = set()
        for stem in sorted(self._stems):
            if stem.startswith("_"):
                continue
            module = importlib.import_module(f"{self._package}.{stem}")
            if hasattr(module, self._constant):
                member = cast(T, getattr(module, self._constant))
                if member.name in names:
                    raise ValueError(f"two modules of {self._package} are named {member.name!r}")
                names.add(member.name)
                yield member
        for name, entry in self._offered.items():
            member_ = self._of_package(name, entry)
            if member_ is not None and member_.name not in names:
                names.add(member_.name)
                yield member_
            elif member_ is not None:
                warnings.warn(f"plug-in {entry.value}: the name {name!r} is taken", stacklevel=3)

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        """The entry points of other packages by name; nothing is loaded."""
        if not self._group:
            return {}
        from importlib.metadata import entry_points

        return {one.name: one for one in entry_points(group=self._group)}

    def _of_package(self, name: str, entry: EntryPoint) -> T | None:
        """The member behind an entry point; None, with a warning, where it has a fault."""
        try:
            member = cast(T, entry.load())
            if member.name != name:
                raise ValueError(f"it is named {member.name!r}")
        except Exception as error:  # of a package that is not ours
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"plug-in {entry.value} cannot be used ({reason})", stacklevel=3)
            return None
        return member

    def reload(self) -> None:
        """Look at the files of the package again, for plug-ins that came or went."""
        for cached in ("_members", "_stems", "_offered"):
            vars(self).pop(cached, None)

    def names(self) -> list[str]:
        """The names that files and entry points stand for; nothing is loaded."""
        stems = {one.replace("_", "-") for one in self._stems if not one.startswith("_")}
        return sorted(stems | set(self._offered))

    def get(self, name: str) -> T | None:
        """The member whose file has this name (`faceid-plus` is `faceid_plus.py`), or None.

        Loads that file only: most commands need one member, and some members import torch.
        """
        stem = name.replace("-", "_")
        if "_members" not in vars(self):
            if not stem.isidentifier() or stem.startswith("_") or stem not in self._stems:
                offered = self._offered.get(name)
                return None if offered is None else self._of_package(name, offered)
            module = importlib.import_module(f"{self._package}.{stem}")
            member = cast(T | None, getattr(module, self._constant, None))
            return member if member is not None and member.name == name else None
        return self._members.get(name)

    def __iter__(self) -> Iterator[T]:
        """The members by name. A search that ends early loads no files beyond its end."""
        if "_members" in vars(self):
            return iter(self._members.values())
        return self._load()

    def __getitem__(self, name: str) -> T:
        """The member of that name. Raises OptionError that suggests the nearest name."""
        member = self.get(name) if isinstance(name, str) else None
        if member is None and name in self._members:
            member = self._members[name]
        if member is not None:
            return member
        near = get_close_matches(str(name), self._members, n=1)
        raise OptionError(
            f"{self._constant.lower()} {name!r}",
            reason=f"not one of {', '.join(self._members)}",
            hint=f"Did you mean {near[0]!r}?" if near else "Choose one of these.",
        )
