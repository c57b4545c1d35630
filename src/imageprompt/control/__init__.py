"""What a user asks of a reference (where, when, how strongly), compiled to a table of numbers.

Plain data and numbers, without torch. Presets are in `control.presets`, which is only loaded where
one is used.
"""

from __future__ import annotations

from imageprompt.control.controls import Controls, sliders
from imageprompt.control.scales import (
    DEFAULT_SCALE,
    MAX_SCALE,
    Scale,
    Scaling,
    check_scale,
    one_scale,
    site_scales,
)
from imageprompt.control.schedules import CURVES, Schedule

__all__ = [
    "CURVES",
    "DEFAULT_SCALE",
    "MAX_SCALE",
    "Controls",
    "Scale",
    "Scaling",
    "Schedule",
    "check_scale",
    "one_scale",
    "site_scales",
    "sliders",
]
