"""From a path to its tensors, whatever stores them: a file, shards, a checkpoint folder."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, RawFile, refuse
from imageprompt.checkpoint.read.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.read.stored_tensor import MAX_NAME, TensorSource
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import Location, locate_file

INDEX_SUFFIX = ".index.json"  # of the list of a sharded file's parts
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_START = 512
_OLD_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\((dp|lp|i|S|c)|[}\]]q")


def locate_source(reference: Location, *, cached_only: bool = False) -> Path:
    """The local path of an adapter: a file, a folder that holds one, or a Hub file (fetched).

    `cached_only`: a Hub file must be in the cache already. Raises NotFoundError.
    """
    if os.path.isdir(os.path.expanduser(reference)):  # noqa: PTH111, PTH112 - never raises
        return Path(reference).expanduser()
    return locate_file(reference, cached_only=cached_only)


def locate_adapter(
    reference: Location, *, cached_only: bool = False, one_file: bool = False
) -> Path:
    """Like `locate_source`, but for a folder the weight file that is read from it.

    Warns if the folder has other candidates. A folder whose weights are spread over several files
    is returned as it is, or refused with `one_file`. Raises NotFoundError, OptionError, and
    AdapterFileError for a folder without weights or with several adapters.
    """
    path = locate_source(reference, cached_only=cached_only)
    if not path.is_dir():
        return path
    source = open_source(path)
    file, *others = source.files
    if others and one_file:
        raise OptionError(
            f"adapter {str(path)!r}",
            reason=f"its weights are spread over {len(source.files)} files",
            hint=f"Convert it first: imageprompt convert {path} adapter.safetensors",
        )
    if others:
        return path
    about_file = open_file(file).notes
    for note in source.notes:
        if note not in about_file:
            warnings.warn(f"{path}: {note}", stacklevel=3)
    return file


def open_source(path: Path) -> TensorSource:
    """The tensors of a file or folder; only the structure is read, no weights.

    Raises NotFoundError, or AdapterFileError that says what the path holds instead of tensors, or
    what is wrong with it. Tensor names in the result are printable and short.
    """
    try:
        if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
            # what reads folders is loaded for them only
            from imageprompt.checkpoint.read.folders import open_folder, read_sharded

            return open_folder(path) if path.is_dir() else read_sharded(path)
        return open_file(path)
    except OSError as error:  # a parent folder without access, a name that is too long
        refuse(path, f"cannot be read ({error.strerror})", "Check its name and permissions.")


def open_file(path: Path) -> TensorSource:
    """The tensors of one file. Raises NotFoundError, AdapterFileError."""
    with RawFile(path) as raw:
        if raw.size < 8:
            refuse(path, f"the file has only {raw.size} bytes", DOWNLOAD_AGAIN)
        start = raw.read_at(0, min(raw.size, _START))
        if looks_like_safetensors(start, raw.size):
            source = read_safetensors(raw)
        elif start[:2] == b"PK":
            from imageprompt.checkpoint.read.pickle.torch_tensors import to_source
            from imageprompt.checkpoint.read.pickle.torch_zip import read_torch_zip

            source = to_source(path, read_torch_zip(raw))
        elif looks_like_pickle(start):
            from imageprompt.checkpoint.read.pickle.torch_legacy import read_torch_legacy
            from imageprompt.checkpoint.read.pickle.torch_tensors import to_source

            source = to_source(path, read_torch_legacy(raw))
        else:
            from imageprompt.checkpoint.read.refusals import explain_bytes

            explain_bytes(path, start, raw.size)
    check_names(source)
    return source


def looks_like_pickle(start: bytes) -> bool:
    """Protocols 0 and 1 have no magic number; torch never wrote them, but attackers may."""
    return start[:1] == b"\x80" or _OLD_PICKLE.match(start) is not None


def check_names(source: TensorSource) -> None:
    """Names are shown and compared, never used as paths; odd ones are refused all the same."""
    for name in source.tensors:
        parts = name.replace("\\", "/").split("/")
        if len(name) > MAX_NAME or not name.isprintable() or ".." in parts:
            refuse(source.path, f"a tensor is called {name[:60]!a}, which no weights are")
