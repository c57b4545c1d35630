"""Request: all arguments of `generate`, checked before anything is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Annotated, Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError, PictureError, WrongBaseError
from imageprompt.core.schema import PYTHON_ONLY, Option, plain_numbers
from imageprompt.generation import option_values as values
from imageprompt.generation.option_values import FILE
from imageprompt.generation.reference import REFERENCE_FIELDS, REPLAY_FIELDS, Reference, flag_of
from imageprompt.loading.recipe import (
    AssetRecord,
    Recipe,
    check_batch,
    check_limit,
    check_size,
    limits,
)

_text = partial(Option, group=values.TEXT)
_start = partial(Option, group=values.START)
_sampling = partial(Option, group=values.SAMPLING)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `generate`; for a replay, also its recipe."""

    prompt: Annotated[str, _text("text prompt (default: none)", "TEXT")] = ""
    negative_prompt: Annotated[str, _text("text to steer away from (default: none)", "TEXT")] = ""
    references: tuple[Reference, ...] = (Reference(),)

    init_image: Annotated[Any, _start("picture to start from", "PIC", json=FILE)] = None
    strength: Annotated[
        float | None,
        _start(
            "how much of the init image changes, 0..1 (default: the pipeline's)",
            "S",
            ge=limits.STRENGTH.low,
            le=limits.STRENGTH.high,
        ),
    ] = None
    inpaint_mask: Annotated[
        Any, _start("part of the init image to repaint: a picture, white inside", "PIC", json=FILE)
    ] = None
    controlnet: Annotated[Any, _start("a diffusers ControlNet", "PATH_OR_HUB_ID", json=FILE)] = None
    control_image: Annotated[
        Any, _start("input of the ControlNet: edges, depth ...", "PIC", json=FILE)
    ] = None
    control_scale: Annotated[
        float | None,
        _start(
            "strength of the ControlNet, 0..2 (default 1)",
            "S",
            ge=limits.CONTROL_SCALE.low,
            le=limits.CONTROL_SCALE.high,
        ),
    ] = None

    num_images: values.NumImages = 1
    seed: values.Seed = 1
    steps: values.Steps = None
    guidance_scale: values.GuidanceScale = None
    guidance_until: Annotated[
        float | None,
        _sampling(
            "share of the steps after which guidance is off, 0..1: the rest takes half the time "
            "(default: never off)",
            "S",
            ge=limits.GUIDANCE_UNTIL.low,
            le=limits.GUIDANCE_UNTIL.high,
        ),
    ] = None
    true_cfg_scale: Annotated[
        float | None,
        _sampling(
            "scale of the guidance with a negative side that FLUX and its kin have beside their "
            "own; on above 1 (default: the pipeline's)",
            "G",
            ge=limits.GUIDANCE_SCALE.low,
            le=limits.GUIDANCE_SCALE.high,
        ),
    ] = None
    guidance: Annotated[
        str | Sequence[str],
        _sampling(
            "layout of the guidance batch, for pipelines where it cannot be inferred: "
            "positive,negative",
            "LAYOUT",
            parse=values.parse_layout,
        ),
    ] = "auto"
    eta: Annotated[
        float | None,
        _sampling(
            "share of the noise that each step draws anew, 0..1, in DDIM and Euler's steps of flow "
            f"matching: mends mistakes (default: {bundled.ETA_128:g} on {bundled.SD3_128}, else 0)",
            "E",
            ge=limits.ETA.low,
            le=limits.ETA.high,
        ),
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        _sampling(
            "512x768 or 512, in pixels (default: the pipeline's)", "WxH", parse=values.parse_size
        ),
    ] = None
    batch_size: Annotated[
        int,
        _sampling(
            "pictures denoised together (default 4)",
            "N",
            ge=limits.BATCH_SIZE.low,
            le=limits.BATCH_SIZE.high,
        ),
    ] = 4

    base: values.Base = None
    library: values.LibraryFolder = None
    dtype: values.Dtype = None
    device: values.Device = None

    progress: Annotated[bool, PYTHON_ONLY] = True
    on_progress: Annotated[Callable[[str, int, int], object] | None, PYTHON_ONLY] = None
    on_image: Annotated[Callable[..., object] | None, PYTHON_ONLY] = None
    on_step: Annotated[Callable[..., object] | None, PYTHON_ONLY] = None
    replayed_from: Annotated[Recipe | None, PYTHON_ONLY] = None
    changed: Annotated[frozenset[str], PYTHON_ONLY] = frozenset()
    """The options that the user replaced in the recipe."""

    @classmethod
    def of(cls, prompt: str = "", reference: Any = None, **arguments: Any) -> Request:
        """From the arguments of `generate`: `Request.of("a star", "ref.png", scale=0.6, seed=3)`.

        Raises OptionError, PictureError.
        """
        check_names(arguments)
        return cls.from_arguments({**arguments, "prompt": prompt, "reference": reference})

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], **more: Any) -> Request:
        """From the arguments of `generate`; those of `Reference` describe the first reference.

        Raises OptionError, PictureError.
        """
        names = (*REFERENCE_FIELDS, *REPLAY_FIELDS)
        first = Reference(**{name: arguments[name] for name in names if name in arguments})
        also = arguments.get("also") or ()
        also = (also,) if isinstance(also, Reference) else also
        rest = {
            name: arguments[name] for name in (*REQUEST_FIELDS, *_CALLBACKS) if name in arguments
        }
        return cls(**rest, references=_all_references(first, also), **more)

    def __post_init__(self) -> None:
        for name in _LIMITS:
            object.__setattr__(self, name, plain_numbers(getattr(self, name)))
        parts = tuple(part for reference in self.references for part in reference.by_adapter())
        object.__setattr__(self, "references", parts)

    def check(self) -> None:
        """All that can be checked before loading. Raises OptionError, ScaleError ..."""
        for name, limit in _LIMITS.items():
            value = self.layout if name == "guidance" else getattr(self, name)
            if value is not None or name in _REQUIRED:
                check_limit(name, limit, value)
        if self.size is not None:
            check_size(*self.size)
            check_batch(self.batch_size, self.num_images, *self.size)
        for name, needed in _NEEDS:
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise OptionError(
                    f"{flag_of(name)} without {flag_of(needed)}",
                    reason="has no effect",
                    hint=f"Give {flag_of(needed)} too, or leave it out.",
                )
        if not isinstance(self.library, str | os.PathLike | None):
            raise OptionError(f"library {self.library!r}", reason="not the path of a folder")
        if self.strength == 0:
            raise OptionError("strength 0", reason="the init image would not change")
        for reference in self.references:
            reference.check()
        if len(self.active_references) > limits.MAX_REFERENCES:
            raise OptionError(
                f"{len(self.active_references)} references with an adapter or mask each",
                reason=f"more than {limits.MAX_REFERENCES}",
                hint="Use fewer, or one mask for several.",
            )

    @property
    def layout(self) -> Any:
        """`guidance` as a recipe keeps it."""
        value = self.guidance
        return value if isinstance(value, str) or not isinstance(value, Sequence) else (*value,)

    @cached_property
    def active_references(self) -> tuple[Reference, ...]:
        """The references that are not empty; pictures with a mask each are separate references."""
        return tuple(
            part
            for reference in self.references
            if not reference.empty
            for part in reference.split_by_mask()
        )

    @property
    def indices(self) -> range:
        """Indices of the pictures to make; a replay makes the recipe's own by default."""
        if self.replayed_from is None or self.changed & {"seed", "num_images"}:
            return range(self.num_images)
        return range(self.replayed_from.index, self.replayed_from.index + 1)

    def batches(self) -> Iterator[range]:
        """The batches that hold any of `indices`; whole, because rounding depends on the size."""
        indices = self.indices
        for start in range(0, self.num_images, self.batch_size):
            batch = range(start, min(start + self.batch_size, self.num_images))
            if batch.start < indices.stop and indices.start < batch.stop:
                yield batch

    def cached_only(self, name: str) -> bool:
        """Must the `name` ("base", "adapter") be here already? A recipe downloads nothing."""
        return self.replayed_from is not None and name not in self.changed

    def check_same_hash(self, name: str, recorded: AssetRecord | None, now: AssetRecord) -> None:
        """Is the `name` what it was for the recipe? Raises WrongBaseError, OptionError."""
        if not self.cached_only(name) or recorded is None or recorded.hash == now.hash:
            return
        content, value = ("tokens", "NAME") if name == "style" else ("weights", "PATH_OR_HUB_ID")
        raise (WrongBaseError if name == "base" else OptionError)(
            f"{name} {now.name!r} of the recipe",
            reason=f"its {content} have changed",
            hint=f"Give the {name} to use: --{name} {value}.",
        )


