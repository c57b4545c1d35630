"""Reference: pictures with one adapter, what to take from them and how; plain data."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Annotated, Any

from imageprompt.control import DEFAULT_SCALE, Controls, Scale, Scaling
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.hub import PARTS, part_of, split_part
from imageprompt.core.schema import PYTHON_ONLY, Option, plain_numbers
from imageprompt.encoding.options import EncodeOptions
from imageprompt.generation import option_values as values
from imageprompt.generation.option_values import FILE, FILES, NUMBERS, STRING, TEXTS, or_null
from imageprompt.loading.recipe import ReferenceMetadata, check_limit
from imageprompt.loading.recipe.limits import LORA_MODE, RECORDED, RECORDED_OPTIONS

_CONTROLS = ("preset", "composition", "boost", "negative_scale", "schedule", "scaling", "lora")
_ENCODE_ARGUMENTS = {
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
"""Field of Reference -> argument of `Adapter.encode`."""
_ENCODED_ALREADY = ("image_prompt", "style")
SOURCES = ("reference", *_ENCODED_ALREADY)
"""The fields of which only one can be given; face embeddings can stand beside `reference`."""
TOKEN_FIELDS = (
    *(*SOURCES, "face_embeddings", "faces", "face", *_ENCODE_ARGUMENTS),
    *("adapter", "variant", "encoder"),
)
"""The fields that the tokens depend on."""

_source = partial(Option, group=values.REFERENCES)
_control = partial(Option, group=values.CONTROL)
_encoding = partial(Option, group=values.ENCODING)
_faces = partial(Option, group=values.FACES)


@dataclass(frozen=True, kw_only=True, repr=False)
class Reference:
    """Reference pictures (or an image prompt, style or face embeddings) with one adapter.

    Source: `reference`, a picture (path, bytes of a file, PIL image) or a list of them; or an
    `image_prompt` (object or file); or a `style` of the library; or `face_embeddings` (beside
    aligned face pictures for FaceID-plus); or `content`, a picture whose shape and place count,
    and `style`, a picture whose look counts (a file's name with its suffix or folder, or an
    object), for the two adapters of a pair (default: the base's "dual"). Any other name is of the
    library, for either of them.

    Models: `adapter`, a file, Hub id, loaded Adapter, or short name of one that comes with the base
    (None: the style's, else the base's "plus"); `variant` if the file does not tell; `reading` as
    in `Adapter.load`; `encoder`, `faces` (a model pack) and `face` as in `Adapter.attach` and
    `Adapter.encode`.

    Control: the arguments of `Adapter.use`. `mask` is one mask for all pictures (or face
    embeddings), or a list with one for each of them.

    Encoding: the arguments of `Adapter.encode`; `negative_reference` is its `negative`,
    `fusion_text` its `text`.
    """

    reference: Annotated[
        Any, _source("reference picture; may be repeated", "PIC", repeat=True, json=FILES)
    ] = None
    style: Annotated[
        Any,
        _source(
            "style of the library instead of pictures (see `imageprompt library`); or a picture "
            "whose look is taken, by a pair's style adapter",
            "NAME_OR_PIC",
            json=FILES,
        ),
    ] = None
    content: Annotated[
        Any,
        _source(
            "picture whose shape and place are taken, by a pair's content adapter; may be "
            "repeated; or the name of one in the library",
            "PIC_OR_NAME",
            repeat=True,
            json=FILES,
        ),
    ] = None
    image_prompt: Annotated[
        Any, _source("use a saved image prompt instead of pictures", "FILE", json=FILE)
    ] = None
    adapter: Annotated[
        Any,
        _source(
            "adapter file or Hub id; base or plus of the bundled stack (default: the style's "
            "adapter, else the base's own plus)",
            "FILE_OR_HUB_ID",
            json=FILE,
        ),
    ] = None
    variant: Annotated[
        str | None,
        _source(
            "variant of the adapter if its file does not tell: faceid-plus, faceid-plus-v2", "NAME"
        ),
    ] = None
    reading: Annotated[
        str | None,
        _source(
            "run the adapter by the equation of another program where those differ: comfyui, "
            "diffsynth (InstantX's for FLUX)",
            "NAME",
        ),
    ] = None
    encoder: Annotated[
        Any,
        _source(
            "image encoder (default: the one of the base, or beside the adapter)",
            "PATH_OR_HUB_ID",
            json=FILE,
        ),
    ] = None

    scale: Annotated[
        Scale,
        _control(
            f"strength, 0..2 (default {DEFAULT_SCALE}); or by site: style=1,layout=0.2; "
            "3:1.0,6:0.5; JSON; FILE.json",
            "S",
            parse=values.parse_scale,
            json=values.SCALE,
        ),
    ] = DEFAULT_SCALE
    preset: Annotated[
        str | None,
        _control("what to take: style, composition ... (see `imageprompt presets`)", "NAME"),
    ] = None
    composition: Annotated[
        float | None,
        _control(
            "composition strength of the preset 'style and composition', 0..2", "C", ge=0, le=2
        ),
    ] = None
    boost: Annotated[
        float | None, _control("boost of the precise presets, 0..2", "B", ge=0, le=2)
    ] = None
    negative_scale: Annotated[
        float | None,
        _control(
            "strength on the negative side of guidance, 0..2 (default: the scale)",
            "S",
            ge=0,
            le=2,
        ),
    ] = None
    schedule: Annotated[
        Any,
        _control(
            "part of the steps: 0-0.4, '0.1-0.8 ease-out', 1,0.8,0.5,0 (default: all)",
            "WHEN",
            json=or_null(STRING, values.list_of(values.NUMBER)),
        ),
    ] = None
    mask: Annotated[
        Any,
        _control(
            "where the reference acts: a picture, white inside; give one for all references, or "
            "one for each in the same order",
            "PIC",
            repeat=True,
            json=FILES,
        ),
    ] = None
    scaling: Annotated[
        Scaling,
        _control(
            "what the scale multiplies: 'V only' (default), 'K+V', 'K+V w/ C penalty', "
            "'K+mean(V) w/ C penalty'",
            "HOW",
            parse=str,
        ),
    ] = "V only"
    lora: Annotated[
        float, _control("strength of a FaceID adapter's LoRA, 0..2 (default 1)", "S", ge=0, le=2)
    ] = 1.0
    controls: Annotated[
        Controls | None,
        _control(
            "all of these options from a file of `imageprompt tune`",
            "FILE.json",
            parse=values.parse_controls,
        ),
        PYTHON_ONLY,
    ] = None
    """All of the control options in one object."""

    fusion: Annotated[
        str,
        _encoding(
            "how several references are combined: concat (default), average, weighted, "
            "attention-weighted ...",
            "HOW",
        ),
    ] = "concat"
    weights: Annotated[
        Any,
        _encoding(
            "weight of each reference: 0.7,0.3", "A,B", parse=values.parse_numbers, json=NUMBERS
        ),
    ] = None
    framing: Annotated[
        Any,
        _encoding(
            "how pictures are fitted to the encoder's square: squash, crop, crop:top, pad, tiles, "
            "crop+sharpen:0.3",
            "HOW",
            json=FILE,
        ),
    ] = None
    reference_mask: Annotated[
        Any,
        _encoding(
            "part of the reference to look at: a picture, white inside; may be repeated",
            "PIC",
            repeat=True,
            json=FILES,
        ),
    ] = None
    negative_reference: Annotated[
        Any,
        _encoding("picture to steer away from; may be repeated", "PIC", repeat=True, json=FILES),
    ] = None
    noise: Annotated[
        Any,
        _encoding(
            "noisy reference as the negative picture: 0.4, dissolve:0.4",
            "N",
            json={"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, STRING]},
        ),
    ] = 0.0
    noise_seed: Annotated[int, _encoding("seed of that noise (default 0)", "N", ge=0)] = 0
    subtract_text: Annotated[
        Any, _encoding("words to take out of the reference", "TEXT", json=TEXTS)
    ] = None
    subtract_strength: Annotated[
        float, _encoding("strength of --subtract-text (default 1)", "S")
    ] = 1.0
    fusion_text: Annotated[
        Any,
        _encoding(
            "text that --fusion attention-weighted compares the references with", "TEXT", json=TEXTS
        ),
    ] = None
    text_encoder: Annotated[
        Any,
        _encoding(
            "folder of the text encoder for these texts (default: the base's, if it fits)",
            "DIR",
            json=FILE,
        ),
    ] = None

    faces: Annotated[
        Any,
        _faces("insightface model pack that finds the faces in the references", "PACK", json=FILE),
    ] = None
    face: Annotated[
        int | str,
        _faces(
            "which face of a picture: largest (default), all, or an index from 0",
            "WHICH",
            parse=values.number_or_word,
        ),
    ] = "largest"
    face_embeddings: Annotated[
        Any,
        _faces(
            "file of face embeddings, instead of pictures or beside them; may be repeated",
            "FILE",
            repeat=True,
            json=FILES,
        ),
    ] = None
    face_strength: Annotated[
        float,
        _faces(
            "strength of the face's picture beside its identity, FaceID-plus v2 (default 1)", "S"
        ),
    ] = 1.0
    lora_mode: Annotated[
        str,
        _faces(
            "live (default), or merged into the base's weights while in use",
            "MODE",
            json={"enum": ["live", "merged"], **STRING},
        ),
    ] = "live"

    replayed_from: Annotated[ReferenceMetadata | None, PYTHON_ONLY] = None
    """Of a replay: what the recipe says of this reference."""
    tokens_from_recipe: Annotated[bool, PYTHON_ONLY] = False
    """Is `image_prompt` the one that came with the recipe?"""
    part: Annotated[str, PYTHON_ONLY] = ""
    """Of a style by name that was given for one adapter of a pair: content or style."""

    def __repr__(self) -> str:
        """Only what is not the default."""
        changed = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._changed(*_DEFAULTS))
        return f"Reference({changed})"

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            object.__setattr__(self, name, plain_numbers(getattr(self, name)))
        if hasattr(self.weights, "tolist"):
            object.__setattr__(self, "weights", self.weights.tolist())

    # ── parts ───────────────────────────────────────────────────────────────────────────────────

    @property
    def pictures(self) -> list[Any]:
        return as_list(self.reference)

    @property
    def embeddings(self) -> list[Any]:
        return as_list(self.face_embeddings)

    @property
    def empty(self) -> bool:
        """Has it no source?"""
        sources = (self.pictures, self.embeddings, as_list(self.content))
        return not any(sources) and not self.encoded

    @property
    def encoded(self) -> bool:
        """Is its source encoded already?"""
        return self.image_prompt is not None or self.style is not None

    @cached_property
    def effective_controls(self) -> Controls:
        """`controls`, or the control options as one object. Raises ScaleError, OptionError."""
        options = {name: getattr(self, name) for name in self._changed(*_CONTROLS)}
        if self.controls is None or self.scale != DEFAULT_SCALE:
            options["scale"] = self.scale
        return Controls.of(self.controls, **options)

    @property
    def encode_arguments(self) -> dict[str, Any]:
        """The arguments of `Adapter.encode` that are not the default."""
        changed = self._changed(*_ENCODE_ARGUMENTS)
        return {_ENCODE_ARGUMENTS[name]: getattr(self, name) for name in changed}

    @cached_property
    def encode_options(self) -> EncodeOptions:
        """The same, checked. Raises OptionError."""
        return EncodeOptions.of(**self.encode_arguments)

    @property
    def recorded_options(self) -> dict[str, Any]:
        """The same, as a recipe keeps them. Raises OptionError for what JSON cannot express."""
        found = self.encode_arguments | {
            name: getattr(self, name) for name in self._changed("face")
        }
        return {
            name: _plain(name, value) for name, value in found.items() if name in RECORDED_OPTIONS
        }

    def _changed(self, *names: str) -> list[str]:
        """Those of the fields that are not the default."""
        return [name for name in names if not _equal(getattr(self, name), _DEFAULTS[name])]

    # ── checks ──────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Check what needs no file to be opened. Raises OptionError, ScaleError, PictureError."""
        if self.content is not None or is_picture(self.style):
            for part in self.by_adapter():
                part.check()
            return
        controls = self.effective_controls
        sources = [name for name in SOURCES if as_list(getattr(self, name))]
        if len(sources) > 1 or (self.encoded and self.embeddings):
            names = [*sources, *(["face_embeddings"] if self.embeddings else [])]
            raise OptionError(
                " and ".join(flag_of(name) for name in names),
                reason="cannot be combined",
                hint="Give one of them.",
            )
        if self.empty:
            self._check_empty(controls)
            return
        _ = self.encode_options  # raises
        self._check_encoded()
        loaded = not isinstance(self.adapter, str | os.PathLike | None)
        for name in ("variant", "reading"):
            value = getattr(self, name)
            if value is not None and loaded:
                raise OptionError(
                    f"{name} {value!r} of a loaded adapter",
                    reason=f"a loaded adapter has its {name} already",
                    hint=f"Pass {name}= to Adapter.load().",
                )
        self._check_weights()
        controls.as_dict()  # these raise for what a recipe cannot keep
        check_limit("encode options", RECORDED, self.recorded_options)
        check_limit("lora mode", LORA_MODE, self.lora_mode)
        if self.masks is not None:
            self._check_masks(self.masks)

    def _check_empty(self, controls: Controls) -> None:
        """Without a source there is nothing to control."""
        changed = self._changed("mask", *_CONTROLS, *_ENCODE_ARGUMENTS, "faces", "face", "controls")
        if changed:
            raise PictureError(
                f"{flag_of(changed[0])} without a reference",
                reason="has no effect",
                hint="Give --reference PICTURE or --style NAME (reference= or style= in Python).",
            )
        if controls.scale != 0:
            raise PictureError(
                "no reference picture",
                reason="an image prompt needs at least one",
                hint="Give --reference PICTURE (reference= in Python), or scale 0 for text alone.",
            )

    def _check_encoded(self) -> None:
        if not self.encoded or self.tokens_from_recipe:
            return
        changed = self._changed(*_ENCODE_ARGUMENTS, "faces", "face", "encoder")
        if changed:
            source = flag_of("style" if self.style else "image_prompt")
            raise OptionError(
                f"{flag_of(changed[0])} with {source}",
                reason=f"what {source} names is encoded already",
                hint="Give the pictures instead, or leave it out.",
            )

    def _check_weights(self) -> None:
        n = len(self.pictures)  # a file of embeddings, or a picture, may have several faces
        countable = self.weights is not None and n > 0 and self.face != "all"
        if countable and not self.encoded and len(self.weights) != n:
            raise OptionError(
                f"{len(self.weights)} weight(s) for {n} reference(s)",
                reason="the numbers differ",
                hint="Give one weight for each reference.",
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
                reason="the numbers differ",
                hint="Give --mask once, or as often as --reference and in the same order.",
            )
        if len(masks) > 1 and self.fusion != "concat":
            raise OptionError(
                f"fusion {self.fusion!r} with {len(masks)} masks",
                reason="references with a mask each are not combined",
                hint="Give one mask for all, or leave the fusion out.",
            )

    # ── content and style ───────────────────────────────────────────────────────────────────────

    def by_adapter(self) -> tuple[Reference, ...]:
        """Content and style as a Reference each, for their adapters of the pair; else this one.

        Raises OptionError for another source beside them, and for an adapter that is no pair.
        """
        if self.content is None and not is_picture(self.style):
            return (self,)
        others = ("reference", "image_prompt", "face_embeddings")
        for name in others:
            if as_list(getattr(self, name)):
                raise OptionError(
                    f"{flag_of('content' if self.content is not None else 'style')} and "
                    f"{flag_of(name)}",
                    reason="cannot be combined",
                    hint="Give one of them, or start another reference: --also, also= in Python.",
                )
        found = []
        for part in PARTS:
            source = getattr(self, part)
            if source is None:
                continue
            name = source[0] if isinstance(source, list | tuple) and len(source) == 1 else source
            changes: dict[str, Any] = {"content": None, "style": None}
            if is_picture(name):
                changes |= {"reference": source, "adapter": _adapter_of_pair(self.adapter, part)}
            else:  # of the library, with its own adapter
                changes |= {"style": name, "adapter": None, "part": part}
            found.append(self._replaced(**changes))
        return tuple(found)

    # ── a mask for each picture ─────────────────────────────────────────────────────────────────

    @property
    def masks(self) -> list[Any] | None:
        """The masks as a list, or None. An array written as nested lists is one mask."""
        if self.mask is None:
            return None
        if not isinstance(self.mask, list | tuple):
            return [self.mask]
        numbers = self.mask and isinstance(self.mask[0], list | tuple | int | float)
        return [self.mask] if numbers else list(self.mask)

    @property
    def _count(self) -> int:
        """Number of pictures, or of files of face embeddings."""
        return len(self.pictures) or len(self.embeddings)

    def split_by_mask(self) -> tuple[Reference, ...]:
        """One Reference per picture if each picture has its own mask, else one for all."""
        masks, n = self.masks, self._count
        if masks is None:
            return (self,)
        if len(masks) == 1 or n <= 1:
            return (self._replaced(mask=masks[0]),)
        changes: list[dict[str, Any]] = [{"mask": mask} for mask in masks]
        for name in ("reference", "face_embeddings", "weights", "reference_mask"):
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) == n:
                for change, entry in zip(changes, value, strict=True):
                    change[name] = [entry]
        return tuple(self._replaced(**change) for change in changes)

    def _replaced(self, **changes: Any) -> Reference:
        """A changed copy that keeps what was checked and does not depend on the changes."""
        copy = replace(self, **changes)
        kept = {"effective_controls"}
        if not changes.keys() & _ENCODE_ARGUMENTS.keys():
            kept.add("encode_options")
        for name in kept & self.__dict__.keys():
            copy.__dict__[name] = self.__dict__[name]
        return copy


