"""What is asked for: the arguments of `generate`, checked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from imageprompt.core.errors import OptionError, PictureError, WrongBaseError
from imageprompt.generation.reference import NAMES, OF_A_RECIPE, Reference
from imageprompt.loading.recipe import Recipe, Source, check_size, checked


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `generate`; for a repetition also the recipe that it is held against."""

    prompt: str = ""
    base: Any = None
    seed: int = 1
    num_images: int = 1
    steps: int | None = None
    guidance_scale: float | None = None
    guidance: str | Sequence[str] = "auto"
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 4
    progress: bool = True
    init_image: Any = None
    strength: float | None = None
    inpaint_mask: Any = None
    controlnet: Any = None
    control_image: Any = None
    control_scale: float | None = None
    library: Any = None
    shown: tuple[Reference, ...] = (Reference(),)
    repeats: Recipe | None = None
    changed: frozenset[str] = frozenset()
    """What the user replaced in the recipe."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any], **more: Any) -> Request:
        """From the arguments of `generate`: those of `Reference` are the first one's.

        Raises OptionError, PictureError.
        """
        names = (*NAMES, *OF_A_RECIPE)
        first = Reference(**{name: arguments[name] for name in names if name in arguments})
        also = arguments.get("also") or ()
        also = (also,) if isinstance(also, Reference) else also
        rest = {name: value for name, value in arguments.items() if name in ARGUMENTS}
        return cls(**rest, shown=_each(first, also), **more)

    def check(self) -> None:
        """All that can be told before anything is loaded. Raises OptionError, ScaleError ..."""
        for name in ("prompt", "negative_prompt", "seed", "num_images", "batch_size"):
            checked(name, getattr(self, name))
        checked("guidance", self.layout)
        for name in ("steps", "guidance_scale", "dtype", "device", "strength", "control_scale"):
            if getattr(self, name) is not None:
                checked(name, getattr(self, name))
        if self.size is not None:
            check_size(*self.size)
        for needing, needed in _NEEDS:
            if getattr(self, needing) is not None and getattr(self, needed) is None:
                raise OptionError(
                    f"{_flag(needing)} without {_flag(needed)}",
                    reason="it has nothing to act on",
                    hint=f"Give {_flag(needed)} too, or leave it out.",
                )
        if not isinstance(self.library, str | os.PathLike | None):
            raise OptionError(f"library {self.library!r}", reason="it is the path of a folder")
        if self.strength == 0:
            raise OptionError("strength 0", reason="nothing of the picture would change")
        for reference in self.shown:
            reference.check()

    @property
    def layout(self) -> Any:
        """The guidance, as a recipe has it."""
        named = self.guidance
        return named if isinstance(named, str) or not isinstance(named, Sequence) else (*named,)

    @property
    def places(self) -> tuple[Reference, ...]:
        """What is shown, one entry for each place of its own."""
        shown = [reference for reference in self.shown if not reference.empty]
        return tuple(place for reference in shown for place in reference.places())

    @property
    def wanted(self) -> range:
        """Indices of the pictures to make; a plain repetition wants the recipe's own."""
        if self.repeats is None or self.changed & {"seed", "num_images"}:
            return range(self.num_images)
        return range(self.repeats.index, self.repeats.index + 1)

    def batches(self) -> Iterator[range]:
        """Indices of the pictures that are denoised side by side, wanted or not."""
        for start in range(0, self.num_images, self.batch_size):
            batch = range(start, min(start + self.batch_size, self.num_images))
            if set(batch) & set(self.wanted):
                yield batch

    def cached_only(self, name: str) -> bool:
        """Must the `name` ("base", "adapter") be here already? What a recipe alone names must."""
        return self.repeats is not None and name not in self.changed

    def must_be(self, name: str, was: Source | None, source: Source) -> None:
        """Is the ingredient what it was for the recipe? Raises WrongBaseError, OptionError."""
        if not self.cached_only(name) or was is None or was.hash == source.hash:
            return
        held, value = ("tokens", "NAME") if name == "style" else ("weights", "PATH_OR_HUB_ID")
        raise (WrongBaseError if name == "base" else OptionError)(
            f"{name} {source.name!r} of the recipe",
            reason=f"its {held} are not what they were",
            hint=f"Give the {name} to use: --{name} {value}.",
        )


_NEEDS = (
    ("strength", "init_image"),
    ("inpaint_mask", "init_image"),
    ("control_image", "controlnet"),
    ("controlnet", "control_image"),
    ("control_scale", "controlnet"),
)
ARGUMENTS = tuple(
    item.name for item in fields(Request) if item.name not in ("shown", "repeats", "changed")
)
"""Of `generate` itself; it takes those of `Reference` and `also` besides."""


def check_names(arguments: Mapping[str, Any]) -> None:
    """Raises OptionError for a name that `generate` has no use for."""
    known = [*ARGUMENTS, *NAMES, "also"]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise OptionError(
                f"option {name!r}",
                reason="generate() has no such argument",
                hint=f"Did you mean {near[0]}?" if near else "",
            )


def _each(first: Reference, also: Sequence[Reference]) -> tuple[Reference, ...]:
    wrong = [entry for entry in also if not isinstance(entry, Reference)]
    if wrong or not isinstance(also, list | tuple):
        raise OptionError(
            f"also={type(also).__name__}",
            reason="further references are a list of Reference",
            hint="Such as also=[ip.Reference(reference='b.jpg', scale=0.5)].",
        )
    if also and first.empty:
        raise PictureError(
            "--also without a first reference",
            reason="it adds to one",
            hint="Give the first one before: --reference PICTURE --also --reference PICTURE.",
        )
    if any(entry.empty for entry in also):
        raise PictureError(
            "--also without a reference",
            reason="it starts a further one",
            hint="Give --reference PICTURE or --style NAME after it.",
        )
    return (first, *also)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
