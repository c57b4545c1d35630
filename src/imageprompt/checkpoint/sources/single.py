"""One file, told by its content."""

from __future__ import annotations

from pathlib import Path

from imageprompt.checkpoint.foreign import explain_bytes, looks_like_old_pickle, refuse
from imageprompt.checkpoint.sources.raw import RawFile
from imageprompt.checkpoint.sources.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.sources.torch_legacy import read_torch_legacy
from imageprompt.checkpoint.sources.torch_tree import MAX_NAME, to_source
from imageprompt.checkpoint.sources.torch_zip import read_torch_zip
from imageprompt.checkpoint.stored import Source

_START = 512


def open_file(path: Path) -> Source:
    """What a file holds. Raises NotFoundError, or AdapterFileError that says what it is instead."""
    with RawFile(path) as raw:
        if raw.size < 8:
            refuse(path, f"it has {raw.size} bytes", "Download it again.")
        start = raw.at(0, min(raw.size, _START))
        if looks_like_safetensors(start, raw.size):
            source = read_safetensors(raw)
        elif start[:2] == b"PK":
            source = to_source(path, read_torch_zip(raw))
        elif start[:1] == b"\x80" or looks_like_old_pickle(start):
            source = to_source(path, read_torch_legacy(raw))
        else:
            explain_bytes(path, start, raw.size)
    check_names(source)
    return source


def check_names(source: Source) -> None:
    """Names are shown to people and compared, never used as paths; odd ones are still a warning."""
    for name in source.tensors:
        parts = name.replace("\\", "/").split("/")
        if len(name) > MAX_NAME or not name.isprintable() or ".." in parts:
            refuse(source.path, f"it names a tensor {name[:60]!a}, as no weights are named")
