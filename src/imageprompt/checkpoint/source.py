"""From a path to its tensors, whatever keeps them: a file, shards, a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path

from imageprompt.checkpoint.foreign import refuse
from imageprompt.checkpoint.sources.single import INDEX_SUFFIX, open_file
from imageprompt.checkpoint.stored import Source


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
    from imageprompt.checkpoint.sources.folders import open_folder
    from imageprompt.checkpoint.sources.sharded import read_sharded

    return open_folder(path) if path.is_dir() else read_sharded(path)
