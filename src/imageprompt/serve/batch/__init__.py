"""batch: many rows to pictures, by several processes, killed and resumed at any moment."""

from __future__ import annotations

from imageprompt.serve.batch.run import batch, status, verify

__all__ = ["batch", "status", "verify"]
