"""export: a base with image prompts as inputs, for other runtimes."""

from __future__ import annotations

from imageprompt.deploy.export.run import Export, export

__all__ = ["Export", "export"]
