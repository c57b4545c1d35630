"""EncodeOptions: how the references of a prompt are framed, weighed and mixed; checked, and put in words.

Torch is not needed to state one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.core.spec import AdapterSpec
from imageprompt.encoding import fusion as fusions
from imageprompt.encoding.images.framing import Framing
from imageprompt.encoding.images.noise import Noise

Weights = tuple[tuple[float, ...], ...]
"""One row for each prompt, or one for all."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """The wishes of `Adapter.encode`, which says what they mean; make one with `of`."""

    fusion: str = fusions.CONCAT
    weights: Weights | None = None
    framing: Framing | None = None
    reference_mask: Any = None
    negative: Any = None
    noise: Noise = Noise()  # noqa: RUF009  (frozen)
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
        """From what a user writes. Raises OptionError."""
        named = fusions.named(fusion)
        made = cls(
            fusion=named,
            weights=_weights(weights, named),
            framing=Framing.parse(framing) if isinstance(framing, str) else framing,
            noise=Noise.parse(noise),
            **others,
        )
        if not isinstance(made.framing, Framing | None):
            raise OptionError(
                f"framing={framing!r}", reason="a Framing, or its words such as 'squash'"
            )
        if not isinstance(made.noise_seed, int) or made.noise_seed < 0:
            raise OptionError(f"noise_seed={made.noise_seed!r}", reason="a whole number from 0")
        _check_number("subtract_strength", made.subtract_strength, "InstantStyle uses 0.5 to 1.")
        _check_number("face_strength", made.face_strength, "1 is as published; 2 is closer.")
        if made.text is not None and made.fusion != fusions.ATTENTION:
            raise OptionError(
                f"text= with fusion {made.fusion!r}",
                reason="only 'attention-weighted' weighs references against a text",
                hint="Leave it out, or use that fusion.",
            )
        made._check_idle()
        return made

    def _check_idle(self) -> None:
        """Numbers of what is not asked for would do nothing. Raises OptionError."""
        words = self.text is not None or self.subtract_text is not None
        for idle, what, needed in (
            (self.noise_seed != 0 and not self.noise, "noise_seed=", "noise="),
            (
                self.subtract_strength != 1 and self.subtract_text is None,
                "subtract_strength=",
                "subtract_text=",
            ),
            (self.text_encoder is not None and not words, "text_encoder=", "words to read"),
        ):
            if idle:
                raise OptionError(
                    f"{what} without {needed}",
                    reason="it has nothing to act on",
                    hint="Give both, or leave it out.",
                )

    def check(self, spec: AdapterSpec, pictures: object, null_features: object) -> None:
        """What cannot be done with this variant or these references. Raises OptionError."""
        from imageprompt.variants import VARIANTS

        variant, feature = f"a {spec.variant} adapter", spec.feature
        shortcut = bool(getattr(VARIANTS[spec.variant], "shortcut", False))
        faces = feature.reads_faces
        noise, null_picture = bool(self.noise), self.negative is not None or bool(self.noise)
        for wrong, what, rule, remedy in (
            (
                self.subtract_text is not None and feature.image != "image_embeds",
                f"subtract_text= with {variant}",
                f"it reads {feature}, which share no space with words",
                "Use an adapter that reads image_embeds (base).",
            ),
            (
                self.text is not None and faces,
                f"text= with {variant}",
                "faces are compared with one another only",
                "Leave the text out.",
            ),
            (
                self.fusion in fusions.NOT_FOR_FACES and faces,
                f"fusion {self.fusion!r} with {variant}",
                "single numbers of a face's embedding mean nothing",
                "Use 'average', or leave the faces side by side.",
            ),
            (
                self.face_strength != 1 and not shortcut,
                f"face_strength= with {variant}",
                "FaceID-plus v2 alone adds what it sees in the picture to the identity",
                "Leave it out.",
            ),
            (
                null_picture and faces and feature.image is None,
                f"a negative picture or noise with {variant}",
                "it reads no picture; no face is an embedding of zeros",
                "Leave it out.",
            ),
            (
                noise and self.negative is None and (faces or pictures is None),
                f"noise with {variant}" if faces else "noise beside ready-made features",
                "it is put on a picture",
                "Give negative= a picture.",
            ),
            (
                null_picture and null_features is not None,
                "null_features= beside a negative picture or noise",
                "both stand for no picture",
                "Give one of them.",
            ),
            (
                pictures is None and (self.framing or self.reference_mask) is not None,
                "framing= or reference_mask= beside ready-made features",
                "they change pictures",
                "Give pictures, or leave it out.",
            ),
        ):
            if wrong:
                raise OptionError(what, reason=rule, hint=remedy)

    def row(self, prompt: int, prompts: int, references: int) -> tuple[float, ...] | None:
        """The weights of one prompt's references. Raises OptionError where the numbers differ."""
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
                reason="one weight for each reference",
                hint="Give as many as there are references.",
            )
        return row

    def words(self) -> dict[str, str]:
        """All that shapes the tokens and is not the default, as an image prompt's metadata."""
        said = {
            "fusion": self.fusion if self.fusion != fusions.CONCAT else "",
            "weights": "; ".join(
                ", ".join(f"{weight:g}" for weight in row) for row in self.weights or ()
            ),
            "framing": str(self.framing or ""),
            "reference_mask": "yes" if self.reference_mask is not None else "",
            "negative": "yes" if self.negative is not None else "",
            "noise": f"{self.noise}, seed {self.noise_seed}" if self.noise else "",
            "face_strength": f"{self.face_strength:g}" if self.face_strength != 1 else "",
            "text": _quoted(self.text),
            "subtract_text": _quoted(self.subtract_text),
        }
        if said["subtract_text"]:
            said["subtract_strength"] = f"{self.subtract_strength:g}"
        return {name: words for name, words in said.items() if words}


def _check_number(name: str, value: object, remedy: str) -> None:
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        raise OptionError(f"{name}={value!r}", reason="a finite number", hint=remedy)


def _weights(weights: object, fusion: str) -> Weights | None:
    nested = isinstance(weights, list | tuple) and any(
        isinstance(row, list | tuple) for row in weights
    )
    rows = list(weights) if nested else [weights]  # type: ignore[call-overload]
    checked = [fusions.checked_weights(row, fusion) for row in rows]
    return None if weights is None else tuple(row or () for row in checked)


def _quoted(text: object) -> str:
    if text is None:
        return ""
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, list | tuple) and all(isinstance(line, str) for line in texts):
        return "; ".join(texts)
    return "ready-made features"
