"""EncodeOptions: how the references of a prompt are framed, weighted and fused.

Torch is not needed to make or check one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError, PromptError
from imageprompt.core.schema import plain_number, plain_numbers
from imageprompt.core.spec import AdapterSpec
from imageprompt.encoding import fusion as fusions
from imageprompt.encoding.encoders.contract import LARGEST, FaceChoice, check_face_choice

if TYPE_CHECKING:
    from imageprompt.encoding.images.framing import Framing
    from imageprompt.encoding.images.noise import Noise

Weights = tuple[tuple[float, ...], ...]
"""One row for each prompt, or one for all."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """The options of `Adapter.encode`, which documents them; make one with `of`."""

    fusion: str = fusions.CONCAT
    weights: Weights | None = None
    framing: Framing | None = None
    reference_mask: Any = None
    negative: Any = None
    noise: Noise | None = None
    noise_seed: int = 0
    subtract_text: Any = None
    subtract_strength: float | int = 1.0
    text: Any = None
    text_encoder: Any = None
    face_strength: float | int = 1.0

    @classmethod
    def of(
        cls,
        *,
        fusion: str = fusions.CONCAT,
        weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        framing: Framing | str | None = None,
        noise: Noise | float | str = 0.0,
        **others: Any,
    ) -> EncodeOptions:
        """Parse and check what a user writes. Raises OptionError."""
        fusion = fusions.parse_fusion(fusion)
        others = {
            name: plain_number(value) if name in _NUMBERS else value
            for name, value in others.items()
        }
        options = cls(
            fusion=fusion,
            weights=_parse_weights(weights, fusion),
            framing=None if framing is None else _parse_framing(framing),
            noise=_parse_noise(noise),
            **others,
        )
        if not isinstance(options.noise_seed, int) or options.noise_seed < 0:
            raise OptionError(
                f"noise_seed={options.noise_seed!r}", reason="not a whole number >= 0"
            )
        _check_number("subtract_strength", options.subtract_strength, "InstantStyle uses 0.5 to 1.")
        _check_number("face_strength", options.face_strength, "1 is as published; 2 is closer.")
        if options.text is not None and options.fusion != fusions.ATTENTION:
            raise OptionError(
                f"text= with fusion {options.fusion!r}",
                reason="only 'attention-weighted' weights references by a text",
                hint="Leave it out, or use that fusion.",
            )
        options._check_unused()
        return options

    def _check_unused(self) -> None:
        """Raises OptionError for an option that needs another one to have an effect."""
        reads_text = self.text is not None or self.subtract_text is not None
        for unused, what, needed in (
            (self.noise_seed != 0 and not self.noise, "noise_seed=", "noise="),
            (
                self.subtract_strength != 1 and self.subtract_text is None,
                "subtract_strength=",
                "subtract_text=",
            ),
            (
                self.text_encoder is not None and not reads_text,
                "text_encoder=",
                "text= or subtract_text=",
            ),
        ):
            if unused:
                raise OptionError(
                    f"{what} without {needed}",
                    reason="it would have no effect",
                    hint="Give both, or leave it out.",
                )

    def check(self, spec: AdapterSpec, pictures: object, null_features: object) -> None:
        """Raises OptionError for what this variant or these references cannot do."""
        from imageprompt.variants import VARIANTS

        variant, feature = f"a {spec.variant} adapter", spec.feature
        shortcut = bool(getattr(VARIANTS[spec.variant], "shortcut", False))
        faces = feature.reads_faces
        noise, negative = bool(self.noise), self.negative is not None or bool(self.noise)
        for wrong, what, reason, hint in (
            (
                self.subtract_text is not None and feature.image != "image_embeds",
                f"subtract_text= with {variant}",
                f"it reads {feature}, which share no space with text features",
                "Use an adapter that reads image_embeds (base).",
            ),
            (
                self.text is not None and faces,
                f"text= with {variant}",
                "faces can only be compared with one another",
                "Leave the text out.",
            ),
            (
                self.fusion in fusions.NOT_FOR_FACES and faces,
                f"fusion {self.fusion!r} with {variant}",
                "the single numbers of a face embedding have no meaning",
                "Use 'average', or leave the faces side by side.",
            ),
            (
                self.face_strength != 1 and not shortcut,
                f"face_strength= with {variant}",
                "only FaceID-plus v2 weights the picture's features beside the identity",
                "Leave it out.",
            ),
            (
                negative and feature.faces_only,
                f"a negative picture or noise with {variant}",
                "it reads no picture; its null is an embedding of zeros",
                "Leave it out.",
            ),
            (
                noise and self.negative is None and (faces or pictures is None),
                f"noise with {variant}" if faces else "noise beside ready-made features",
                "noise is added to a picture",
                "Give negative= a picture.",
            ),
            (
                negative and null_features is not None,
                "null_features= beside a negative picture or noise",
                "both stand for no picture",
                "Give one of them.",
            ),
            (
                pictures is None and (self.framing or self.reference_mask) is not None,
                "framing= or reference_mask= beside ready-made features",
                "they apply to pictures",
                "Give pictures, or leave it out.",
            ),
        ):
            if wrong:
                raise OptionError(what, reason=reason, hint=hint)

    def check_faces(
        self, spec: AdapterSpec, pictures: object, embeddings: object, face: FaceChoice
    ) -> None:
        """Raises PromptError, OptionError for face inputs that the variant does not read, or lacks.

        `embeddings` are face embeddings, `face` chooses among the faces found in the pictures.
        """
        check_face_choice(face)
        given, reads_faces = embeddings is not None, spec.feature.reads_faces
        faces_only, variant = spec.feature.faces_only, f"a {spec.variant} adapter"
        framed = self.framing is not None or self.reference_mask is not None
        for wrong, what, reason, hint in (
            (
                given and not reads_faces,
                f"face embeddings for {variant}",
                f"it reads {spec.feature} of pictures",
                "Give the pictures.",
            ),
            (
                given and pictures is not None and faces_only,
                f"pictures beside embeddings for {variant}",
                "it reads embeddings only",
                "Give one of the two.",
            ),
            (
                given and pictures is None and not faces_only,
                f"embeddings without pictures for {variant}",
                "its image encoder reads the face crops too",
                "Give their crops too: encode([crop], embeddings=...).",
            ),
            (
                framed and faces_only,
                f"framing= or reference_mask= with {variant}",
                "it reads embeddings of faces, which are found in whole pictures",
                "Leave it out.",
            ),
            (
                face != LARGEST and (given or not reads_faces),
                f"face={face!r}",
                "it chooses among the faces found in a picture",
                "Leave it out.",
            ),
        ):
            if wrong:
                raise PromptError(what, reason=reason, hint=hint)

    def weights_of(self, prompt: int, prompts: int, references: int) -> tuple[float, ...] | None:
        """The weights of one prompt's references. Raises OptionError if the numbers differ."""
        if self.weights is None:
            return None
        if len(self.weights) not in (1, prompts):
            raise OptionError(
                f"{len(self.weights)} lists of weights",
                reason=f"there are {prompts} prompt(s)",
                hint="Give one list for each prompt, or one for all.",
            )
        row = self.weights[prompt if len(self.weights) > 1 else 0]
        if len(row) != references:
            raise OptionError(
                f"{len(row)} weight(s) for {references} reference(s)",
                reason="each reference needs one weight",
                hint="Give as many weights as references.",
            )
        return row

    def as_metadata(self) -> dict[str, str]:
        """Every option that shapes the tokens and is not the default, as text."""
        texts = {
            "fusion": self.fusion if self.fusion != fusions.CONCAT else "",
            "weights": "; ".join(
                ", ".join(f"{weight:g}" for weight in row) for row in self.weights or ()
            ),
            "framing": str(self.framing or ""),
            "reference_mask": "yes" if self.reference_mask is not None else "",
            "negative": "yes" if self.negative is not None else "",
            "noise": f"{self.noise}, seed {self.noise_seed}" if self.noise else "",
            "face_strength": f"{self.face_strength:g}" if self.face_strength != 1 else "",
            "text": _quote(self.text),
            "subtract_text": _quote(self.subtract_text),
        }
        if texts["subtract_text"]:
            texts["subtract_strength"] = f"{self.subtract_strength:g}"
        return {name: text for name, text in texts.items() if text}


