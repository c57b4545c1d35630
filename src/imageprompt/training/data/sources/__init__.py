"""One file a source of training data: a list, a folder, shards; records are read by number.

A file in this folder that ends in a constant `SOURCE` is a source; nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.core.registry import Registry
from imageprompt.training.data.sources.contract import DataOptions, Record, Records, Source

SOURCES: Registry[Source] = Registry(__name__, "SOURCE")

__all__ = ["SOURCES", "DataOptions", "Record", "Records", "Source", "open_data"]


def open_data(data: str | Mapping[str, Any] | DataOptions) -> Records:
    """The records that a configuration's `data` names. Raises OptionError, NotFoundError."""
    options = DataOptions.of(data)
    if options.format:
        source = SOURCES[options.format]
    else:
        fitting = [one for one in SOURCES if one.claims(options.path)]
        if not fitting:
            raise OptionError(
                f"data {options.path!r}",
                reason="it is no folder, and its name is not that of a list or of shards",
                hint=f"Give one of: {'; '.join(one.summary for one in SOURCES)}.",
            )
        source = fitting[0]
    records = source.open(options)
    if not len(records):
        troubles = "; ".join(f"{name}: {why}" for name, why in records.troubles().items())
        raise OptionError(
            f"data {options.path!r}",
            reason=f"there is no sample in it{f' ({troubles})' if troubles else ''}",
            hint=f"It is read as: {source.summary}.",
        )
    return records
