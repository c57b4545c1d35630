"""One file per metric.

A file in this folder that ends in a constant `METRIC` is a metric and needs no registration.
"""

from __future__ import annotations

from imageprompt.core.registry import Registry
from imageprompt.evaluation.metrics.contract import (
    FeatureMetric,
    Metric,
    PixelMetric,
    SetMetric,
    TextMetric,
    TwoSetMetric,
)

__all__ = [
    "METRICS",
    "FeatureMetric",
    "Metric",
    "PixelMetric",
    "SetMetric",
    "TextMetric",
    "TwoSetMetric",
]

METRICS: Registry[Metric] = Registry(__name__, "METRIC")
