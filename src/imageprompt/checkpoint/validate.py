"""Everything that is wrong with an adapter file: by itself, for a base, for an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imageprompt.checkpoint.identify.base_config import BaseConfig, encoder_widths, open_base
from imageprompt.checkpoint.identify.checks import (
    canonical,
    constants,
    copies_differ,
    not_finite,
    stored_numbers,
    untrained,
)
from imageprompt.checkpoint.identify.identify import Identification, identify, needs_of
from imageprompt.checkpoint.identify.published import encoder_name
from imageprompt.checkpoint.read.open import locate_source, open_source
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.checkpoint.report import Problem, problem_dicts
from imageprompt.core.errors import AdapterFileError, as_text
from imageprompt.core.hub import PARTS, Location


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What is wrong with a file; `ok` if nothing is."""

    path: str
    checked: tuple[str, ...]
    findings: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    """What is not a fault, but good to know: float8 weights, what else an adapter needs."""

    @property
    def ok(self) -> bool:
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "findings": problem_dicts(self.findings), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.path}: {finding.code}: {finding.message}" for finding in self.findings]
        lines = lines or [f"{self.path}: no problems found ({', '.join(self.checked)})"]
        return as_text([*lines, *(f"{self.path}: note: {note}" for note in self.notes)])


def validate(
    path: Location, base: Location | None = None, encoder: Location | None = None
) -> ValidationResult:
    """Check names, shapes and every value of a file, and that it fits `base` and `encoder`.

    `base` is the folder of a pipeline or denoiser (its weights are compared too: was anything
    trained?), a published family or "bundled"; `encoder` is a folder or "bundled". A file that is
    not an adapter is a finding. Raises NotFoundError and OptionError.
    """
    against = None if base is None else open_base(base)
    widths = None if encoder is None else encoder_widths(encoder)
    local = locate_source(path)
    checked = ["complete", "finite", "not constant"]
    checked += ["fits the base"] if against else []
    checked += ["fits the encoder"] if widths else []
    notes: list[str] = []
    try:
        findings, notes = _findings(open_source(local), against, widths)
    except AdapterFileError as error:
        findings = [Problem("no-adapter", f"{error.reason}. {error.hint}")]
    return ValidationResult(
        path=str(local), checked=tuple(checked), findings=tuple(findings), notes=tuple(notes)
    )


def _findings(
    source: TensorSource, against: BaseConfig | None, widths: Mapping[str, int] | None
) -> tuple[list[Problem], list[str]]:
    """Findings and notes. Raises AdapterFileError if the source is not an adapter."""
    if source.holds_pair:
        return _findings_of_pair(source, against, widths)
    found = identify(source, against.spec if against else None)
    tensors = canonical(found.parts)
    whole, dtype_notes = stored_numbers(tensors)
    problems = [*found.problems, *whole, *copies_differ(found), *not_finite(tensors)]
    problems += [*constants(tensors), *untrained(found, against)]
    problems += [] if widths is None else _wrong_encoder(found, widths)
    return problems, [*dtype_notes, *needs_of(found)]


def _findings_of_pair(
    source: TensorSource, against: BaseConfig | None, widths: Mapping[str, int] | None
) -> tuple[list[Problem], list[str]]:
    """Those of both adapters, each with the name of its part before it."""
    problems: list[Problem] = []
    notes: list[str] = []
    for part in PARTS:
        findings, about = _findings(source.part(part), against, widths)
        problems += [Problem(one.code, f"{part}: {one.message}") for one in findings]
        notes += [f"{part}: {note}" for note in about]
    return problems, notes


def _wrong_encoder(found: Identification, widths: Mapping[str, int]) -> list[Problem]:
    if found.spec is None:
        return []
    feature, width = found.spec.feature, found.spec.feature_dim
    if feature.image and widths.get(feature.image) == width:
        return []
    outputs = ", ".join(f"{name} {size} wide" for name, size in widths.items())
    name = encoder_name(feature, width)
    likely = f" ({name})" if name else ""
    message = f"reads {feature} {width} wide{likely}, but this encoder makes {outputs}"
    return [Problem("wrong-encoder", message)]
