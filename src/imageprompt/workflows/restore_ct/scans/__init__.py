"""Reading CT of strangers: DICOM and NIfTI, without running or allocating what they ask for."""

from imageprompt.workflows.restore_ct.scans.scan import Scan, check_alike, open_scan

__all__ = ["Scan", "check_alike", "open_scan"]
