"""Style: the description in a style file, checked, because a stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.read.stored_tensor import TensorBytes
from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import split_part
from imageprompt.library.paths import checked_name, checked_tags
from imageprompt.loading.recipe import AssetRecord, check_asset

FORMAT = 1
MAX_TEXT = 4096
MAX_NUMBER = 1e15  # also refuses NaN, which is not below it
MAX_ENTRIES, MAX_DEPTH = 1000, 4  # of the recipe
_DESCRIPTION = (
    *("format", "name", "tags", "adapter", "encoder", "references", "recipe"),
    *("hash", "created", "version"),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Style:
    """One style of a library. Its `tensors` are read when they are used."""

    name: str
    tags: tuple[str, ...]
    adapter: AssetRecord
    """`hash` is the projector's fingerprint; `spec` has variant, host, feature and its size."""
    encoder: AssetRecord | None
    """None for a style that was made from features."""
    references: tuple[AssetRecord, ...]
    """File names without folders, and hashes of the files."""
    recipe: Mapping[str, Any]
    """How it was encoded: fusion, weights, framing ...; for a mix, the shares."""
    hash: str
    """SHA-256 of tokens and null tokens."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__
    format: int = FORMAT
    path: Path = field(default=Path(), compare=False)
    tensors: Mapping[str, TensorBytes] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        checked_name(self.name)
        checked_tags(self.tags)
        _check_references(self.references)
        _check_adapter(self.adapter)
        if self.encoder is not None:
            check_asset("encoder", self.encoder)
            _check_plain("encoder", [self.encoder.name, self.encoder.spec])
        _check_plain("recipe", self.recipe)
        _check_text("hash", self.hash, "[0-9a-f]{64}", "64 hex digits")
        _check_text("version", self.version, r"[\w.+-]{1,40}", "a version number")
        _check_time(self.created)

    @property
    def variant(self) -> str:
        return str(self.adapter.spec["variant"])

    @property
    def part(self) -> str:
        """Content or style if an adapter of a pair made it, else ""; by the adapter's name."""
        return split_part(self.adapter.name or "")[1]

    def check_part(self, part: str) -> None:
        """May it stand for this adapter of a pair, or "" for any? Raises OptionError."""
        if part and self.part != part and "content" in (part, self.part):
            made_by = f"the {self.part} adapter of a pair" if self.part else "a single adapter"
            raise OptionError(
                f"--{part} {self.name}",
                reason=f"this style was made by {made_by}",
                hint=f"Give it as --{self.part or 'style'}, or add the picture again with "
                f"--adapter FILE#{part}.",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Number and size of the tokens."""
        _, count, width = self.tensors["tokens"].shape
        return count, width

    @property
    def features(self) -> tuple[TensorBytes, ...]:
        """The encoder features [n, ...] that the projector read, in one or two parts, if stored."""
        names = ("features", "features.0", "features.1")
        return tuple(self.tensors[name] for name in names if name in self.tensors)

    def __repr__(self) -> str:
        tags = f", tags {', '.join(self.tags)}" if self.tags else ""
        references = len(self.references)
        count = "1 reference" if references == 1 else f"{references} references"
        return f"Style({self.name!r}, {self.variant}, {count}{tags})"

    def _repr_png_(self) -> bytes | None:
        """The thumbnail, for notebooks."""
        from imageprompt.library import thumbnail

        picture = thumbnail.read(self)
        return None if picture is None else thumbnail.image_bytes(picture, format="PNG")

    def description(self) -> dict[str, Any]:
        """The description in the file, as JSON."""
        found = {name: getattr(self, name) for name in _DESCRIPTION}
        found["adapter"] = asdict(self.adapter)
        found["encoder"] = None if self.encoder is None else asdict(self.encoder)
        found["references"] = [{"name": one.name, "hash": one.hash} for one in self.references]
        return found | {"tags": list(self.tags), "recipe": dict(self.recipe)}

    def as_dict(self) -> dict[str, Any]:
        """Everything about the style, as JSON."""
        tensors = {name: list(stored.shape) for name, stored in sorted(self.tensors.items())}
        more = {"path": str(self.path), "tensors": tensors, "part": self.part or None}
        return self.description() | more


def style_from_description(data: Mapping[str, Any], **more: Any) -> Style:
    """The style that a file describes. Raises ValueError with the rule that is broken."""
    if data.get("format") != FORMAT:
        raise ValueError(f"format {data.get('format')!r:.40}; this version reads {FORMAT}")
    if wrong := sorted(set(data) ^ set(_DESCRIPTION)):
        what = "has an unknown" if wrong[0] in data else "lacks the"
        raise ValueError(f"its description {what} key {wrong[0]!r:.60}")
    if not isinstance(data["references"], list) or len(data["references"]) > MAX_ENTRIES:
        raise ValueError(f"its references are not a list of at most {MAX_ENTRIES} entries")
    encoder = data["encoder"]
    read = dict(data) | {
        "adapter": _record(data["adapter"]),
        "encoder": None if encoder is None else _record(encoder),
        "references": tuple(_record(entry) for entry in data["references"]),
    }
    try:
        read["tags"] = checked_tags(data["tags"])
        return Style(**{**read, **more})
    except OptionError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def _record(value: object) -> AssetRecord:
    if not isinstance(value, dict) or not {"name", "hash"} <= set(value) <= {
        "name",
        "hash",
        "spec",
    }:
        raise ValueError("its description has an entry without name and hash")
    return AssetRecord(**value)


def _check_references(references: tuple[AssetRecord, ...]) -> None:
    for record in references:
        check_asset("references", record)
    _check_plain("references", [one.name for one in references])


def _check_adapter(adapter: AssetRecord) -> None:
    check_asset("adapter", adapter)
    _check_plain("adapter", [adapter.name, adapter.spec])
    if not isinstance(adapter.spec.get("variant"), str):
        raise OptionError("adapter", reason="no variant")


def _check_plain(name: str, value: object, depth: int = 0) -> None:
    """Accepts numbers, texts, and lists and mappings of these, all bounded."""
    if isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH:
        if len(value) > MAX_ENTRIES:
            raise OptionError(name, reason=f"more than {MAX_ENTRIES} entries")
        for entry in value:
            _check_plain(name, entry, depth + 1)
            if isinstance(value, Mapping):
                _check_plain(name, value[entry], depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or not value.isprintable():
            raise OptionError(name, reason=f"not a printable text of at most {MAX_TEXT} characters")
    elif value is not None and not (isinstance(value, int | float) and abs(value) <= MAX_NUMBER):
        raise OptionError(
            f"{name} {value!r:.60}", reason="not a number, a text, or a list of these"
        )


def _check_text(name: str, value: object, pattern: str, expected: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise OptionError(f"{name} {value!r:.60}", reason=f"not {expected}")


def _check_time(value: object) -> None:
    try:
        if isinstance(value, str) and len(value) <= 40:
            datetime.fromisoformat(value)
            return
    except ValueError:
        pass
    raise OptionError(f"created {value!r:.60}", reason="not a time in ISO 8601")
