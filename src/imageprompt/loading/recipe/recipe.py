"""Recipe: everything that determines a picture, as plain data."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from imageprompt.control import DEFAULT_SCALE, Scale
from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.core.schema import type_adapter
from imageprompt.loading.recipe import limits

if TYPE_CHECKING:
    from pydantic import ValidationError

FORMAT = 3
_STRICT = {"extra": "forbid"}
"""For pydantic: unknown keys are errors."""


@dataclass(frozen=True, kw_only=True)
class AssetRecord:
    """How the user named a file or model (None: an object in memory), and a hash of its content.

    `hash` is the sha256 of a file (64 hex digits: adapter, pictures, masks) or the fingerprint of
    weights (16: base, encoder, ControlNet). `spec` describes an adapter.
    """

    __pydantic_config__ = _STRICT

    name: Annotated[str | None, limits.NAME]
    hash: Annotated[str, limits.HASH]
    spec: Annotated[Mapping[str, Any], limits.OBJECT] = field(default_factory=dict)


Assets = Annotated[tuple[AssetRecord, ...], limits.Items(1000)]


@dataclass(frozen=True, kw_only=True)
class ReferenceMetadata:
    """What a recipe keeps of one reference: its files, its adapter and all its options."""

    __pydantic_config__ = _STRICT

    adapter: AssetRecord
    encoder: AssetRecord | None
    pictures: Assets
    face_embeddings: Assets = ()
    """Files, instead of pictures or beside them."""
    faces: AssetRecord | None = None
    """The face recogniser."""
    style: AssetRecord | None = None
    """A style of the library; its hash is that of its tokens."""
    mask: AssetRecord | None = None
    """Where in the picture the reference acts."""
    negative_reference: Assets = ()
    reference_mask: Assets = ()
    controls: Annotated[Mapping[str, Any], limits.CONTROLS] = field(default_factory=dict)
    """As `Controls.as_dict` returns them."""
    encode_options: Annotated[Mapping[str, Any], limits.ENCODE] = field(default_factory=dict)
    """The options of `Adapter.encode` that are not the default."""
    lora_mode: Annotated[str, limits.LORA_MODE] = "live"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a picture. `check` holds it against the limits."""

    __pydantic_config__ = _STRICT

    prompt: Annotated[str, limits.PROMPT]
    negative_prompt: Annotated[str, limits.PROMPT]
    seed: Annotated[int, limits.SEED]
    """Of the request; picture i uses seed + i."""
    index: Annotated[int, limits.INDEX]
    """Which picture of the request this is, from 0."""
    num_images: Annotated[int, limits.NUM_IMAGES]
    batch_size: Annotated[int, limits.BATCH_SIZE]
    """Pictures denoised together. Rounding depends on it, so a replay uses the same."""
    steps: Annotated[int, limits.STEPS]
    guidance_scale: Annotated[float | None, limits.GUIDANCE_SCALE]
    """None if the pipeline has no such option."""
    guidance_until: Annotated[float | None, limits.GUIDANCE_UNTIL] = None
    """The share of the steps after which guidance was off; None: it never was."""
    true_cfg_scale: Annotated[float | None, limits.GUIDANCE_SCALE] = None
    """None if it was not given, or the pipeline has no such option."""
    eta: Annotated[float | None, limits.ETA] = None
    """The share of the noise that each step drew anew; None: none."""
    guidance: Annotated[str | tuple[str, ...], limits.GUIDANCE] = "auto"
    """The stated layout of the batch: its name, or its branches."""
    width: Annotated[int, limits.SIDE]
    height: Annotated[int, limits.SIDE]
    dtype: Annotated[str, limits.DTYPE]
    device: Annotated[str, limits.DEVICE]
    scheduler: Annotated[Mapping[str, Any], limits.SCHEDULER]
    """Its diffusers configuration, including `_class_name`."""
    base: AssetRecord
    references: Annotated[tuple[ReferenceMetadata, ...], limits.Items(limits.MAX_REFERENCES)]
    """Empty for text alone."""
    init_image: AssetRecord | None = None
    strength: Annotated[float | None, limits.STRENGTH] = None
    inpaint_mask: AssetRecord | None = None
    controlnet: AssetRecord | None = None
    control_image: AssetRecord | None = None
    control_scale: Annotated[float | None, limits.CONTROL_SCALE] = None
    versions: Annotated[Mapping[str, str], limits.VERSIONS]
    format: Annotated[int, limits.Whole(FORMAT, FORMAT)] = FORMAT

    def check(self) -> Recipe:
        """The recipe itself, if `read_recipe` would accept it. Raises OptionError."""
        validate_recipe(asdict(self))
        return self

    # ── the first reference, usually the only one ───────────────────────────────────────────────

    @property
    def adapter(self) -> AssetRecord | None:
        return self.references[0].adapter if self.references else None

    @property
    def encoder(self) -> AssetRecord | None:
        return self.references[0].encoder if self.references else None

    @property
    def scale(self) -> Scale:
        if not self.references:
            return 0.0
        scale: Scale = self.references[0].controls.get("scale", DEFAULT_SCALE)
        return scale

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


