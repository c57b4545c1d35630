"""manifest.json of an exported folder: what each file is, what it reads, and what it was made of.

Strangers may have written it: it is read within limits, files lie in its folder and have the hashes
that it states, and packages that hold code run only where this user exported them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from imageprompt.core.atomic_files import append_line, write_atomically
from imageprompt.core.console import json_text
from imageprompt.core.errors import NotFoundError, OptionError, WrongBaseError
from imageprompt.core.schema import Option, validate
from imageprompt.core.untrusted import Budget, open_regular, parse_json, read_regular
from imageprompt.loading.assets import file_hash

NAME = "manifest.json"
FORMAT = 1
DENOISER = "denoiser"
"""The part that every folder has."""
CODE = ("aoti", "pt2")
"""Runtimes whose files hold code, or are unpickled."""
MAX_BYTES = 4 * 2**20
MAX_INPUTS = 1024
_LONGEST_NAME = 120
_BLOCKS, _BLOCK = 64, 4096

Axis = int | str
"""The size of an axis, or the name of one that every call chooses."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph."""

    name: str
    shape: tuple[Axis, ...]
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A graph: the files that hold it, the first of which a runtime opens."""

    files: Mapping[str, str]
    """Name -> SHA-256."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    runs_here: bool = True
    """False where no runtime of this toolkit reads it: its parity is not known."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A place where the graph adds image terms, in the order of `key_0`, `value_0`, `key_1` ..."""

    site: str
    entry: str
    level: int
    heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class ExportedBase:
    """The base that was exported."""

    name: str | None
    hash: str
    """Of all its weights, as recipes have it."""
    denoiser: str
    """The class of its denoiser."""
    attribute: str
    """Where a pipeline has it: unet or transformer."""
    config: str
    """Hash of the denoiser's config."""
    files: Mapping[str, str]
    """Weight files of the denoiser, by their path in the base's folder, with a hash of a sample."""


