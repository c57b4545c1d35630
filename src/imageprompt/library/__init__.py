"""The style library: image prompts by name, each a file in a folder that can be copied."""

from __future__ import annotations

from imageprompt.library.library import Library
from imageprompt.library.search import Found, Results
from imageprompt.library.style import Style

__all__ = ["Found", "Library", "Results", "Style"]
