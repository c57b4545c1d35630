"""From a path to its tensors, whatever stores them: a file, shards, a checkpoint folder."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from shlex import quote

from imageprompt.checkpoint.read.file import INDEX_SUFFIX, open_file
from imageprompt.checkpoint.read.raw import refuse
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.core.errors import OptionError, printable
from imageprompt.core.hub import Location, locate_file, part_of, split_part

_MAX_NOTE = 400  # characters


def locate_source(reference: Location, *, cached_only: bool = False) -> Path:
    """The local path of an adapter: a file, a folder that holds one, or a Hub file (fetched).

    `cached_only`: a Hub file must be in the cache already. Raises NotFoundError.
    """
    if os.path.isdir(os.path.expanduser(reference)):  # noqa: PTH111, PTH112 - never raises
        return Path(reference).expanduser()
    name, part = split_part(reference)
    path = locate_file(name, cached_only=cached_only)
    return Path(part_of(path, part)) if part else path


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
            hint=f"Convert it first: imageprompt convert {quote(str(path))} adapter.safetensors",
        )
    if others:
        return path
    about_file = open_file(file).notes
    for note in source.notes:
        if note not in about_file:
            warnings.warn(f"{path}: {note}", stacklevel=3)
    return file


def open_source(path: Path, *, inside: Path | None = None) -> TensorSource:
    """The tensors of a file or folder; only the structure is read, no weights.

    `inside`: the folder that a file must lie in, links followed; what is found in a folder must
    always lie in that one.
    Raises NotFoundError, or AdapterFileError that says what the path holds instead of tensors, or
    what is wrong with it. Tensor names and notes in the result are printable and short.
    """
    name, part = split_part(path)
    try:
        source = _whole(_scaled(_open(Path(name), inside)))
    except OSError as error:  # a parent folder without access, a name that is too long
        refuse(path, f"cannot be read ({error.strerror})", "Check its name and permissions.")
    if part and not source.holds_pair:
        refuse(Path(name), f"holds no pair of adapters, so it has no {part}", "Leave #... out.")
    source = source.part(part) if part else source
    return replace(source, notes=tuple(map(_shown, source.notes)))


def _open(path: Path, inside: Path | None) -> TensorSource:
    if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
        # what reads folders is loaded for them only
        from imageprompt.checkpoint.read.folders import open_folder, read_sharded

        return open_folder(path) if path.is_dir() else read_sharded(path, inside=inside)
    return open_file(path, inside=inside)


def _scaled(source: TensorSource) -> TensorSource:
    """With int8 matrices as what they stand for."""
    if not any(tensor.dtype == "I8" for tensor in source.tensors.values()):
        return source
    from imageprompt.checkpoint.read.int8 import with_scales

    return with_scales(source)


def _whole(source: TensorSource) -> TensorSource:
    """With the weights of light adapters as what they stand for."""
    if "light" not in source.metadata:
        return source
    from imageprompt.checkpoint.read.light import with_light

    return with_light(source)


def _shown(note: str) -> str:
    """Notes name keys, classes and files as a stranger called them."""
    return printable(note[:_MAX_NOTE] + ("..." if len(note) > _MAX_NOTE else ""))