@dataclass(frozen=True, kw_only=True)
class ExportedAdapter:
    """The adapter that parity was measured with; others that act at the same places run as well."""

    name: str | None
    hash: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a folder says about itself."""

    format: Annotated[int, Option("the version of this layout", ge=1, le=FORMAT)]
    backend: str
    """What it was exported to."""
    runtime: str
    """What runs it; "" for nothing of this toolkit."""
    precision: str
    """That of the weights: float32, float16, int8 ..."""
    base: ExportedBase
    adapter: ExportedAdapter
    readers: tuple[Reader, ...]
    parts: Mapping[str, Part]
    controlnet: bool = False
    """Does the denoiser read the residuals of a ControlNet?"""
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, float] = field(default_factory=dict)
    """Part -> the largest difference to eager, measured when it was exported."""
    null_tokens: str = ""
    """The file with the adapter's null tokens [1, N, W], which stand for no picture on the negative
    side of guidance; its hash is in `extra_files`. "" for none."""
    extra_files: Mapping[str, str] = field(default_factory=dict)
    """Files that no part holds, with their SHA-256."""

    # ── files ───────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Raises NotFoundError, OptionError for one that is damaged or of a newer version."""
        path = Path(folder).expanduser() / NAME
        try:
            data = parse_json(read_regular(path, MAX_BYTES), Budget(), unique=True)
        except FileNotFoundError:
            raise NotFoundError(
                os.fspath(folder),
                reason=f"no exported base: it has no {NAME}",
                hint="Make one: imageprompt export --to openvino --output DIR.",
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise damaged(path, reason) from None
        found = validate(cls, data, what=str(path))
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        if DENOISER not in self.parts:
            raise damaged(path, "it has no denoiser")
        for name, part in self.parts.items():
            if not part.files or len(part.inputs) > MAX_INPUTS:
                raise damaged(path, f"part {name!r} has no file, or more than {MAX_INPUTS} inputs")
        sites = sum(port.name.startswith("key_") for port in self.parts[DENOISER].inputs)
        if sites != len(self.readers):
            reason = f"it names {len(self.readers)} sites, and its denoiser reads {sites}"
            raise damaged(path, reason)
        for name in self.all_files():
            plain = name == Path(name).name and not name.startswith(".") and "\\" not in name
            if not plain or len(name) > _LONGEST_NAME:
                raise damaged(path, f"{name[:_LONGEST_NAME]!r} is not the name of a file")

    def all_files(self) -> dict[str, str]:
        """Every file with its SHA-256."""
        found = dict(self.extra_files)
        for part in self.parts.values():
            found |= part.files
        return found

    def write(self, folder: Path) -> None:
        """Write it, last of all: a folder without it is not complete."""
        with write_atomically(folder / NAME) as temporary:
            temporary.write_text(json_text(asdict(self)) + "\n", encoding="utf-8")

    def check_files(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Compare files (default: all) with their hashes. Raises NotFoundError, OptionError."""
        stated = self.all_files()
        for name in stated if names is None else names:
            try:
                with open_regular(folder / name, inside=folder):
                    found = file_hash(folder / name, limit=None)
            except OSError as error:
                raise NotFoundError(
                    str(folder / name),
                    reason=f"a file of this exported base ({error.strerror})",
                    hint="Export it again.",
                ) from None
            if found != stated[name]:
                raise damaged(folder / name, "it is not the file that the manifest describes")

    # ── what it fits ────────────────────────────────────────────────────────────────────────────

    def check_base(self, name: object, folder: Path, config: Mapping[str, Any]) -> None:
        """Is `folder` the base that was exported? Raises WrongBaseError.

        Weights of the denoiser need not be there: those that are must be the same.
        """
        other = [
            path
            for path, digest in self.base.files.items()
            if (folder / path).is_file() and file_sample(folder / path) != digest
        ]
        if config_hash(config) != self.base.config:
            reason = f"its {self.base.denoiser} has another config"
        elif other:
            reason = f"{other[0]} has other weights"
        else:
            return
        raise WrongBaseError(
            f"base {name!r}",
            reason=f"not the base that was exported ({self.base.name or 'a loaded pipeline'}): "
            f"{reason}",
            hint="Give --base with that one, or export this one.",
        )


def damaged(path: Path, reason: str) -> OptionError:
    return OptionError(str(path), reason=reason, hint="Export the base again.")


def hashes_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of files in a folder, in that order."""
    return {name: file_hash(folder / name, limit=None) for name in names}


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits of a denoiser's config without diffusers' own entries."""
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json_text(_listed(plain)).encode()).hexdigest()[:16]


def _listed(value: Any) -> Any:
    """The same whether it comes from a file or from memory: tuples as lists, keys in order."""
    if isinstance(value, Mapping):
        return {str(name): _listed(value[name]) for name in sorted(value, key=str)}
    return list(map(_listed, value)) if isinstance(value, list | tuple) else value


def file_sample(path: Path) -> str:
    """16 hex digits over the size of a file and 64 blocks of it; reads 256 kB of any size."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(str(size).encode())
        for number in range(_BLOCKS):
            stream.seek(max(0, size - _BLOCK) * number // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


# ── packages that hold code ─────────────────────────────────────────────────────────────────────


def _trusted() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    return Path(data) / "imageprompt" / "exported-here"


def trust(hashes: Iterable[str]) -> None:
    """Remember packages that this user has exported."""
    path = _trusted()
    path.parent.mkdir(parents=True, exist_ok=True)
    for one in hashes:
        append_line(path, one)


def check_trusted(path: Path, digest: str, what: str) -> None:
    """Raises OptionError for a package with code that this user has not exported."""
    try:
        known = read_regular(_trusted(), MAX_BYTES).decode("ascii", "replace").split()
    except OSError:
        known = []
    if digest not in known:
        raise OptionError(
            str(path),
            reason=f"{what}, and was not exported by this user on this machine: running it would "
            "run a stranger's program",
            hint="Export it here, or use openvino or onnx, whose files are data alone.",
        )
