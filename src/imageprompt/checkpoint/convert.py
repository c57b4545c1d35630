"""From any adapter file or training checkpoint to the layout that a program reads.

Nothing is written unless the source is whole. What was written is opened again and compared, with
the template and tensor by tensor with its source, before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.formats import FORMATS, Format
from imageprompt.checkpoint.identify.base_config import Base, locate_source, open_base
from imageprompt.checkpoint.identify.checks import canonical, copies_differ, not_finite, untrained
from imageprompt.checkpoint.identify.identify import Identified, identify
from imageprompt.checkpoint.identify.problems import Problem, first
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import Source
from imageprompt.checkpoint.tensor_bytes import QUICK, Weights, quick_hash, same_bytes
from imageprompt.checkpoint.text import dtype_names, problem_dicts, size_in_words
from imageprompt.checkpoint.write.cast import Cast, resolve_dtype
from imageprompt.checkpoint.write.metadata import written_metadata
from imageprompt.checkpoint.write.writer import write_pickle, write_safetensors
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError
from imageprompt.core.hub import Location
from imageprompt.core.spec import HostSpec

PICKLED = "bin"  # as a layout's name: the standard one in a pickle
DEFAULT_LAYOUT = "standard"
SAFETENSORS = ".safetensors"

Advance = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted into what, and what was made sure of."""

    source: str
    container: str
    format: str
    target: str
    layout: str
    variants: tuple[str, ...]
    host: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    left_out: int
    """Tensors of the source that are not the adapter's: the frozen base, other state."""
    copies_compared: int
    source_hash: str
    """Of the adapter's tensors before any change, as `inspect` tells it of the source."""
    forced: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "forced": problem_dicts(self.forced)}

    def __str__(self) -> str:
        lines = [
            f"{self.target}: {self.layout} layout, {' or '.join(self.variants)} for {self.host}",
            f"  {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{', '.join(self.dtypes)}, {size_in_words(self.bytes)}",
            f"  from {self.source} ({self.format}, {self.container})",
        ]
        if self.left_out:
            lines.append(f"  left out: {self.left_out} tensors that are not the adapter's own")
        if self.copies_compared:
            lines.append(f"  {self.copies_compared} tensors were there twice, both copies equal")
        lines.append("  read back: whole, and every tensor equal to its source")
        lines += [f"  forced: {problem.message}" for problem in self.forced]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def convert(
    src: Location,
    dst: str | os.PathLike[str],
    to: str | None = None,
    dtype: str | None = None,
    *,
    variant: str | None = None,
    base: Location | None = None,
    force: bool = False,
    progress: bool = False,
) -> Conversion:
    """Write the adapter in `src` to `dst`, in the layout `to` (standard) and `dtype` (as it is).

    `variant` settles what the tensors leave open; `base` gives the sites of a base that is not
    published; `force` writes NaN, infinite and untrained weights too. Raises NotFoundError,
    OptionError, and AdapterFileError for a source that is no whole adapter.
    """
    target = Path(dst).expanduser()
    layout = _layout(target, to)
    wanted = None if dtype is None else resolve_dtype(dtype)
    against = None if base is None else open_base(base)
    source = open_source(locate_source(src))
    _check_target(target, source)
    found = identify(source, against.spec if against else None)
    _check_whole(found, source)
    kept = canonical(found.parts)
    planned = {
        name: tensor if wanted is None else Cast.of(tensor, wanted)
        for name, tensor in layout.write(found.parts).items()
    }
    forced = _check_useful(source, found, planned, against, force=force)
    digest = f"{QUICK}:{quick_hash(kept)}"
    metadata = written_metadata(found, source, variant) | {"source_hash": digest}
    size = sum(tensor.nbytes for tensor in planned.values())
    with write_atomically(target) as temporary, _bar(size, progress) as advance:
        if target.suffix == SAFETENSORS:
            write_safetensors(temporary, planned, metadata, advance)
        else:
            write_pickle(temporary, planned, nested=layout.nested)
        _verify(temporary, planned, found.base)
    return Conversion(
        source=str(source.path),
        container=source.container,
        format=found.format,
        target=str(target),
        layout=layout.name,
        variants=(variant,) if variant else found.variants,
        host=found.host,
        tensors=len(planned),
        parameters=sum(prod(tensor.shape) for tensor in planned.values()),
        bytes=size,
        dtypes=dtype_names(planned.values()),
        left_out=len(source.tensors) - len(kept) - len(found.copies),
        copies_compared=len(found.copies),
        source_hash=digest,
        forced=tuple(forced),
        notes=source.notes,
    )


