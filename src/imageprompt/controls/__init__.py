"""What a person asks of a reference (where, when, how strongly), compiled to a table of numbers.

Pure data and numbers: nothing here knows torch.
"""

from __future__ import annotations

from imageprompt.controls.asked import Controls, sliders
from imageprompt.controls.presets import PRESETS, Preset
from imageprompt.controls.scales import MAX_SCALE, Scale, check_scale, one_scale, site_scales
from imageprompt.controls.scaling import Scaling
from imageprompt.controls.schedules import CURVES, Schedule

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
