"""Recipe: everything that decides a picture; read back with suspicion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imageprompt.control import Scale
from imageprompt.core.errors import OptionError
from imageprompt.loading.recipe import limits
from imageprompt.loading.recipe.limits import text


@dataclass(frozen=True, kw_only=True)
class Source:
    """One ingredient: how the user named it (None: an object in memory), and what it was.

    `hash` is the sha256 of a file (64 hex digits: adapter, pictures, masks) or the fingerprint of
    weights (16: base, encoder, ControlNet).
    """

    name: str | None
    hash: str
    spec: Mapping[str, Any] = field(default_factory=dict)


def one(value: Any) -> None:
    """Raises ValueError for what is no source, or names no path or Hub id."""
    if not isinstance(value, Source):
        raise ValueError("not an object with name and hash")
    if value.name is not None:
        text(4096)(value.name)
        if "://" in value.name or value.name.startswith(("//", r"\\")):
            raise ValueError("the name of an ingredient is a path or a Hub id")
    if not isinstance(value.hash, str) or not re.fullmatch(
        r"[0-9a-f]{16}|[0-9a-f]{64}", value.hash
    ):
        raise ValueError("a hash is 16 or 64 hex digits")
    if not isinstance(value.spec, Mapping):
        raise ValueError("spec is not an object")


def maybe(value: Any) -> None:
    if value is not None:
        one(value)


def several(value: Any) -> None:
    if not isinstance(value, tuple) or len(value) > 1000:
        raise ValueError("not a list of at most 1000 sources")
    for entry in value:
        one(entry)


FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was shown to the base with one adapter: of what, and how."""

    adapter: Source
    encoder: Source | None
    references: tuple[Source, ...]
    """Pictures, or files of face embeddings beside them."""
    embeddings: tuple[Source, ...] = ()
    """Of faces; files."""
    faces: Source | None = None
    """What recognised the faces of the pictures."""
    style: Source | None = None
    """Of the library; its hash is that of its tokens."""
    mask: Source | None = None
    """Where in the picture."""
    negative: tuple[Source, ...] = ()
    """Pictures that stood for "no picture"."""
    reference_mask: tuple[Source, ...] = ()
    controls: Mapping[str, Any] = field(default_factory=dict)
    """Where in the network, when and how strongly: `Controls.as_dict`."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """How the references were encoded: what is not the default."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a picture. Checked on creation; raises OptionError."""

    prompt: str
    negative_prompt: str
    seed: int
    """Of the request; picture i is drawn from seed + i."""
    index: int
    """Which picture of the request this is, from 0."""
    num_images: int
    batch_size: int
    """Pictures denoised side by side: rounding depends on it, so a repeat uses the same."""
    steps: int
    guidance_scale: float | None
    """None where the pipeline has no such option."""
    guidance: str | tuple[str, ...] = "auto"
    """How the batch was said to be stacked."""
    width: int
    height: int
    dtype: str
    device: str
    scheduler: Mapping[str, Any]
    """Its diffusers configuration, `_class_name` included."""
    base: Source
    shown: tuple[Shown, ...]
    """Empty for words alone."""
    init_image: Source | None = None
    strength: float | None = None
    inpaint_mask: Source | None = None
    controlnet: Source | None = None
    control_image: Source | None = None
    control_scale: float | None = None
    versions: Mapping[str, str]
    format: int = FORMAT

    def __post_init__(self) -> None:
        for item in fields(self):
            checked(item.name, getattr(self, item.name))
        if self.index >= self.num_images:
            raise OptionError(
                f"recipe: index {self.index}", reason=f"only {self.num_images} pictures were made"
            )

    # what was shown first, which mostly is all

    @property
    def adapter(self) -> Source | None:
        return self.shown[0].adapter if self.shown else None

    @property
    def encoder(self) -> Source | None:
        return self.shown[0].encoder if self.shown else None

    @property
    def references(self) -> tuple[Source, ...]:
        return self.shown[0].references if self.shown else ()

    @property
    def scale(self) -> Scale:
        return self.shown[0].controls.get("scale", 1.0) if self.shown else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


def checked(name: str, value: Any) -> Any:
    """`value` if it is a possible value of the recipe field `name`; else OptionError."""
    try:
        _CHECKS[name](value)
    except ValueError as error:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise OptionError(f"{name.replace('_', ' ')} {shown}", reason=str(error)) from None
    return value


def check_size(width: int, height: int) -> None:
    """Raises OptionError for a picture size nobody can want."""
    for name, value in (("width", width), ("height", height)):
        checked(name, value)
    if width * height > limits.MAX_PIXELS:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"more than {limits.MAX_PIXELS // 10**6} million pixels",
        )


def _shown(value: Any) -> None:
    if not isinstance(value, tuple) or len(value) > limits.MAX_SHOWN:
        raise ValueError(f"not a list of at most {limits.MAX_SHOWN} entries")
    for entry in value:
        if not isinstance(entry, Shown):
            raise ValueError("not an object with an adapter")
        for item in fields(entry):
            try:
                _SHOWN_CHECKS[item.name](getattr(entry, item.name))
            except ValueError as error:
                raise ValueError(f"{item.name.replace('_', ' ')}: {error}") from None


_SHOWN_CHECKS: dict[str, Callable[[Any], None]] = {
    "adapter": one,
    "encoder": maybe,
    "references": several,
    "embeddings": several,
    "faces": maybe,
    "style": maybe,
    "mask": maybe,
    "negative": several,
    "reference_mask": several,
    "controls": limits.controls,
    "how": limits.how,
}

_CHECKS: dict[str, Callable[[Any], None]] = {
    "prompt": limits.text(20_000),
    "negative_prompt": limits.text(20_000),
    "seed": limits.whole(0, 2**63 - 1),
    "index": limits.whole(0, 10**6 - 1),
    "num_images": limits.whole(1, 10**6),
    "batch_size": limits.whole(1, limits.MAX_BATCH),
    "steps": limits.whole(1, 1000),
    "guidance_scale": limits.maybe_number(0, 1000),
    "guidance": limits.guidance,
    "width": limits.whole(limits.MIN_SIDE, limits.MAX_SIDE),
    "height": limits.whole(limits.MIN_SIDE, limits.MAX_SIDE),
    "dtype": limits.dtype,
    "device": limits.device,
    "scheduler": limits.scheduler,
    "base": one,
    "shown": _shown,
    "adapter": maybe,
    "encoder": maybe,
    "references": several,
    "init_image": maybe,
    "strength": limits.maybe_number(0, 1),
    "inpaint_mask": maybe,
    "controlnet": maybe,
    "control_image": maybe,
    "control_scale": limits.maybe_number(0, 2),
    "versions": limits.versions,
    "format": limits.whole(FORMAT, FORMAT),
}
