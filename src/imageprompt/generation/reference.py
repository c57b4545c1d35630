"""Reference: what is shown to a base with one adapter, and how; plain data, checked early."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from imageprompt.control import Controls, Scale, Scaling
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.encoding.options import EncodeOptions
from imageprompt.loading.recipe import HOW

if TYPE_CHECKING:
    from imageprompt.loading.recipe import Shown

SCALE = 0.8
"""Beside a text; 1.0 suits a picture alone."""

_CONTROLS = ("preset", "composition", "boost", "schedule", "scaling", "lora")
_MIXTURE = {
    "fusion": "fusion",
    "weights": "weights",
    "framing": "framing",
    "reference_mask": "reference_mask",
    "negative_reference": "negative",
    "noise": "noise",
    "noise_seed": "noise_seed",
    "subtract_text": "subtract_text",
    "subtract_strength": "subtract_strength",
    "fusion_text": "text",
    "text_encoder": "text_encoder",
    "face_strength": "face_strength",
}
"""Name here -> name of `Adapter.encode`."""
_FACES = ("face_embeddings", "faces", "face")
SOURCES = ("reference", "image_prompt", "style")
"""What can be shown; face embeddings too, or beside pictures."""
ENCODED = (*SOURCES, *_FACES, *_MIXTURE, "adapter", "variant", "encoder")
"""What the tokens depend on."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Pictures (or what stands for them) with an adapter, and what is taken from them.

    What: `reference`, a picture (path, bytes of a file, PIL) or a list of them; or an
    `image_prompt` (or its file); or a `style` of the library; or `face_embeddings` (for
    FaceID-plus beside aligned faces).

    With which: `adapter`, a file, Hub id, loaded Adapter or short name of one of the base's own
    (None: that of the style, else the base's "plus"); `variant` where its file does not tell;
    `encoder`, `faces` (a model pack) and `face` as `Adapter.attach` and `encode` take them.

    Where and when: all that `Adapter.use` takes. `mask` is one for all pictures (or files of face
    embeddings), or a list with one for each of them: then each is shown in its own place.

    How encoded: all that `Adapter.encode` takes; `negative_reference` is its `negative`,
    `fusion_text` its `text`.
    """

    reference: Any = None
    image_prompt: Any = None
    style: str | None = None
    face_embeddings: Any = None

    adapter: Any = None
    variant: str | None = None
    encoder: Any = None
    faces: Any = None
    face: int | str = "largest"
    face_strength: float = 1.0
    lora_mode: str = "live"

    scale: Scale = SCALE
    preset: str | None = None
    composition: float | None = None
    boost: float | None = None
    schedule: Any = None
    mask: Any = None
    scaling: Scaling = "V only"
    lora: float = 1.0
    controls: Controls | None = None

    fusion: str = "concat"
    weights: Any = None
    framing: Any = None
    reference_mask: Any = None
    negative_reference: Any = None
    noise: Any = 0.0
    noise_seed: int = 0
    subtract_text: Any = None
    subtract_strength: float = 1.0
    fusion_text: Any = None
    text_encoder: Any = None

    repeats: Shown | None = None
    """Of a repetition: what the recipe says."""
    kept: bool = False
    """Is the image prompt the one that came with the recipe?"""

    # ── parts ───────────────────────────────────────────────────────────────────────────────────

    @property
    def pictures(self) -> list[Any]:
        return as_list(self.reference)

    @property
    def embeddings(self) -> list[Any]:
        return as_list(self.face_embeddings)

    @property
    def empty(self) -> bool:
        """Is nothing shown?"""
        return not self.pictures and not self.embeddings and not self.ready

    @property
    def ready(self) -> bool:
        """Is it encoded already?"""
        return self.image_prompt is not None or self.style is not None

    @property
    def asked(self) -> Controls:
        """Raises ScaleError, OptionError."""
        given = {name: getattr(self, name) for name in self._changed(*_CONTROLS)}
        if self.controls is None:
            return Controls.of(None, scale=self.scale, **given)
        return Controls.of(self.controls, **given, **({} if self.scale == SCALE else self._scale))

    @property
    def mixture(self) -> dict[str, Any]:
        """The arguments of `Adapter.encode` that are not the default."""
        return {_MIXTURE[name]: getattr(self, name) for name in self._changed(*_MIXTURE)}

    @property
    def how(self) -> dict[str, Any]:
        """How it is encoded, as a recipe writes it: what is not the default.

        Raises OptionError for what cannot be written.
        """
        found = self.mixture | {name: getattr(self, name) for name in self._changed("face")}
        found |= dict.fromkeys(self._changed("lora_mode"), self.lora_mode)
        return {name: _plain(name, value) for name, value in found.items() if name in HOW}

    @property
    def _scale(self) -> dict[str, Scale]:
        return {"scale": self.scale}

    def _changed(self, *names: str) -> list[str]:
        """Those of the fields that are not the default."""
        return [name for name in names if not _is(getattr(self, name), _DEFAULTS[name])]

    # ── checks ──────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """All that can be told before anything is opened. Raises OptionError, ScaleError ..."""
        controls = self.asked
        given = [name for name in SOURCES if getattr(self, name) not in (None, [], ())]
        if len(given) > 1 or (self.ready and self.embeddings):
            names = [*given, *(["face_embeddings"] if self.embeddings else [])]
            raise OptionError(
                " and ".join(f"{_flag(name)}" for name in names),
                reason="the one takes the place of the other",
                hint="Give either of them.",
            )
        if self.empty:
            self._check_alone(controls)
            return
        EncodeOptions.of(**self.mixture)
        self._check_ready()
        if self.variant is not None and not isinstance(self.adapter, str | os.PathLike | None):
            raise OptionError(
                f"variant {self.variant!r} of a loaded adapter",
                reason="it is read off its file",
                hint="Give it to Adapter.load().",
            )
        self._check_weights()
        controls.as_dict(), self.how
        if self.masks is not None:
            self._check_masks(self.masks)

    def _check_alone(self, controls: Controls) -> None:
        """Nothing is shown: then there is nothing to control either."""
        given = self._changed("mask", *_CONTROLS, *_MIXTURE, "faces", "face", "controls")
        if given:
            raise PictureError(
                f"{_flag(given[0])} without a reference",
                reason="there is nothing that it could act on",
                hint="Give --reference PICTURE or --style NAME (reference= or style= in Python).",
            )
        if controls.scale != 0:
            raise PictureError(
                "no reference picture",
                reason="without one there is nothing to show to the base",
                hint="Give --reference PICTURE (reference= in Python), or scale 0: words alone.",
            )

    def _check_ready(self) -> None:
        given = self._changed(*_MIXTURE, "faces", "face", "encoder") if self.ready else []
        if given and not self.kept:
            raise OptionError(
                f"{_flag(given[0])} with {_flag('style' if self.style else 'image_prompt')}",
                reason="it is encoded already",
                hint="Give the pictures instead, or leave it out.",
            )

    def _check_weights(self) -> None:
        n = len(self.pictures)  # there may be several faces in a file, and in a picture
        told = self.weights is not None and n > 0 and self.face != "all"
        if told and not self.ready and len(self.weights) != n:
            raise OptionError(
                f"{len(self.weights)} weight(s) for {n} reference(s)",
                reason="one weight for each reference",
                hint="Give as many as there are references.",
            )

    def _check_masks(self, masks: list[Any]) -> None:
        n = self._count or 1
        if not masks:
            raise OptionError(
                "masks", reason="the list is empty", hint="Give a mask, or leave it out."
            )
        if len(masks) not in (1, n):
            raise OptionError(
                f"{len(masks)} masks for {n} reference(s)",
                reason="there is one mask for all, or one for each reference",
                hint="Give --mask once, or as often as --reference and in the same order.",
            )
        if len(masks) > 1 and self.fusion != "concat":
            raise OptionError(
                f"fusion {self.fusion!r} with {len(masks)} masks",
                reason="references in places of their own are not mixed",
                hint="Give one mask for all, or leave the fusion out.",
            )

    # ── several places ──────────────────────────────────────────────────────────────────────────

    @property
    def masks(self) -> list[Any] | None:
        """The masks, in a list; None where there is none. An array written as lists is one."""
        if self.mask is None:
            return None
        if not isinstance(self.mask, list | tuple):
            return [self.mask]
        numbers = self.mask and isinstance(self.mask[0], list | tuple | int | float)
        return [self.mask] if numbers else list(self.mask)

    @property
    def _count(self) -> int:
        """Of pictures, or files of face embeddings."""
        return len(self.pictures) or len(self.embeddings)

    def places(self) -> tuple[Reference, ...]:
        """One for each picture where each has a mask of its own, else itself."""
        masks, n = self.masks, self._count
        if masks is None:
            return (self,)
        if len(masks) == 1 or n <= 1:
            return (replace(self, mask=masks[0]),)
        one: list[dict[str, Any]] = [{"mask": mask} for mask in masks]
        for name in ("reference", "face_embeddings", "weights", "reference_mask"):
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) == n:
                for change, entry in zip(one, value, strict=True):
                    change[name] = [entry]
        return tuple(replace(self, **change) for change in one)


_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in fields(Reference)}
OF_A_RECIPE = ("repeats", "kept")
NAMES = tuple(name for name in _DEFAULTS if name not in OF_A_RECIPE)


def as_list(given: Any) -> list[Any]:
    """None, one or several -> a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _is(value: Any, default: Any) -> bool:
    """Is a value the default? Arrays and tensors, which compare number by number, are not."""
    return value is default or (type(value) is type(default) and bool(value == default))


def _plain(name: str, value: Any) -> Any:
    """As JSON has it."""
    if name in ("framing", "noise") and not isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain("", entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float):
        raise OptionError(
            f"{name} of type {type(value).__name__}",
            reason="a recipe can say words and numbers only",
            hint="Use adapter.encode() and give its result as image_prompt.",
        )
    return value


def _flag(name: str) -> str:
    return f"--{os.fspath(name).replace('_', '-')}"
