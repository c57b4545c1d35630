"""From a recipe and a user's changes to the request that makes the picture again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.generation.reference import ENCODED, NAMES, Reference
from imageprompt.generation.request import Request, check_names
from imageprompt.loading.recipe import HOW, Recipe, Shown, Source

if TYPE_CHECKING:
    from imageprompt.encoding.image_prompt import ImagePrompt

_WHAT = {"reference", "image_prompt", "style", "face_embeddings"}
_FILES = ("init_image", "inpaint_mask", "control_image")


def request_of(
    recipe: Recipe, tokens: Sequence[bytes | None], changes: Mapping[str, Any]
) -> Request:
    """The request that made the recipe's picture, with the user's changes.

    `tokens` are the image prompts that came with it: what is not to be encoded again. Everything
    else that a recipe names must lie where it lay and be what it was. Raises OptionError,
    PictureError.
    """
    check_names(changes)
    _in_memory("base", recipe.base, changes)
    _in_memory("controlnet", recipe.controlnet, changes)
    arguments = _generation(recipe, changes)
    for name in _FILES:
        source = getattr(recipe, name)
        if source is not None and name not in changes:
            arguments[name] = _again(source, name)
    kept = [_reference(shown, data) for shown, data in zip(recipe.shown, tokens, strict=True)]
    if "also" not in changes and kept[1:]:
        arguments["also"] = [Reference(**each) for each in map(_opened, kept[1:])]
    first = {name: value for name, value in changes.items() if name in NAMES}
    if kept:
        first = _opened(_changed(kept[0], first))
    elif not set(first) & _WHAT:  # words alone, still
        first = {"scale": 0, **first}
    others = {name: value for name, value in changes.items() if name not in NAMES}
    _compare_versions(recipe)
    return Request.of({**arguments, **others, **first}, repeats=recipe, changed=frozenset(changes))


def _generation(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is not of a reference."""
    loaded = not isinstance(changes.get("base"), str | os.PathLike | None)
    names = (
        "prompt",
        "seed",
        "num_images",
        "steps",
        "guidance_scale",
        "negative_prompt",
        "guidance",
    )
    return {name: getattr(recipe, name) for name in (*names, "batch_size")} | {
        "base": recipe.base.name,
        "size": (recipe.width, recipe.height),
        "dtype": None if loaded else recipe.dtype,
        "device": None if loaded or "device" in changes else _device_here(recipe.device),
        "strength": recipe.strength,
        "controlnet": None if recipe.controlnet is None else recipe.controlnet.name,
        "control_scale": recipe.control_scale,
    }


# ── references ──────────────────────────────────────────────────────────────────────────────────


def _reference(shown: Shown, tokens: bytes | None) -> dict[str, Any]:
    """The arguments of a Reference that repeats it, its files not looked at yet."""
    arguments = {
        **shown.controls,
        **{_NAMES.get(name, name): shown.how[name] for name in HOW if name in shown.how},
        "adapter": shown.adapter.name,
        "repeats": shown,
    }
    variant = shown.adapter.spec.get("variant")
    if isinstance(variant, str) and shown.adapter.name is not None:
        arguments["variant"] = variant
    if tokens is not None:
        arguments |= {"image_prompt": _prompt(tokens), "kept": True}
    return arguments


_NAMES = {"text": "fusion_text"}


def _changed(kept: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """With the user's changes; what was encoded with other arguments is encoded again."""
    made = {**kept, **changes}
    if "preset" in changes or "controls" in changes:  # their further numbers were for another one
        for name in ("composition", "boost"):
            made[name] = changes.get(name)
    for wish, number in (("noise", "noise_seed"), ("subtract_text", "subtract_strength")):
        if wish in changes and not changes[wish] and number not in changes:
            made.pop(number, None)  # it belonged to what is left out now
    if "adapter" in changes:
        made["variant"] = changes.get("variant")
    named = kept["adapter"] is not None  # else an adapter in memory is brought again
    if set(changes) & set(ENCODED) - (set() if named else {"adapter"}):
        made |= {"image_prompt": changes.get("image_prompt"), "kept": False}
    if set(changes) & {"image_prompt", "style"}:  # encoded already, in its own way
        made = {name: made[name] for name in made if name in changes or name not in ENCODED} | {
            name: made[name] for name in ("adapter", "variant") if name in made
        }
    return made


def _opened(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the files that the recipe names, where they are needed. Raises PictureError ..."""
    made = dict(arguments)
    shown: Shown = made["repeats"]
    _in_memory("adapter", shown.adapter, made)
    if shown.mask is not None and "mask" not in made:
        made["mask"] = _again(shown.mask, "mask")
    if made.get("image_prompt") is not None or made.get("style") is not None:
        return made  # encoded already: no file is needed
    wanted = {"negative_reference": shown.negative, "reference_mask": shown.reference_mask}
    if not set(made) & _WHAT - {"image_prompt"}:
        if shown.style is not None:
            return made | {"style": shown.style.name}
        wanted |= {"reference": shown.references, "face_embeddings": shown.embeddings}
    for name, sources in wanted.items():
        if sources and name not in made:
            made[name] = [_again(source, name) for source in sources]
    made.setdefault("encoder", _named(shown.encoder))
    made.setdefault("faces", None if shown.faces is None else shown.faces.name)
    return made


def _named(source: Source | None) -> str | None:
    """A folder of the user's; names with a slash into the base are found again by themselves."""
    if source is None or source.name is None or not Path(source.name).is_dir():
        return None
    return source.name


def _prompt(tokens: bytes) -> ImagePrompt:
    from tempfile import TemporaryDirectory

    from imageprompt.encoding.image_prompt import ImagePrompt

    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.safetensors"
        path.write_bytes(tokens)
        return ImagePrompt.load(path)


# ── ingredients ─────────────────────────────────────────────────────────────────────────────────


def _again(source: Source, name: str) -> str:
    from imageprompt.loading import same_file

    return same_file(source, name.replace("_", " "), f"--{name.replace('_', '-')}")


def _in_memory(name: str, source: Source | None, given: Mapping[str, Any]) -> None:
    if source is not None and source.name is None and given.get(name) is None:
        raise OptionError(
            f"the recipe's {name}",
            reason="it was an object in memory, not a file",
            hint=f"Give the {name} to use: --{name} PATH_OR_HUB_ID.",
        )


def _device_here(device: str) -> str | None:
    from imageprompt.loading import usable_device

    try:
        return usable_device(device)
    except OptionError:
        warnings.warn(
            f"the recipe's device {device!r} is not on this machine: small differences are likely",
            stacklevel=5,
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
