"""What is this file, is it whole, and what to do with it? The answer to `imageprompt inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from imageprompt.checkpoint.identify.advice import Remedy, remedies
from imageprompt.checkpoint.identify.base_config import locate_source, open_base
from imageprompt.checkpoint.identify.checks import (
    canonical,
    constants,
    copies_differ,
    not_finite,
    untrained,
)
from imageprompt.checkpoint.identify.identify import Identified, identify
from imageprompt.checkpoint.identify.problems import PROJECTOR, SITES, Problem
from imageprompt.checkpoint.identify.published import POSITIONS, likely_encoder
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.tensor_bytes import FULL, QUICK, full_hash, quick_hash
from imageprompt.checkpoint.text import dtype_names, printable, problem_dicts, rows, size_in_words
from imageprompt.core.hub import Location

SHOWN = 16  # entries of the metadata that the text names; the JSON has all
HASHED = {
    QUICK: "names, dtypes, shapes and both ends (4 KiB) of every tensor",
    FULL: "names, dtypes, shapes and all bytes of every tensor",
}
"""What the hashes are of, which is the same in every layout: only the adapter's own tensors."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a file turned out to be. `as_dict()` is the JSON, `str()` the text for people."""

    path: str
    files: tuple[str, ...]
    container: str
    format: str
    variants: tuple[str, ...]
    """All that its tensors allow; `differences` says what differs between them."""
    differences: str
    published: tuple[str, ...]
    host: str
    sites: int
    cross_attention_dim: int | None
    tokens: int | None
    """Tokens a reference; None where they are one per patch of an unknown encoder, or not told."""
    depth: int | None
    heads: int | None
    width: int | None
    encoder: Mapping[str, str | int | None]
    """`feature` and `width` of what the projector reads, and the `name` of the likely encoder."""
    null_rule: str | None
    lora_rank: int | None
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, tuple[str, ...]]
    hashes: Mapping[str, str]
    """By what was hashed, see `HASHED`: the quick one, and the full one of a deep look."""
    metadata: Mapping[str, str]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    remedies: tuple[Remedy, ...]

    @property
    def whole(self) -> bool:
        """Nothing is wrong with it, as far as was looked."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        advice = [vars(remedy) for remedy in self.remedies]
        return {**vars(self), "problems": problem_dicts(self.problems), "remedies": advice}

    def __str__(self) -> str:
        count = len(self.problems)
        verdict = "a whole image-prompt adapter" if not count else "an image-prompt adapter with "
        lines = [f"{self.path}: {verdict}{f'{count} problem' + 's' * (count > 1) if count else ''}"]
        lines += rows(self._facts())
        if self.problems:
            lines += ["problems", *(f"  {problem.message}" for problem in self.problems)]
        lines += ["what to do", *rows((advice.where, advice.line) for advice in self.remedies)]
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        shape = {"depth": self.depth, "heads": self.heads, "width": self.width}
        sizes = [f"{self.tokens} tokens"] * bool(self.tokens)
        sizes += [f"{name} {value}" for name, value in shape.items() if value]
        encoder = self.encoder
        dtypes = (f"{part} {' and '.join(names)}" for part, names in self.dtypes.items())
        entries = list(self.metadata.items())
        metadata = [f"{printable(key)}={printable(value)}" for key, value in entries[:SHOWN]]
        metadata += [f"and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
        return [
            ("format", f"{self.format}, in {self.container}"),
            ("variant", " or ".join(self.variants) or "unknown"),
            ("", self.differences),
            ("published", ", ".join(self.published)),
            ("host", f"{self.host}: {self.sites} sites, text width {self.cross_attention_dim or '?'}"),
            ("reads", f"{encoder['feature']}, {encoder['width']} wide" if encoder["width"] else ""),
            ("projector", ", ".join(sizes)),
            ("no picture", self.null_rule or ""),
            ("LoRA", f"rank {self.lora_rank}" if self.lora_rank else ""),
            ("size", f"{self.tensors} tensors, {self.parameters:,} parameters, "
             f"{size_in_words(self.bytes)}"),
            ("dtypes", ", ".join(dtypes)),
            *(("hash", f"{kind}:{value} ({HASHED[kind]})") for kind, value in self.hashes.items()),
            ("metadata", ", ".join(metadata)),
            *(("note", note) for note in self.notes),
        ]  # fmt: skip


def inspect(path: Location, deep: bool = False, base: Location | None = None) -> Report:
    """Identify a file, a training folder or a Hub file by its tensors, never by its name.

    `deep` reads the weights too: NaN, constant tensors, unequal copies, and weights equal to the
    base's own (to those of `base`, a folder, or of the base inside a training checkpoint). `base`
    is also what the sites are held against. Raises NotFoundError, OptionError, and
    AdapterFileError, which says what the file is, if it is no adapter.
    """
    against = None if base is None else open_base(base)
    source = open_source(locate_source(path))
    found = identify(source, against.spec if against else None)
    tensors = canonical(found.parts)
    problems = list(found.problems)
    if deep:
        problems += copies_differ(found) + not_finite(tensors) + constants(tensors)
        problems += untrained(found, against)
    hashes = {QUICK: quick_hash(tensors)} | ({FULL: full_hash(tensors)} if deep else {})
    return Report(
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
        parameters=sum(prod(tensor.shape) for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtypes=_dtypes(found),
        hashes=hashes,
        metadata=found.metadata,
        problems=tuple(problems),
        notes=source.notes,
        remedies=tuple(remedies(found, source, problems)),
    )


def _projector(found: Identified) -> dict[str, Any]:
    """What the projector says about itself; None is what no tensor tells."""
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


def _dtypes(found: Identified) -> dict[str, tuple[str, ...]]:
    """Part -> the dtypes of its tensors; LoRA apart from K' and V'."""
    sites = found.parts.sites.items()
    parts = {
        PROJECTOR: list(found.parts.projector.values()),
        SITES: [tensor for name, tensor in sites if "_lora." not in name],
        "lora": [tensor for name, tensor in sites if "_lora." in name],
    }
    return {part: dtype_names(tensors) for part, tensors in parts.items() if tensors}
