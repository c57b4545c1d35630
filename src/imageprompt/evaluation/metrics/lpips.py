"""LPIPS: how different two pictures look to a network that was fitted to people's judgements."""

from __future__ import annotations

from imageprompt.evaluation.extractors.contract import PairBackbone
from imageprompt.evaluation.metrics.contract import PixelMetric, Pixels


def lpips(picture: Pixels, reference: Pixels, network: PairBackbone) -> float:
    return network.distance(picture, reference)


METRIC = PixelMetric(
    name="lpips",
    title="LPIPS",
    summary="perceived difference of the same places; for reconstruction, not for likeness",
    formula="weighted squared differences of normalised features, mean over the positions, sum "
    "over the layers; the trunks (alex, vgg, squeeze) cannot be compared with each other",
    source="Zhang et al., arXiv 1801.03924",
    higher_is_better=False,
    range=(0, None),
    extractor="lpips",
    compare=lpips,
    min_side=32,
)
