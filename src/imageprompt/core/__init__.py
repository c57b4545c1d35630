"""Nouns and small tools without models: specs, errors, files on disk, the Hub, the console."""

from __future__ import annotations

import logging

__version__ = "0.1.0"


def _needs_no_torchvision(record: logging.LogRecord) -> bool:
    return "torchvision" not in record.getMessage()


# transformers logs, while diffusers imports it, that torchvision is missing. Nothing here needs
# torchvision, and a library does not print. This package is imported before either of them.
logging.getLogger("transformers.utils.import_utils").addFilter(_needs_no_torchvision)
