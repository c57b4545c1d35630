"""Pairs of adapters in a study: content and style are measured apart, on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from imageprompt import loading
from imageprompt.checkpoint.read.open import open_source
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.core.hub import split_part
from imageprompt.evaluation.study.config import AdapterEntry, Part, StudyConfig


def with_parts(config: StudyConfig) -> StudyConfig:
    """The study with two entries for each pair of adapters: its content and its style.

    The lines of either have the reference of that adapter; each picture is made with both.
    Raises OptionError where a pair has no meaning.
    """
    entries = [part for entry in config.entries for part in _parts(config, entry)]
    if not any(entry.part for entry in entries):
        return config
    if config.protocol is not None:
        raise OptionError(
            f"protocol {config.protocol} with a pair of adapters",
            reason="its cases have one reference, a pair needs two",
            hint="Name one of them: FILE#content or FILE#style.",
        )
    plain = ({k: v for k, v in vars(entry).items() if v is not None} for entry in entries)
    return replace(config, adapters=tuple(plain), preset=None)


def holds_pair(config: StudyConfig, entry: AdapterEntry) -> bool:
    """Does its file hold a pair of adapters? False where it cannot be read, which is told later."""
    if split_part(entry.adapter)[1]:
        return False
    try:
        base = loading.base_folder(config.base)
        found = loading.find_adapter(entry.adapter, base, cached_only=False)
        return open_source(found.path).holds_pair
    except ImagePromptError:
        return False


def _parts(config: StudyConfig, entry: AdapterEntry) -> Iterator[AdapterEntry]:
    if entry.part is None and not holds_pair(config, entry):
        yield entry
        return
    if entry.preset is not None:
        raise OptionError(
            f"preset {entry.preset!r} with a pair of adapters",
            reason="its adapters take content and style by themselves",
            hint="Leave the preset out, or name one of them: FILE#content or FILE#style.",
        )
    if entry.part is not None:
        yield entry
        return
    parts: tuple[Part, ...] = ("content", "style")
    for part in parts:
        yield replace(entry, part=part, name=f"{entry.title}, {part}")