_LIMITS: Mapping[str, limits.Limit] = {
    "prompt": limits.PROMPT,
    "negative_prompt": limits.PROMPT,
    "seed": limits.SEED,
    "num_images": limits.NUM_IMAGES,
    "batch_size": limits.BATCH_SIZE,
    "guidance": limits.GUIDANCE,
    "steps": limits.STEPS,
    "guidance_scale": limits.GUIDANCE_SCALE,
    "guidance_until": limits.GUIDANCE_UNTIL,
    "true_cfg_scale": limits.GUIDANCE_SCALE,
    "eta": limits.ETA,
    "dtype": limits.DTYPE,
    "device": limits.DEVICE,
    "strength": limits.STRENGTH,
    "control_scale": limits.CONTROL_SCALE,
}
_REQUIRED = ("prompt", "negative_prompt", "seed", "num_images", "batch_size", "guidance")
_NEEDS = (
    ("strength", "init_image"),
    ("inpaint_mask", "init_image"),
    ("controlnet", "control_image"),
    ("control_scale", "controlnet"),
)
_CALLBACKS = ("on_progress", "on_image", "on_step")
_INTERNAL = ("references", "replayed_from", "changed", *_CALLBACKS)
REQUEST_FIELDS = tuple(item.name for item in fields(Request) if item.name not in _INTERNAL)
"""The options of a whole request; `generate` also takes `also` and the fields of `Reference`."""


def check_names(arguments: Mapping[str, Any]) -> None:
    """Raises OptionError for a name that `generate` does not have."""
    known = [*REQUEST_FIELDS, *_CALLBACKS, *REFERENCE_FIELDS, "also"]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise OptionError(
                f"option {name!r}",
                reason="generate() has no such argument",
                hint=f"Did you mean {near[0]}?" if near else "",
            )


def _all_references(first: Reference, also: Sequence[Reference]) -> tuple[Reference, ...]:
    if not isinstance(also, list | tuple) or not all(isinstance(one, Reference) for one in also):
        raise OptionError(
            f"also={type(also).__name__}",
            reason="not a list of Reference",
            hint="Write also=[ip.Reference(reference='b.jpg', scale=0.5)].",
        )
    if also and first.empty:
        raise PictureError(
            "--also without a first reference",
            reason="adds to a reference",
            hint="Give the first one before it: --reference PICTURE --also --reference PICTURE.",
        )
    if any(one.empty for one in also):
        raise PictureError(
            "--also without a reference",
            reason="starts another reference",
            hint="Give --reference PICTURE or --style NAME after it.",
        )
    return (first, *also)
