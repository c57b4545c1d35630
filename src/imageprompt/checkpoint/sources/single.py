"""One file, told by its content."""

from __future__ import annotations

from pathlib import Path

from imageprompt.checkpoint.foreign import explain_bytes, looks_like_old_pickle, refuse
from imageprompt.checkpoint.sources.raw import RawFile
from imageprompt.checkpoint.sources.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.stored import Source

INDEX_SUFFIX = ".index.json"  # of the list of a sharded file's parts
MAX_NAME = 512
_START = 512


def open_file(path: Path) -> Source:
    """What a file holds. Raises NotFoundError, or AdapterFileError that says what it is instead."""
    with RawFile(path) as raw:
        if raw.size < 8:
            refuse(path, f"it has {raw.size} bytes", "Download it again.")
        start = raw.at(0, min(raw.size, _START))
        if looks_like_safetensors(start, raw.size):
            source = read_safetensors(raw)
        elif start[:2] == b"PK" or start[:1] == b"\x80" or looks_like_old_pickle(start):
            source = _read_torch(raw, zipped=start[:2] == b"PK")
        else:
            explain_bytes(path, start, raw.size)
    check_names(source)
    return source


def _read_torch(raw: RawFile, zipped: bool) -> Source:
    """A file of torch; what reads pickles is loaded for them alone, which takes a while."""
    from imageprompt.checkpoint.sources.torch_legacy import read_torch_legacy
    from imageprompt.checkpoint.sources.torch_tree import to_source
    from imageprompt.checkpoint.sources.torch_zip import read_torch_zip

    return to_source(raw.path, read_torch_zip(raw) if zipped else read_torch_legacy(raw))


def check_names(source: Source) -> None:
    """Names are shown to people and compared, never used as paths; odd ones are still a warning."""
    for name in source.tensors:
        parts = name.replace("\\", "/").split("/")
        if len(name) > MAX_NAME or not name.isprintable() or ".." in parts:
            refuse(source.path, f"it names a tensor {name[:60]!a}, as no weights are named")