_NUMBERS = (
    *("scale", "composition", "boost", "lora", "negative_scale"),
    *("weights", "noise", "noise_seed", "subtract_strength", "face_strength"),
)
_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in fields(Reference)}
REPLAY_FIELDS = ("replayed_from", "tokens_from_recipe")
REFERENCE_FIELDS = tuple(name for name in _DEFAULTS if name not in (*REPLAY_FIELDS, "part"))
"""The fields that a user can set."""


def as_list(value: Any) -> list[Any]:
    """None, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def is_picture(style: Any) -> bool:
    """Is it a picture, and not the name of a style in the library?

    A text is one if it has the suffix of a picture, or a folder.
    """
    if isinstance(style, str):
        return _PICTURE.search(style) is not None
    return style is not None and not isinstance(style, int | float | dict)


_PICTURE = re.compile(r"[/\\:]|\.(png|jpe?g|webp|bmp|gif|tiff?)$", re.IGNORECASE)


def _adapter_of_pair(adapter: Any, part: str) -> Any:
    """One adapter of a pair, which is given by name or loaded. Raises OptionError."""
    if adapter is None:
        adapter = bundled.PAIR
    if isinstance(adapter, str | os.PathLike):
        name, named = split_part(adapter)
        if not named:
            return part_of(name, part)
    elif (found := getattr(adapter, part, None)) is not None:
        return found
    raise OptionError(
        f"{flag_of(part)} with {adapter!r:.80}",
        reason="needs a pair of adapters, this is a single one",
        hint="Name the file that holds both, or leave --adapter out for the base's own pair.",
    )


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _equal(value: Any, default: Any) -> bool:
    """Is it the default? Arrays and tensors, which compare element by element, are not."""
    return value is default or (type(value) is type(default) and bool(value == default))


def _plain(name: str, value: Any) -> Any:
    """The value as JSON expresses it."""
    if name in ("framing", "noise") and not isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain("", entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float):
        raise OptionError(
            f"{name} of type {type(value).__name__}",
            reason="a recipe can keep texts and numbers only",
            hint="Use adapter.encode() and pass its result as image_prompt.",
        )
    return value
