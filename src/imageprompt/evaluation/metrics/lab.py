"""Colour distance: how far apart the colours of two pictures are, wherever they are."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels
from imageprompt.evaluation.probing.measures import colour, picture_statistics


def lab(picture: Pixels, reference: Pixels) -> float:
    """Of two pictures of any size; each is reduced to 64 pixels on its longer side."""
    from PIL import Image

    return colour(*(picture_statistics(Image.fromarray(one)) for one in (picture, reference)))


METRIC = PixelMetric(
    name="lab",
    title="colour distance",
    summary="difference of the colours, whatever their places: style without any weights",
    formula="Fréchet distance of the CIELAB colours as normal distributions, at 64 pixels on the "
    "longer side",
    source="the measure of `imageprompt probe`",
    higher_is_better=False,
    range=(0, None),
    compare=lab,
    same_size=False,
    min_side=1,
)
