"""From a recipe and a user's changes to the request that makes the picture again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError, PromptError
from imageprompt.generation.reference import REFERENCE_FIELDS, TOKEN_FIELDS, Reference, flag_of
from imageprompt.generation.request import Request, check_names
from imageprompt.loading import resolve_file, usable_device
from imageprompt.loading.recipe import (
    AssetRecord,
    Recipe,
    ReferenceMetadata,
    library_versions,
    limits,
)

if TYPE_CHECKING:
    from imageprompt.encoding.image_prompt import ImagePrompt

_SOURCES = {"reference", "image_prompt", "style", "face_embeddings"}
_START_IMAGES = ("init_image", "inpaint_mask", "control_image")
_FIELD_OF = {"text": "fusion_text"}
"""Argument of `Adapter.encode` -> field of Reference, where they differ."""


def request_from_recipe(
    recipe: Recipe, tokens: Sequence[bytes | None], changes: Mapping[str, Any]
) -> Request:
    """The request that made the recipe's picture, with the user's changes.

    `tokens` are the image prompts that came with the recipe; their pictures are not needed. All
    other files of the recipe must exist and be unchanged. Raises OptionError, PictureError.
    """
    check_names(changes)
    _check_named("base", recipe.base, changes)
    _check_named("controlnet", recipe.controlnet, changes)
    arguments = _request_arguments(recipe, changes)
    for name in _START_IMAGES:
        record = getattr(recipe, name)
        if record is not None and name not in changes:
            arguments[name] = _resolve(record, name)
    pairs = zip(recipe.references, tokens, strict=True)
    recorded = [_reference_arguments(metadata, data) for metadata, data in pairs]
    if "also" not in changes and recorded[1:]:
        arguments["also"] = [Reference(**each) for each in map(_with_files, recorded[1:])]
    first = {name: value for name, value in changes.items() if name in REFERENCE_FIELDS}
    if recorded:
        first = _with_files(_with_changes(recorded[0], first))
    elif not first.keys() & _SOURCES:  # text alone, still
        first = {"scale": 0, **first}
    others = {name: value for name, value in changes.items() if name not in REFERENCE_FIELDS}
    _compare_versions(recipe)
    request = Request.from_arguments(
        {**arguments, **others, **first}, replayed_from=recipe, changed=frozenset(changes)
    )
    _tell_batch(request)
    return request


def _tell_batch(request: Request) -> None:
    """Rounding depends on the batch, so all pictures of a recipe's batch are made for one of them.

    Says so where these need more than a picture of the largest size.
    """
    batch, (width, height) = next(request.batches(), range(0)), request.size or (0, 0)
    if len(batch) > len(request.indices) and len(batch) * width * height > limits.MAX_PIXELS:
        warnings.warn(
            f"the recipe's picture was made in a batch of {len(batch)} of {width}x{height}, which "
            "are all denoised again; a batch size of 1 takes less memory and differs a little",
            stacklevel=4,
        )


def _request_arguments(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that do not belong to a reference."""
    loaded = not isinstance(changes.get("base"), str | os.PathLike | None)
    same = (
        *("prompt", "negative_prompt", "seed", "num_images", "batch_size"),
        *("steps", "guidance_scale", "guidance_until", "true_cfg_scale", "guidance", "eta"),
        *("strength", "control_scale"),
    )
    return {name: getattr(recipe, name) for name in same} | {
        "base": recipe.base.name,
        "size": (recipe.width, recipe.height),
        "dtype": None if loaded else recipe.dtype,
        "device": None if loaded or "device" in changes else _available_device(recipe.device),
        "controlnet": None if recipe.controlnet is None else recipe.controlnet.name,
    }


# ── references ──────────────────────────────────────────────────────────────────────────────────


def _reference_arguments(metadata: ReferenceMetadata, tokens: bytes | None) -> dict[str, Any]:
    """The fields of a Reference that repeats it, without its files."""
    options = metadata.encode_options
    arguments = {
        **metadata.controls,
        **{_FIELD_OF.get(name, name): value for name, value in options.items()},
        "lora_mode": metadata.lora_mode,
        "adapter": metadata.adapter.name,
        "replayed_from": metadata,
    }
    for name in ("variant", "reading"):
        value = metadata.adapter.spec.get(name)
        if isinstance(value, str) and metadata.adapter.name is not None:
            arguments[name] = value
    if tokens is not None:
        arguments |= {"image_prompt": load_tokens(tokens), "tokens_from_recipe": True}
    return arguments


