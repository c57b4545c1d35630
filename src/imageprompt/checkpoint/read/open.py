"""From a path to its tensors, whatever keeps them: a file, shards, a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path

from imageprompt.checkpoint.read.raw import RawFile
from imageprompt.checkpoint.read.refusals import explain_bytes, looks_like_old_pickle, refuse
from imageprompt.checkpoint.read.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.read.stored_tensor import MAX_NAME, Source

INDEX_SUFFIX = ".index.json"  # of the list of a sharded file's parts
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
    from imageprompt.checkpoint.read.pickle.torch_legacy import read_torch_legacy
    from imageprompt.checkpoint.read.pickle.torch_tree import to_source
    from imageprompt.checkpoint.read.pickle.torch_zip import read_torch_zip

    return to_source(raw.path, read_torch_zip(raw) if zipped else read_torch_legacy(raw))


def check_names(source: Source) -> None:
    """Names are shown to people and compared, never used as paths; odd ones are still a warning."""
    for name in source.tensors:
        parts = name.replace("\\", "/").split("/")
        if len(name) > MAX_NAME or not name.isprintable() or ".." in parts:
            refuse(source.path, f"it names a tensor {name[:60]!a}, as no weights are named")


def open_source(path: Path) -> Source:
    """What a file or folder holds; only structure is read, no weights.

    Raises NotFoundError, or AdapterFileError that says what it is instead of tensors, or what is
    wrong with it. Tensor names in the result are printable and short.
    """
    try:
        if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
            return _open_several(path)
        return open_file(path)
    except OSError as error:  # a folder on the way that may not be entered, a name too long
        refuse(path, f"it cannot be read ({error.strerror})", "Check its name and permissions.")


def _open_several(path: Path) -> Source:
    """A folder or an index; what reads them is loaded for them only."""
    from imageprompt.checkpoint.read.folders import open_folder
    from imageprompt.checkpoint.read.sharded import read_sharded

    return open_folder(path) if path.is_dir() else read_sharded(path)
