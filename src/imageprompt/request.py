"""What is asked for: the arguments of `generate`, checked, or taken from a recipe with changes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.controls import Scale, site_scales
from imageprompt.errors import OptionError, PictureError, WrongBaseError
from imageprompt.recipe import Recipe, Source, check_size, checked
from imageprompt.version import __version__

if TYPE_CHECKING:
    from imageprompt.encoders.pictures import PictureSource


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `generate`; for a repetition also the recipe that it is held against."""

    prompt: str
    references: Sequence[PictureSource]
    base: Any
    adapter: Any
    encoder: Any
    scale: Scale
    seed: int
    num_images: int
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str
    size: tuple[int, int] | None
    dtype: str | None
    device: str | None
    image_prompt: Any
    batch_size: int
    progress: bool
    repeats: Recipe | None = None
    changed: frozenset[str] = frozenset()
    """What the user replaced in the recipe."""

    def check(self) -> None:
        """All that can be told before anything is loaded. Raises OptionError, ScaleError ..."""
        for name in ("prompt", "negative_prompt", "seed", "num_images", "batch_size"):
            checked(name, getattr(self, name))
        for name in ("steps", "guidance_scale", "dtype", "device"):
            if getattr(self, name) is not None:
                checked(name, getattr(self, name))
        if not isinstance(self.scale, Mapping):
            site_scales(self.scale, ())
        if self.size is not None:
            check_size(*self.size)
        if self.references and self.image_prompt is not None:
            raise OptionError(
                "references and an image prompt",
                rule="the one takes the place of the other",
                remedy="Give either of them.",
            )
        if self.scale != 0 and not self.references and self.image_prompt is None:
            raise PictureError(
                "no reference picture",
                rule="without one there is nothing to show to the base",
                remedy="Give --reference PICTURE (reference= in Python), or scale 0: words alone.",
            )

    @property
    def words_alone(self) -> bool:
        return not self.references and self.image_prompt is None

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

    def must_be(self, name: str, source: Source | None) -> None:
        """Is the ingredient what it was for the recipe? Raises WrongBaseError, OptionError."""
        if not self.cached_only(name) or source is None:
            return
        was = getattr(self.repeats, name)
        if was is None or was.hash == source.hash:
            return
        raise (WrongBaseError if name == "base" else OptionError)(
            f"{name} {source.name!r} of the recipe",
            rule="its weights are not what they were",
            remedy=f"Give the {name} to use: --{name} PATH_OR_HUB_ID.",
        )


def request_of(recipe: Recipe, changes: Mapping[str, Any]) -> Request:
    """The request that made the recipe's picture, with the user's changes."""
    for name, part in (("base", recipe.base), ("adapter", recipe.adapter)):
        if name not in changes and part is not None and part.name is None:
            raise OptionError(
                f"the recipe's {name}",
                rule="it was an object in memory, not a file",
                remedy=f"Give the {name} to use: --{name} PATH_OR_HUB_ID.",
            )
    loaded = not isinstance(changes.get("base"), str | os.PathLike | None)
    settings: dict[str, Any] = {
        "prompt": recipe.prompt,
        "base": recipe.base.name,
        "adapter": None if recipe.adapter is None else recipe.adapter.name,
        "encoder": None,
        "scale": recipe.scale,
        "seed": recipe.seed,
        "num_images": recipe.num_images,
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "negative_prompt": recipe.negative_prompt,
        "size": (recipe.width, recipe.height),
        "dtype": None if loaded else recipe.dtype,
        "device": None if loaded or "device" in changes else _device_here(recipe.device),
        "image_prompt": None,
        "batch_size": recipe.batch_size,
        "progress": True,
    }
    references = as_list(changes.get("reference"))
    settings |= {name: value for name, value in changes.items() if name != "reference"}
    _compare_versions(recipe)
    return Request(**settings, references=references, repeats=recipe, changed=frozenset(changes))


def _device_here(device: str) -> str | None:
    from imageprompt.ingredients import usable_device

    try:
        return usable_device(device)
    except OptionError:
        warnings.warn(
            f"the recipe's device {device!r} is not on this machine: small differences are likely",
            stacklevel=4,
        )
        return None


def _compare_versions(recipe: Recipe) -> None:
    now = versions()
    differ = [
        f"{name} {recipe.versions[name]} (here {now[name]})"
        for name in sorted(now.keys() & recipe.versions.keys())
        if now[name] != recipe.versions[name]
    ]
    if differ:
        warnings.warn(
            f"the recipe was made with {', '.join(differ)}: small differences are likely",
            stacklevel=4,
        )


def versions() -> dict[str, str]:
    """Of ourselves and of the libraries that decide a picture's bits."""
    from importlib import metadata

    others = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    return {"imageprompt": __version__, **others}


def as_list(reference: Any) -> list[Any]:
    """None, one or several references -> a list."""
    if reference is None:
        return []
    return list(reference) if isinstance(reference, list | tuple) else [reference]
