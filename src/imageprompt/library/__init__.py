"""The style library: image prompts by name, each in one file of a folder that can be copied."""

from __future__ import annotations

from imageprompt.library.library import Library
from imageprompt.library.search import SearchHit, SearchResults
from imageprompt.library.style import Style

__all__ = ["Library", "SearchHit", "SearchResults", "Style"]
