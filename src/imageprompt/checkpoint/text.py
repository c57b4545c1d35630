"""How files are spoken of: dtypes, sizes, text from strangers; shared by all jobs here."""

from __future__ import annotations

from collections.abc import Iterable

from imageprompt.checkpoint.identify.problems import Problem
from imageprompt.checkpoint.tensor_bytes import Weights
from imageprompt.checkpoint.write.storage import dtype_name

LONGEST = 200  # characters of a stranger's text that are shown


def dtype_names(tensors: Iterable[Weights]) -> tuple[str, ...]:
    """Their dtypes in torch's words, each once: ("float16", "float32")."""
    return tuple(sorted({dtype_name(tensor.dtype) for tensor in tensors}))


def size_in_words(count: int) -> str:
    """Bytes as people say them: 44.6 MB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def printable(text: str) -> str:
    """One line of it that no terminal takes for a command."""
    safe = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: LONGEST + 1])
    return safe if len(text) <= LONGEST else f"{safe[:LONGEST]}..."


def problem_dicts(problems: Iterable[Problem]) -> list[dict[str, str]]:
    """Problems as they stand in JSON."""
    return [{"code": problem.code, "message": problem.message} for problem in problems]


def rows(table: Iterable[tuple[str, str]]) -> list[str]:
    """Name and text in two columns; rows without text are left out."""
    kept = [(name, text) for name, text in table if text]
    width = max((len(name) for name, _ in kept), default=0)
    return [f"  {name:{width}}  {text}" for name, text in kept]