def _with_changes(recorded: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """With the user's changes. What its tokens depend on makes the reference be encoded again."""
    merged = {**recorded, **changes}
    if "preset" in changes or "controls" in changes:  # these numbers belonged to another preset
        for name in ("composition", "boost"):
            merged[name] = changes.get(name)
    for option, number in (("noise", "noise_seed"), ("subtract_text", "subtract_strength")):
        if option in changes and not changes[option] and number not in changes:
            merged.pop(number, None)  # it belonged to what is removed
    if "adapter" in changes:
        merged |= {name: changes.get(name) for name in ("variant", "reading")}
    # an adapter in memory has to be given again, which by itself changes nothing
    named = recorded["adapter"] is not None
    if changes.keys() & set(TOKEN_FIELDS) - (set() if named else {"adapter"}):
        merged |= {"image_prompt": changes.get("image_prompt"), "tokens_from_recipe": False}
    if changes.keys() & {"image_prompt", "style"}:  # these are encoded already, in their own way
        merged = {
            name: value
            for name, value in merged.items()
            if name in changes
            or name not in TOKEN_FIELDS
            or name in ("adapter", "variant", "reading")
        }
    return merged


def _with_files(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the recipe's files that are needed. Raises PictureError, OptionError."""
    complete = dict(arguments)
    metadata: ReferenceMetadata = complete["replayed_from"]
    _check_named("adapter", metadata.adapter, complete)
    if metadata.mask is not None and "mask" not in complete:
        complete["mask"] = _resolve(metadata.mask, "mask")
    if complete.get("image_prompt") is not None or complete.get("style") is not None:
        return complete  # encoded already: no other file is needed
    needed = {
        "negative_reference": metadata.negative_reference,
        "reference_mask": metadata.reference_mask,
    }
    if not complete.keys() & _SOURCES - {"image_prompt"}:
        if metadata.style is not None:
            return complete | {"style": metadata.style.name}
        needed |= {"reference": metadata.pictures, "face_embeddings": metadata.face_embeddings}
    for name, records in needed.items():
        if records and name not in complete:
            complete[name] = [_resolve(record, name) for record in records]
    complete.setdefault("encoder", _encoder_folder(metadata.encoder))
    complete.setdefault("faces", None if metadata.faces is None else metadata.faces.name)
    return complete


def _encoder_folder(record: AssetRecord | None) -> str | None:
    """A folder that the user named; an encoder inside the base is found again without a name."""
    if record is None or record.name is None or not os.path.isdir(record.name):  # noqa: PTH112
        return None
    return record.name


def load_tokens(tokens: bytes) -> ImagePrompt:
    """The image prompt that came with a recipe. Raises PromptError."""
    from tempfile import TemporaryDirectory

    from imageprompt.encoding.image_prompt import ImagePrompt

    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.safetensors"
        path.write_bytes(tokens)
        try:
            return ImagePrompt.load(path)
        except PromptError as error:
            what = "the recipe's image prompt"
            raise PromptError(what, reason=error.reason, hint=error.hint) from None


# ── files, devices, versions ────────────────────────────────────────────────────────────────────


def _resolve(record: AssetRecord, name: str) -> str:
    return resolve_file(record, name.replace("_", " "), flag_of(name))


def _check_named(name: str, record: AssetRecord | None, arguments: Mapping[str, Any]) -> None:
    if record is not None and record.name is None and arguments.get(name) is None:
        raise OptionError(
            f"the recipe's {name}",
            reason="was an object in memory, not a file",
            hint=f"Give the {name} to use: --{name} PATH_OR_HUB_ID.",
        )


def _available_device(device: str) -> str | None:
    try:
        return usable_device(device)
    except OptionError:
        warnings.warn(
            f"the recipe's device {device!r} is not available here: expect small differences",
            stacklevel=5,
        )
        return None


def _compare_versions(recipe: Recipe) -> None:
    now = library_versions()
    differ = [
        f"{name} {recipe.versions[name]} (here {now[name]})"
        for name in sorted(now.keys() & recipe.versions.keys())
        if now[name] != recipe.versions[name]
    ]
    if differ:
        warnings.warn(
            f"the recipe was made with {', '.join(differ)}: expect small differences",
            stacklevel=4,
        )