_NUMBERS = ("noise_seed", "subtract_strength", "face_strength")


def _check_number(name: str, value: object, hint: str) -> None:
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        raise OptionError(f"{name}={value!r}", reason="not a finite number", hint=hint)


def _parse_framing(framing: object) -> Framing:
    from imageprompt.encoding.images.framing import Framing

    if isinstance(framing, str):
        return Framing.parse(framing)
    if not isinstance(framing, Framing):
        raise OptionError(f"framing={framing!r}", reason="neither a Framing nor text like 'squash'")
    return framing


def _parse_noise(noise: Noise | float | str) -> Noise | None:
    noise = plain_number(noise)
    if type(noise) in (int, float) and noise == 0:
        return None
    from imageprompt.encoding.images.noise import Noise

    return Noise.parse(noise)


def _parse_weights(weights: object, fusion: str) -> Weights | None:
    weights = weights.tolist() if hasattr(weights, "tolist") else plain_numbers(weights)
    nested = isinstance(weights, list | tuple) and any(
        isinstance(row, list | tuple) for row in weights
    )
    rows = list(weights) if nested else [weights]  # type: ignore[call-overload]
    parsed = [fusions.parse_weights(row, fusion) for row in rows]
    return None if weights is None else tuple(row or () for row in parsed)


def _quote(text: object) -> str:
    if text is None:
        return ""
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, list | tuple) and all(isinstance(line, str) for line in texts):
        return "; ".join(texts)
    return "ready-made features"
