"""Calibration of words: scales that space them evenly in what the pictures show of the styles.

The score of a picture is the cosine of its embedding and a style's, by the image encoder that made
the style. It is measured over scales, styles and seeds; the curve, 0 at scale 0 and 1 where it no
longer rises, belongs to one adapter, base and preset, and is kept in the styles' recipes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from imageprompt.core.errors import EncoderError, OptionError
from imageprompt.workflows.concept.phrase import STRONGEST

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from imageprompt.encoding.encoders import Encoder
    from imageprompt.library import Library, Style
    from imageprompt.workflows.job import Job

SCALES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3)
"""Beside 0; the table reads between them."""
SEEDS, MOST_STYLES = 4, 6
ENTRY = "calibration"
"""Its key in the recipe of a style."""
_FULL = 0.98
"""Share of the highest score at which the curve counts as saturated."""
_LEAST = 0.05
"""Rise of the cosine below which there is nothing to calibrate."""


@dataclass(frozen=True)
class Curve:
    """Scales from 0 up, and the measured score at each, from 0 to 1; both rise."""

    scales: Sequence[float]
    scores: Sequence[float]
    cosines: tuple[float, float]
    """The mean cosine that score 0 and score 1 stand for."""
    prompt: str
    styles: int
    pictures: int

    def scale(self, strength: float) -> float:
        """The scale at which the score is strength / 1.2."""
        return round(float(np.interp(strength / STRONGEST, self.scores, self.scales)), 4)

    @classmethod
    def of(cls, plain: Any) -> Curve | None:
        """From the recipe of a style, which a stranger may have written; None if it is no curve."""
        try:
            curve = cls(**plain)
            rows = np.asarray([curve.scales, curve.scores], np.float64)
            low, high = map(float, curve.cosines)
            curve = replace(curve, cosines=(low, high))
        except (TypeError, ValueError):
            return None
        sound = (
            rows.ndim == 2
            and 2 <= rows.shape[1] <= 64
            and np.isfinite(rows).all()
            and (np.diff(rows) > 0).all()
            and (rows[:, 0] == 0).all()
            and rows[0, -1] <= 2
            and abs(rows[1, -1] - 1) < 1e-6
            and math.isfinite(low)
            and math.isfinite(high)
        )
        return curve if sound else None


def curve_of(scales: Sequence[float], cosines: Sequence[float], **facts: Any) -> Curve:
    """The curve of mean cosines at scales that begin with 0. Raises OptionError if it is flat."""
    rising = np.maximum.accumulate(np.asarray(cosines, np.float64))
    low, high = float(rising[0]), float(rising[-1])
    if not high - low >= _LEAST:
        raise OptionError(
            "calibration",
            reason=f"the pictures come no nearer to the styles at any scale (cosine {low:.2f} to "
            f"{high:.2f})",
            hint="Leave words about the style out of the prompt, or take another preset.",
        )
    full = int(np.argmax(rising >= low + _FULL * (high - low)))
    scores = (rising[: full + 1] - low) / (rising[full] - low)
    kept = np.flatnonzero(np.diff(scores, prepend=-1.0) > 1e-6)
    return Curve(
        [float(scales[i]) for i in kept.tolist()],
        [round(float(scores[i]), 6) for i in kept.tolist()],
        (round(low, 4), round(float(rising[full]), 4)),
        **facts,
    )


def key_of(job: Job, preset: str | None) -> str:
    """What a curve belongs to, beside the adapter of the style."""
    return f"{job.engine.loaded.record.hash[:16]} {preset or 'everything'}"


def stored(styles: Sequence[Style], adapter: str, key: str) -> Curve | None:
    """The curve of this adapter in any of the styles."""
    for style in styles:
        entries = style.recipe.get(ENTRY)
        if style.adapter.hash != adapter or not isinstance(entries, Mapping) or key not in entries:
            continue
        curve = Curve.of(entries[key])
        if curve is not None:
            return curve
        warnings.warn(f"style {style.name!r}: its calibration is damaged", stacklevel=2)
    return None


def keep(library: Library, styles: Sequence[Style], key: str, curve: Curve) -> None:
    """Write the curve to the recipes of these styles."""
    plain = asdict(curve) | {"cosines": list(curve.cosines)}
    for style in styles:
        entries = style.recipe.get(ENTRY)
        entries = dict(entries) if isinstance(entries, Mapping) else {}
        library.record(style.name, **{ENTRY: entries | {key: plain}})


def calibrate(
    job: Job,
    library: Library,
    styles: Sequence[Style],
    encoder: Encoder,
    *,
    prompt: str,
    preset: str | None,
    size: tuple[int, int] | None,
) -> Curve:
    """Sample all scales with these styles of one adapter, and measure. Raises OptionError."""
    alone = job.generate(prompt, scale=0.0, num_images=SEEDS, size=size).images
    cosines = np.zeros((len(styles), len(SCALES) + 1))
    for row, style in zip(cosines, styles, strict=True):
        row[0] = scores(alone, style, encoder).mean()
        for column, scale in enumerate(SCALES, 1):
            made = job.generate(
                prompt,
                style=style.name,
                library=library.folder,
                preset=preset,
                scale=scale,
                num_images=SEEDS,
                size=size,
            )
            row[column] = scores(made.images, style, encoder).mean()
    return curve_of(
        (0.0, *SCALES),
        cosines.mean(0).tolist(),
        prompt=prompt,
        styles=len(styles),
        pictures=cost(len(styles)),
    )


def cost(styles: int) -> int:
    """Pictures that a calibration with so many styles samples."""
    return SEEDS * (1 + styles * len(SCALES))


def scores(pictures: Sequence[Image], style: Style, encoder: Encoder) -> NDArray[np.float64]:
    """[n]: cosines of the pictures and the style's mean embedding."""
    from imageprompt.checkpoint.torch_io import tensor_of
    from imageprompt.evaluation.metrics.contract import unit
    from imageprompt.library.search import pooled_embeddings

    rows = pooled_embeddings(pictures, encoder)
    assert rows is not None
    mean = unit(tensor_of(style.tensors["embedding"]).float().numpy()).mean(0, keepdims=True)
    cosines: NDArray[np.float64] = (unit(rows.float().numpy()) @ unit(mean).T)[:, 0]
    return cosines


