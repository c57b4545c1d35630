"""Plug-ins by file: every module of a package that defines a certain constant is a member."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

from imageprompt.core.errors import OptionError


class Named(Protocol):
    """A plug-in: anything with a unique short name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """The members of a package, loaded on first use and sorted by name.

    Modules whose name starts with `_` are skipped: they are parts that members share.
    """

    def __init__(self, package: str, constant: str) -> None:
        self._package, self._constant = package, constant

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

    def reload(self) -> None:
        """Look at the files of the package again, for plug-ins that came or went."""
        for cached in ("_members", "_stems"):
            vars(self).pop(cached, None)

    def names(self) -> list[str]:
        """The names that the files of the package stand for; nothing is loaded."""
        return sorted(one.replace("_", "-") for one in self._stems if not one.startswith("_"))

    def get(self, name: str) -> T | None:
        """The member whose file has this name (`faceid-plus` is `faceid_plus.py`), or None.

        Loads that file only: most commands need one member, and some members import torch.
        """
        stem = name.replace("-", "_")
        if "_members" not in vars(self):
            if not stem.isidentifier() or stem.startswith("_") or stem not in self._stems:
                return None
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
