"""One file per source of training data: a list, a folder, shards; records are read by number.

A file in this folder that ends in a constant `SOURCE` is a source; nothing else needs to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.core.registry import Registry
from imageprompt.core.yaml_file import brief
from imageprompt.training.data.sources.contract import DataOptions, Record, Records, Source

SOURCES: Registry[Source] = Registry(__name__, "SOURCE")

__all__ = ["SOURCES", "DataOptions", "Record", "Records", "Source", "open_data"]


def open_data(data: str | Mapping[str, Any] | DataOptions) -> Records:
    """The records named by a config's `data`. Raises OptionError, NotFoundError."""
    options = DataOptions.of(data)
    if options.format:
        source = SOURCES[options.format]
    else:
        matching = next((one for one in SOURCES if one.claims(options.path)), None)
        if matching is None:
            raise OptionError(
                f"data {brief(options.path)}",
                reason="not a folder, and not named like a list or like shards",
                hint=f"Give one of: {'; '.join(one.summary for one in SOURCES)}.",
            )
        source = matching
    records = source.open(options)
    if not len(records):
        problems = "; ".join(f"{name}: {why}" for name, why in records.problems().items())
        raise OptionError(
            f"data {brief(options.path)}",
            reason=f"contains no samples{f' ({problems})' if problems else ''}",
            hint=f"It is read as: {source.summary}.",
        )
    return records
