"""The tensors of one file, whose format is recognised by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path

from imageprompt.checkpoint.read.raw import DOWNLOAD_AGAIN, RawFile, refuse
from imageprompt.checkpoint.read.safetensors import looks_like_safetensors, read_safetensors
from imageprompt.checkpoint.read.stored_tensor import MAX_NAME, TensorSource
from imageprompt.core.untrusted import Budget

INDEX_SUFFIX = ".index.json"  # of the list of a sharded file's parts
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_START = 512
_OLD_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\((dp|lp|i|S|c)|[}\]]q")


def open_file(
    path: Path, *, inside: Path | None = None, budget: Budget | None = None
) -> TensorSource:
    """The tensors of one file. Raises NotFoundError, AdapterFileError.

    `inside`: the folder that it must lie in, links followed; `budget` is shared by several files.
    """
    with RawFile(path, inside=inside, budget=budget) as raw:
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


def open_safetensors(path: Path) -> TensorSource:
    """The tensors of one safetensors file; anything else is refused by its first bytes.

    For small files that strangers exchange, which nobody but this program writes.
    """
    with RawFile(path) as raw:
        start = raw.read_at(0, min(raw.size, _START))
        if not looks_like_safetensors(start, raw.size):
            refuse(path, "it is not a safetensors file", "Give one that imageprompt has saved.")
        source = read_safetensors(raw)
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
