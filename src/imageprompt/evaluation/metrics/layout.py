"""Layout distance: how differently the edges of two pictures lie, whatever their colours."""

from __future__ import annotations

from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels
from imageprompt.evaluation.probing import measures


def layout(picture: Pixels, reference: Pixels) -> float:
    """Of two pictures of any size; each is reduced to 64 pixels on the reference's longer side."""
    from PIL import Image

    size = (reference.shape[1], reference.shape[0])
    images = (Image.fromarray(one) for one in (picture, reference))
    return measures.layout(*(measures.picture_statistics(image, size) for image in images))


METRIC = PixelMetric(
    name="layout",
    title="layout distance",
    summary="difference of where things are and end, whatever their colours: content, no weights",
    formula="1 - correlation of the blurred edges in CIELAB, at 64 pixels on the longer side",
    source="the measure of `imageprompt probe`",
    higher_is_better=False,
    range=(0, 2),
    compare=layout,
    same_size=False,
    min_side=1,
)
