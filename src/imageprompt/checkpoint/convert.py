"""From any adapter file or training checkpoint to the layout that a program reads.

Nothing is written unless the source is complete. The written file is opened again and compared with
the template and, tensor by tensor, with its source, before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.formats import FORMATS, Format
from imageprompt.checkpoint.identify.checks import canonical, copies_differ, not_finite, untrained
from imageprompt.checkpoint.identify.identify import Identification, identify
from imageprompt.checkpoint.read.file import open_file
from imageprompt.checkpoint.read.open import locate_source, open_source
from imageprompt.checkpoint.read.stored_tensor import (
    StoredTensor,
    TensorBytes,
    TensorSource,
    dtype_names,
)
from imageprompt.checkpoint.report import (
    Problem,
    base_name,
    first_names,
    problem_dicts,
    rows,
    size_text,
)
from imageprompt.checkpoint.tensor_bytes import QUICK, quick_hash, same_bytes
from imageprompt.checkpoint.torch_io import (
    INT8_NAME,
    CastTensor,
    as_int8,
    resolve_cast_dtype,
    write_pickle,
    write_safetensors,
)
from imageprompt.checkpoint.write import converted_metadata
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError, as_text
from imageprompt.core.hub import Location
from imageprompt.core.spec import HostSpec

if TYPE_CHECKING:
    from imageprompt.checkpoint.identify.base_config import BaseConfig

PICKLED = "bin"  # layout name: the standard one in a pickle
DEFAULT_LAYOUT = "standard"
SAFETENSORS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted into what, and what was verified."""

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
    """Of the adapter's tensors before any change, as `inspect` reports it for the source."""
    forced: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "forced": problem_dicts(self.forced)}

    def __str__(self) -> str:
        others = f"{self.left_out} tensors that are not the adapter's" if self.left_out else ""
        copies = f"{self.copies_compared} tensors were stored twice; the copies are equal"
        facts = [
            ("from", f"{self.source} ({self.format} layout, {self.container})"),
            ("adapter", f"variant {' or '.join(self.variants)}, for {base_name(self.host)}"),
            ("size", f"{self.tensors} tensors, {self.parameters:,} parameters, "
             f"{', '.join(self.dtypes)}, {size_text(self.bytes)}"),
            ("left out", others),
            ("copies", copies if self.copies_compared else ""),
            ("verified", "read back: complete, and every tensor equal to its source"),
            *(("forced", problem.message) for problem in self.forced),
            *(("note", note) for note in self.notes),
        ]  # fmt: skip
        return as_text([f"{self.target}: written in the {self.layout} layout", *rows(facts)])


