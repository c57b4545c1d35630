"""Style: what a style's file says about it; checked, because a stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.tensor_bytes import Weights
from imageprompt.core import __version__
from imageprompt.core.errors import OptionError
from imageprompt.library.paths import checked_name, checked_tags
from imageprompt.loading.recipe import AssetRecord, check_asset

FORMAT = 1
MAX_TEXT = 4096
MAX_NUMBER = 1e15  # NaN is not below it either
MAX_ENTRIES, MAX_DEPTH = 1000, 4  # of the recipe
_WRITTEN = (
    *("format", "name", "tags", "adapter", "encoder", "references", "recipe"),
    *("hash", "created", "version"),
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """One style of a library. `tensors` are not read before they are asked for."""

    name: str
    tags: tuple[str, ...]
    adapter: AssetRecord
    """`hash` is the projector's fingerprint; `spec` has variant, host, feature and its width."""
    encoder: AssetRecord | None
    """None for a style that was made of ready-made features."""
    references: tuple[AssetRecord, ...]
    """File names, without folders, and what the files held."""
    recipe: Mapping[str, Any]
    """How it was encoded: fusion, weights, preparation ...; of a mix, the shares."""
    hash: str
    """sha256 over tokens and null tokens."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__
    format: int = FORMAT
    path: Path = field(default=Path(), compare=False)
    tensors: Mapping[str, Weights] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        checked_name(self.name)
        checked_tags(self.tags)
        _check_references(self.references)
        _check_adapter(self.adapter)
        if self.encoder is not None:
            check_asset("encoder", self.encoder)
        _check_plain("recipe", self.recipe)
        _check_text("hash", self.hash, "[0-9a-f]{64}", "64 hex digits")
        _check_text("version", self.version, r"[\w.+-]{1,40}", "the number of a version")
        _check_time(self.created)

    @property
    def variant(self) -> str:
        return str(self.adapter.spec["variant"])

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the tokens."""
        _, count, width = self.tensors["tokens"].shape
        return count, width

    @property
    def features(self) -> tuple[Weights, ...]:
        """What the projector read, [n, ...], part by part; none where it was not kept."""
        names = ("features", "features.0", "features.1")
        return tuple(self.tensors[name] for name in names if name in self.tensors)

    def written(self) -> dict[str, Any]:
        """What the file says of it, as JSON knows it."""
        said = {name: getattr(self, name) for name in _WRITTEN}
        said["adapter"] = asdict(self.adapter)
        said["encoder"] = None if self.encoder is None else asdict(self.encoder)
        said["references"] = [{"name": one.name, "hash": one.hash} for one in self.references]
        return said | {"tags": list(self.tags), "recipe": dict(self.recipe)}

    def as_dict(self) -> dict[str, Any]:
        """All there is to tell about it, for --json."""
        tensors = {name: list(stored.shape) for name, stored in sorted(self.tensors.items())}
        return self.written() | {"path": str(self.path), "tensors": tensors}


def style_of(said: Mapping[str, Any], **more: Any) -> Style:
    """From what a file says. Raises ValueError with the rule that is broken."""
    if said.get("format") != FORMAT:
        raise ValueError(f"format {said.get('format')!r:.40}; this version reads {FORMAT}")
    if odd := sorted(set(said) ^ set(_WRITTEN)):
        what = "has an unknown" if odd[0] in said else "lacks the"
        raise ValueError(f"its description {what} key {odd[0]!r:.60}")
    if not isinstance(said["references"], list) or len(said["references"]) > MAX_ENTRIES:
        raise ValueError(f"its references are no list of at most {MAX_ENTRIES}")
    encoder = said["encoder"]
    read = dict(said) | {
        "adapter": _source(said["adapter"]),
        "encoder": None if encoder is None else _source(encoder),
        "references": tuple(_source(entry) for entry in said["references"]),
    }
    try:
        read["tags"] = checked_tags(said["tags"])
        return Style(**{**read, **more})
    except OptionError as error:
        raise ValueError(f"{error.what}: {error.reason}") from None


def _source(value: object) -> AssetRecord:
    if not isinstance(value, dict) or not {"name", "hash"} <= set(value) <= {
        "name",
        "hash",
        "spec",
    }:
        raise ValueError("an ingredient of it is no object with name and hash")
    return AssetRecord(**value)


def _check_references(references: tuple[AssetRecord, ...]) -> None:
    for record in references:
        check_asset("references", record)
    _check_plain("references", [one.name for one in references])


def _check_adapter(adapter: AssetRecord) -> None:
    check_asset("adapter", adapter)
    _check_plain("adapter", adapter.spec)
    if not isinstance(adapter.spec.get("variant"), str):
        raise OptionError("adapter", reason="its variant is not told")


def _check_plain(name: str, value: object, depth: int = 0) -> None:
    """Numbers, texts, and lists and mappings of these, none of them without end."""
    if isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH:
        if len(value) > MAX_ENTRIES:
            raise OptionError(name, reason=f"more than {MAX_ENTRIES} entries")
        for entry in value:
            _check_plain(name, entry, depth + 1)
            if isinstance(value, Mapping):
                _check_plain(name, value[entry], depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or not value.isprintable():
            raise OptionError(
                name, reason=f"not a text of at most {MAX_TEXT} characters to be shown"
            )
    elif value is not None and not (isinstance(value, int | float) and abs(value) <= MAX_NUMBER):
        raise OptionError(
            f"{name} {value!r:.60}", reason="not a number, a text, or a list of these"
        )


def _check_text(name: str, value: object, pattern: str, rule: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise OptionError(f"{name} {value!r:.60}", reason=f"not {rule}")


def _check_time(value: object) -> None:
    try:
        if isinstance(value, str) and len(value) <= 40:
            datetime.fromisoformat(value)
            return
    except ValueError:
        pass
    raise OptionError(f"created {value!r:.60}", reason="not a time in ISO 8601")
