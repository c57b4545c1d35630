"""The report of `imageprompt inspect`: what a file is, whether it is complete, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.identify.advice import Advice, advice_on
from imageprompt.checkpoint.identify.checks import (
    canonical,
    constants,
    copies_differ,
    not_finite,
    stored_numbers,
    untrained,
)
from imageprompt.checkpoint.identify.identify import Identification, identify, needs_of
from imageprompt.checkpoint.identify.problems import PROJECTOR, SITES
from imageprompt.checkpoint.identify.published import POSITIONS, likely_encoder
from imageprompt.checkpoint.read.open import locate_source, open_source
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource, dtype_names
from imageprompt.checkpoint.report import (
    Problem,
    base_name,
    problem_dicts,
    rows,
    shown,
    size_text,
)
from imageprompt.checkpoint.tensor_bytes import FULL, QUICK, full_hash, quick_hash
from imageprompt.core.errors import as_text
from imageprompt.core.hub import PARTS, Location

if TYPE_CHECKING:
    from imageprompt.checkpoint.identify.base_config import BaseConfig

MAX_METADATA = 16  # entries of the metadata in the text; the JSON has more
MAX_ENTRIES, MAX_VALUE = 1000, 100_000  # entries, and characters of each, in the JSON
HASH_INPUT = {QUICK: "first and last 4 KiB of every tensor", FULL: "all bytes"}
"""What the hashes cover besides names, dtypes and shapes: only the adapter's own tensors, so they
are the same in every layout."""


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """What a file turned out to be. `as_dict()` is the JSON, `str()` the text for people."""

    path: str
    files: tuple[str, ...]
    container: str
    format: str
    variants: tuple[str, ...]
    """Every variant that the tensors allow; `differences` says how they differ."""
    differences: str
    published: tuple[str, ...]
    host: str
    sites: int
    cross_attention_dim: int | None
    tokens: int | None
    """Tokens per reference; None if unknown, as one per patch of an unknown encoder is."""
    depth: int | None
    heads: int | None
    width: int | None
    """Inner width of the projector."""
    encoder: Mapping[str, str | int | None]
    """`feature` and `width` of what the projector reads, and the `name` of the likely encoder."""
    null_rule: str | None
    lora_rank: int | None
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, tuple[str, ...]]
    hashes: Mapping[str, str]
    """By name, see `HASH_INPUT`: the quick one, and with `deep` the full one."""
    metadata: Mapping[str, str]
    """On lines that can be shown; what is very long is cut."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    remedies: tuple[Advice, ...]

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        remedies = [vars(advice) for advice in self.remedies]
        return {**vars(self), "problems": problem_dicts(self.problems), "remedies": remedies}

    def __str__(self) -> str:
        count = len(self.problems)
        fault = f"image-prompt adapter with {count} problem{'s' * (count > 1)}"
        lines = [f"{self.path}: {fault if count else 'complete image-prompt adapter'}"]
        lines += rows(self._facts())
        if self.problems:
            lines += ["problems", *rows((found.code, found.message) for found in self.problems)]
        lines += ["what to do", *rows((advice.where, advice.line) for advice in self.remedies)]
        return as_text(lines)

    def _facts(self) -> list[tuple[str, str]]:
        encoder, base = self.encoder, base_name(self.host)
        dtypes = (f"{part} {' and '.join(names)}" for part, names in self.dtypes.items())
        entries = [f"{shown(key)}={shown(text)}" for key, text in self.metadata.items()]
        rest = len(entries) - MAX_METADATA
        metadata = entries[:MAX_METADATA] + ([f"and {rest} more"] if rest > 0 else [])
        return [
            ("format", f"{self.format} ({self.container})"),
            ("variant", " or ".join(self.variants) or "unknown"),
            *(("", difference) for difference in self.differences.split("; ")),
            ("published", ", ".join(self.published)),
            ("base", f"{base}: {self._where()}, text width {self.cross_attention_dim or '?'}"),
            ("reads", f"{encoder['feature']}, {encoder['width']} wide" if encoder["width"] else ""),
            ("projector", ", ".join(self._projector_facts())),
            ("null image", self.null_rule or ""),
            ("LoRA", f"rank {self.lora_rank}" if self.lora_rank else ""),
            ("size", f"{self.tensors} tensors, {self.parameters:,} parameters, "
             f"{size_text(self.bytes)}"),
            ("dtypes", ", ".join(dtypes)),
            *(("hash", f"{kind}:{value} ({HASH_INPUT[kind]})")
              for kind, value in self.hashes.items()),
            ("metadata", ", ".join(metadata)),
            *(("note", note) for note in self.notes),
        ]  # fmt: skip

    def _where(self) -> str:
        beside = self.null_rule == "no tokens"
        return "tokens after those of the text" if beside else f"{self.sites} sites"

    def _projector_facts(self) -> list[str]:
        counted = {"token": self.tokens, "layer": self.depth, "head": self.heads}
        facts = [f"{n} {name}{'s' * (n > 1)}" for name, n in counted.items() if n]
        return facts + ([f"width {self.width}"] if self.width else [])


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What a file with a content and a style adapter turned out to be."""

    path: str
    content: AdapterReport
    style: AdapterReport

    @property
    def parts(self) -> tuple[AdapterReport, AdapterReport]:
        return self.content, self.style

    @property
    def ok(self) -> bool:
        """True if no problem was found in either."""
        return all(part.ok for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        parts = {"content": self.content.as_dict(), "style": self.style.as_dict()}
        return {"path": self.path, "pair": parts, "ok": self.ok}

    def __str__(self) -> str:
        start = f"{self.path}: a pair of adapters, for the content and the style of a picture"
        return as_text([start, *(line for part in self.parts for line in str(part).splitlines())])


def inspect(
    path: Location, deep: bool = False, base: Location | None = None
) -> AdapterReport | PairReport:
    """Identify a file, a folder or a Hub file by its tensors, never by its name.

    A file that holds a pair of adapters gives a report on both. `base` (a folder, a published
    family or "bundled") is what the sites are compared with. `deep` reads the weights too: NaN,
    constant tensors, unequal copies, and weights still equal to those of `base` or of the base
    inside a training checkpoint. Raises NotFoundError, OptionError, and AdapterFileError, which
    says what the file is, if it is not an adapter.
    """
    against = None
    if base is not None:
        from imageprompt.checkpoint.identify.base_config import open_base

        against = open_base(base)
    source = open_source(locate_source(path))
    if source.holds_pair:
        content, style = (_report(source.part(part), deep, against) for part in PARTS)
        return PairReport(path=str(source.path), content=content, style=style)
    return _report(source, deep, against)


def _report(source: TensorSource, deep: bool, against: BaseConfig | None) -> AdapterReport:
    if source.light is not None and (deep or against is not None):
        from imageprompt.checkpoint.identify.light_base import on_files

        source = on_files(source, against)
    found = identify(source, against.spec if against else None)
    tensors = canonical(found.parts)
    stored = tensors if source.light is None else source.light.stored
    whole, dtype_notes = stored_numbers(tensors)
    problems = [*found.problems, *whole]
    if deep:
        problems += copies_differ(found) + not_finite(tensors) + constants(tensors)
        problems += untrained(found, against)
    hashes = {QUICK: quick_hash(stored)} | ({FULL: full_hash(tensors)} if deep else {})
    return AdapterReport(
        path=str(source.path),
        files=tuple(str(file) for file in source.files),
        container=source.container,
        format=found.format,
        variants=found.variants,
        differences=found.differences,
        published=found.published,
        host=found.host,
        sites=len({name.split(".", 1)[0] for name in found.parts.sites if "_ip." in name}),
        **_projector(found),
        lora_rank=found.lora_rank,
        tensors=len(tensors),
        parameters=_parameters(stored),
        bytes=sum(tensor.nbytes for tensor in stored.values()),
        dtypes=_dtypes(found),
        hashes=hashes,
        metadata=_metadata(found.metadata),
        problems=tuple(problems),
        notes=(*source.notes, *dtype_notes, *needs_of(found)),
        remedies=tuple(advice_on(found, source, problems)),
    )


def _parameters(stored: Mapping[str, StoredTensor]) -> int:
    return sum(prod(tensor.shape) for tensor in stored.values())


def _metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    entries = list(metadata.items())[:MAX_ENTRIES]
    return {shown(key): shown(text, MAX_VALUE) for key, text in entries}


def _projector(found: Identification) -> dict[str, Any]:
    """What the projector's tensors say; None for what none of them says."""
    spec = found.spec
    if spec is None:
        names = ("cross_attention_dim", "tokens", "depth", "heads", "width", "null_rule")
        return dict.fromkeys(names) | {"encoder": {"feature": None, "width": None, "name": None}}
    name = likely_encoder(spec.feature, spec.feature_dim, found.published)
    return {
        "cross_attention_dim": spec.cross_attention_dim or None,
        "tokens": POSITIONS.get(name or "") if spec.tokens is None else spec.tokens or None,
        "depth": spec.depth or None,
        "heads": spec.heads or None,
        "width": spec.projector.inner_dim or None,
        "encoder": {
            "feature": str(spec.feature),
            "width": spec.feature_dim or None,
            "name": name,
        },
        "null_rule": spec.null_rule,
    }


def _dtypes(found: Identification) -> dict[str, tuple[str, ...]]:
    """Part -> the dtypes of its tensors; LoRA apart from K' and V'."""
    sites = found.parts.sites.items()
    parts = {
        PROJECTOR: list(found.parts.projector.values()),
        SITES: [tensor for name, tensor in sites if "_lora." not in name],
        "lora": [tensor for name, tensor in sites if "_lora." in name],
    }
    return {part: dtype_names(tensors) for part, tensors in parts.items() if tensors}