def encoder_of(job: Job, styles: Sequence[Style]) -> Encoder:
    """The image encoder that made all of these styles. Raises EncoderError."""
    from imageprompt.encoding.encoders.contract import pooled_feature
    from imageprompt.library.encoder_setup import load_with_encoder

    first = styles[0]
    base = job.engine.loaded.name if job.on_bundled_base else job.inputs.base
    found = load_with_encoder(
        adapter=first.adapter.name or job.inputs.adapter, encoder=job.inputs.encoder, base=base
    ).adapter.encoder
    if found is None or pooled_feature(found) is None:
        raise _cannot_measure(first, "its encoder has no embedding of whole pictures")
    for style in styles:
        if style.encoder is None or style.encoder.hash != found.fingerprint:
            raise _cannot_measure(style, "another encoder made it")
        if "embedding" not in style.tensors:
            raise _cannot_measure(style, "it has no embedding")
    return found


def _cannot_measure(style: Style, reason: str) -> EncoderError:
    return EncoderError(
        f"the measure of style {style.name!r}",
        reason=reason,
        hint="Give the encoder that made it (--encoder), or add its pictures again.",
    )


def others(library: Library, styles: Sequence[Style]) -> Iterator[Style]:
    """Further styles of the same adapter and encoder, by name."""
    first, known = styles[0], {one.name for one in styles}
    for one in library.styles():
        same = one.adapter.hash == first.adapter.hash and one.encoder == first.encoder
        if same and one.name not in known and "embedding" in one.tensors:
            yield one
