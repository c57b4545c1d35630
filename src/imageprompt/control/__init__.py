"""What a person asks of a reference (where, when, how strongly), compiled to a table of numbers.

Pure data and numbers: nothing here knows torch.
"""

from __future__ import annotations

from imageprompt.control.controls import Controls, sliders
from imageprompt.control.presets import PRESETS, Preset
from imageprompt.control.scales import (
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
    "MAX_SCALE",
    "PRESETS",
    "Controls",
    "Preset",
    "Scale",
    "Scaling",
    "Schedule",
    "check_scale",
    "one_scale",
    "site_scales",
    "sliders",
]