def validate_recipe(data: Mapping[str, Any]) -> Recipe:
    """A recipe of format 3 from plain data. Raises OptionError that names the key."""
    from pydantic import ValidationError

    try:
        recipe: Recipe = type_adapter(Recipe).validate_python(data)
    except ValidationError as error:
        raise _first(error) from None
    check_size(recipe.width, recipe.height)
    check_batch(recipe.batch_size, recipe.num_images, recipe.width, recipe.height)
    if recipe.index >= recipe.num_images:
        raise OptionError(
            f"index {recipe.index}", reason=f"only {recipe.num_images} pictures were made"
        )
    return recipe


def _first(error: ValidationError) -> OptionError:
    """The first of pydantic's errors as one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    *path, key = [str(part)[:60] for part in found["loc"]] or [""]
    if found["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(key, _known(path), n=1)
        reason = f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        return OptionError(".".join(path) or "the recipe", reason=reason)
    reason = found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        reason = "the key is missing"
    elif found["type"] == "dataclass_type":
        reason = "not an object"
    return OptionError(".".join((*path, key)), reason=reason)


def _known(path: Sequence[str]) -> list[str]:
    """The keys of the object at `path`."""
    if not path:
        return _names(Recipe)
    return _names(ReferenceMetadata if path[-1].isdecimal() and len(path) == 2 else AssetRecord)


def _names(kind: type) -> list[str]:
    return [item.name for item in fields(kind)]


def library_versions() -> dict[str, str]:
    """Versions of imageprompt and of the libraries that a picture's bits depend on."""
    return dict(_library_versions())


@cache
def _library_versions() -> dict[str, str]:
    from importlib import metadata

    names = ("torch", "diffusers", "transformers")
    return {"imageprompt": __version__, **{name: metadata.version(name) for name in names}}


def check_limit(name: str, limit: limits.Limit, value: Any) -> None:
    """Raises OptionError that names `name` and its value if `limit` refuses it."""
    try:
        limit(value)
    except ValueError as error:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise OptionError(f"{name.replace('_', ' ')} {shown}", reason=str(error)) from None


def check_size(width: int, height: int) -> None:
    """Raises OptionError for a picture size outside the limits."""
    for name, value in (("width", width), ("height", height)):
        check_limit(name, limits.SIDE, value)
    if width * height > limits.MAX_PIXELS:
        raise OptionError(
            f"size {width}x{height}",
            reason=f"more than {limits.MAX_PIXELS // 10**6} million pixels",
        )


def check_batch(batch_size: int, num_images: int, width: int, height: int) -> None:
    """Raises OptionError for a batch whose pictures have too many pixels in sum."""
    count = min(batch_size, num_images)
    if count * width * height > limits.MAX_BATCH_PIXELS:
        raise OptionError(
            f"batch of {count} pictures of {width}x{height}",
            reason=f"more than {limits.MAX_BATCH_PIXELS // 10**6} million pixels at once",
            hint="Use a smaller batch size.",
        )


def check_asset(name: str, asset: AssetRecord) -> None:
    """Raises OptionError for a record with an impossible name, hash or spec."""
    for key, limit in (("name", limits.NAME), ("hash", limits.HASH), ("spec", limits.OBJECT)):
        check_limit(f"{name}: {key}", limit, getattr(asset, key))
