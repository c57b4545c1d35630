"""Pages about studies: one HTML file each, whole without a network."""

from __future__ import annotations

from imageprompt.evaluation.report.write import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