def convert(
    src: Location,
    dst: str | os.PathLike[str],
    to: str | None = None,
    dtype: str | None = None,
    *,
    variant: str | None = None,
    base: Location | None = None,
    renumber: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Conversion:
    """Write the adapter in `src` to `dst`, in the layout `to` (standard) and `dtype` (unchanged).

    `variant` settles what the tensors leave open; `base` gives the sites of an unpublished base.
    `renumber` gives sites that were counted 0, 1, 2, ... or 0, 2, 4, ... the ids of their base, in
    the order that the shapes allow. `overwrite` replaces an existing `dst`; `force` does, too, and
    writes NaN, infinite and untrained weights.
    Raises NotFoundError, OptionError, and AdapterFileError if the source is not a complete adapter.
    """
    target = Path(dst).expanduser()
    layout = _layout(target, to)
    _check_target(target, src, overwrite=overwrite or force)
    cast, against = _cast(dtype, layout, target), None
    if base is not None:
        from imageprompt.checkpoint.identify.base_config import open_base

        against = open_base(base)
    source = open_source(locate_source(src))
    _check_not_source(target, source.files)
    if source.light is not None:
        from imageprompt.checkpoint.identify.light_base import on_files

        source = on_files(source, against)
    found = identify(source, against.spec if against else None, renumber=renumber)
    _check_complete(found, source)
    tensors = canonical(found.parts)
    laid_out = layout.write(found.parts)
    planned = cast(laid_out)
    forced = _check_useful(source, found, planned, against, force=force)
    source_hash = f"{QUICK}:{quick_hash(tensors)}"
    metadata = converted_metadata(found, source, variant) | {"source_hash": source_hash}
    size = sum(tensor.nbytes for tensor in planned.values())
    new = not (overwrite or force)
    try:
        with write_atomically(target, new=new) as temporary, _bar(size, progress) as on_bytes:
            if target.suffix == SAFETENSORS:
                write_safetensors(temporary, planned, metadata, on_bytes)
            else:
                write_pickle(temporary, planned, nested=layout.nested)
            _verify(temporary, planned, found.base)
    except FileExistsError as error:  # since the check
        raise _exists(target) from error
    return Conversion(
        source=str(source.path),
        container=source.container,
        format=found.format,
        target=str(target),
        layout=layout.name,
        variants=(variant,) if variant else found.variants,
        host=found.host,
        tensors=len(laid_out),
        parameters=sum(prod(tensor.shape) for tensor in laid_out.values()),
        bytes=size,
        dtypes=dtype_names(planned.values()),
        left_out=len(source.tensors) - len(tensors) - len(found.copies),
        copies_compared=len(found.copies),
        source_hash=source_hash,
        forced=tuple(forced),
        notes=(*source.notes, *found.notes),
    )


def _layout(target: Path, to: str | None) -> Format:
    """The layout, if the target's name suits it. Raises OptionError."""
    layout = FORMATS.get(DEFAULT_LAYOUT if to in (None, PICKLED) else str(to))
    if layout is None or not layout.writable:
        names = [layout.name for layout in FORMATS if layout.writable]
        raise OptionError(
            f"layout {to!r}",
            reason=f"not one of {', '.join([*names, PICKLED])}",
            hint="Choose one of these.",
        )
    suffixes = [s for s in layout.suffixes if to != PICKLED or s != SAFETENSORS]
    if target.suffix not in suffixes:
        raise OptionError(
            f"target {str(target)!r}",
            reason=f"a file of the {to or layout.name} layout ends in {' or '.join(suffixes)}",
            hint="Rename the target.",
        )
    return layout


def _check_target(target: Path, src: Location, *, overwrite: bool) -> None:
    """Can a file be written there? Checked before any work. Raises NotFoundError, OptionError."""
    if not target.parent.is_dir():
        raise NotFoundError(str(target.parent), reason="no such folder", hint="Create it first.")
    if target.is_dir():
        raise OptionError(str(target), reason="this is a folder", hint="Name a file inside it.")
    if not target.exists():
        return
    source = os.path.expanduser(src)  # noqa: PTH111 - never raises
    _check_not_source(target, (Path(source),) if os.path.exists(source) else ())  # noqa: PTH110
    if not overwrite:
        raise _exists(target)


def _exists(target: Path) -> OptionError:
    return OptionError(
        f"target {str(target)!r}",
        reason="the file exists already",
        hint="Choose another name, or replace it: --overwrite (overwrite=True in Python).",
    )


def _check_not_source(target: Path, files: tuple[Path, ...]) -> None:
    if target.exists() and any(target.samefile(file) for file in files):
        raise OptionError(
            f"target {str(target)!r}",
            reason="this is the file to be converted",
            hint="Choose another name; the source is never changed.",
        )


def _cast(
    dtype: str | None, layout: Format, target: Path
) -> Callable[[Mapping[str, StoredTensor]], Mapping[str, TensorBytes]]:
    """From stored tensors to those to be written. Raises OptionError."""
    if dtype is None:
        return lambda tensors: tensors
    if dtype == INT8_NAME:
        if layout.name != DEFAULT_LAYOUT or target.suffix != SAFETENSORS:
            raise OptionError(
                f"dtype int8 in {target.name} ({layout.name} layout)",
                reason="only imageprompt reads its scales, from the standard layout in safetensors",
                hint="Use float16 for other programs.",
            )
        return as_int8
    name = resolve_cast_dtype(dtype)
    return lambda tensors: {key: CastTensor.of(tensor, name) for key, tensor in tensors.items()}


def _check_complete(found: Identification, source: TensorSource) -> None:
    """Nothing missing, extra or misshapen, and copies equal. Raises AdapterFileError."""
    problems = [*found.problems, *copies_differ(found)]
    if problems:
        raise AdapterFileError(
            str(source.path),
            reason="; ".join(problem.message for problem in problems),
            hint="Nothing was written. `imageprompt inspect` says more.",
        )


def _check_useful(
    source: TensorSource,
    found: Identification,
    planned: Mapping[str, TensorBytes],
    base: BaseConfig | None,
    *,
    force: bool,
) -> list[Problem]:
    """What makes a complete adapter useless: NaN, nothing trained, values too large for a cast.

    Returns what was forced. Raises AdapterFileError without `force`.
    """
    stored = canonical(found.parts)
    problems = not_finite(stored) + untrained(found, base)
    originals = {id(tensor) for tensor in stored.values()}
    cast = {name: tensor for name, tensor in planned.items() if id(tensor) not in originals}
    problems = problems or not_finite(cast)
    if problems and not force:
        raise AdapterFileError(
            str(source.path),
            reason="; ".join(problem.message for problem in problems),
            hint="Nothing was written; --force (force=True in Python) writes it all the same.",
        )
    return problems


def _verify(path: Path, planned: Mapping[str, TensorBytes], base: HostSpec | None) -> None:
    """Read back the written file: complete, and equal to its source. Raises AdapterFileError."""
    written = open_file(path)
    faults = sorted(planned.keys() ^ written.tensors.keys()) or [
        name for name, tensor in planned.items() if not same_bytes(written.tensors[name], tensor)
    ]
    faults += [problem.message for problem in identify(open_source(path), base).problems]
    if faults:
        raise AdapterFileError(
            str(path),
            reason=f"the written file differs from its source ({first_names(faults)})",
            hint="It was deleted. Check the disk and the memory of this machine.",
        )


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], object]]:
    """A bar for conversions that take longer than a second."""
    if not progress:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, delay=1.0, leave=False) as bar:
        yield bar.update
