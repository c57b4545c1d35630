"""What each site of a base carries of a reference: measured with one site on at a time."""

from __future__ import annotations

from imageprompt.probing.probe import probe
from imageprompt.probing.result import ProbeResult

__all__ = ["ProbeResult", "probe"]
