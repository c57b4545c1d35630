"""Probing: what each site of a base takes from a reference, measured with one site on at a time."""

from __future__ import annotations

from imageprompt.evaluation.probing.result import ProbeResult
from imageprompt.evaluation.probing.run import probe

__all__ = ["ProbeResult", "probe"]