def _layout(target: Path, to: str | None) -> Format:
    """The layout that was asked for, if it may have the target's name. Raises OptionError."""
    names = [layout.name for layout in FORMATS if layout.writable]
    if to not in (None, PICKLED, *names):
        raise OptionError(
            f"layout {to!r}",
            reason=f"not one of {', '.join([*names, PICKLED])}",
            hint="Choose one of these.",
        )
    layout = FORMATS[DEFAULT_LAYOUT if to in (None, PICKLED) else str(to)]
    suffixes = [s for s in layout.suffixes if to != PICKLED or s != SAFETENSORS]
    if target.suffix not in suffixes:
        raise OptionError(
            f"target {str(target)!r}",
            reason=f"a file of the {to or layout.name} layout ends in {' or '.join(suffixes)}",
            hint="Name it so.",
        )
    return layout


def _check_target(target: Path, source: Source) -> None:
    """A place for a new file, not the source's own. Raises NotFoundError, OptionError."""
    if not target.parent.is_dir():
        raise NotFoundError(str(target.parent), reason="no such folder", hint="Create it first.")
    if target.is_dir():
        raise OptionError(str(target), reason="it is a folder", hint="Name a file inside it.")
    if target.exists() and any(target.samefile(file) for file in source.files):
        raise OptionError(
            f"target {str(target)!r}",
            reason="it is the file that is read",
            hint="Write to another name; the source is left as it is.",
        )


def _check_whole(found: Identified, source: Source) -> None:
    """Nothing missing, extra or misshapen, and copies equal. Raises AdapterFileError."""
    problems = [*found.problems, *copies_differ(found)]
    if problems:
        raise AdapterFileError(
            str(source.path),
            reason="; ".join(problem.message for problem in problems),
            hint="Nothing was written. `imageprompt inspect` says more.",
        )


def _check_useful(
    source: Source,
    found: Identified,
    planned: Mapping[str, Weights],
    base: Base | None,
    *,
    force: bool,
) -> list[Problem]:
    """What makes a whole adapter useless: NaN, nothing trained, values that a cast cannot hold.

    Returns what was forced. Raises AdapterFileError unless it is.
    """
    problems = not_finite(canonical(found.parts)) + untrained(found, base)
    cast = {name: tensor for name, tensor in planned.items() if isinstance(tensor, Cast)}
    problems = problems or not_finite(cast)
    if problems and not force:
        raise AdapterFileError(
            str(source.path),
            reason="; ".join(problem.message for problem in problems),
            hint="Nothing was written; --force (force=True) writes it all the same.",
        )
    return problems


def _verify(path: Path, planned: Mapping[str, Weights], base: HostSpec | None) -> None:
    """Read back what was written: a whole adapter, equal to its source. Raises AdapterFileError."""
    written = open_source(path)
    odd = sorted(planned.keys() ^ written.tensors.keys())
    odd = odd or [name for name in planned if not same_bytes(written.tensors[name], planned[name])]
    odd += [problem.message for problem in identify(written, base).problems]
    if odd:
        raise AdapterFileError(
            str(path),
            reason=f"what was written is not what was read ({first(odd)})",
            hint="Nothing was kept. Is the disk or the memory of this machine sound?",
        )


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Advance]:
    """A bar for people who wait longer than a second."""
    if not wanted:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, delay=1.0, leave=False) as bar:
        yield bar.update
