"""Everything that is wrong with an adapter file: by itself, for a base, for an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imageprompt.checkpoint.identify.base_config import (
    Base,
    encoder_widths,
    locate_source,
    open_base,
)
from imageprompt.checkpoint.identify.checks import (
    canonical,
    constants,
    copies_differ,
    not_finite,
    untrained,
)
from imageprompt.checkpoint.identify.identify import Identified, identify
from imageprompt.checkpoint.identify.problems import Problem
from imageprompt.checkpoint.identify.published import encoder_name
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import Source
from imageprompt.checkpoint.text import problem_dicts
from imageprompt.core.errors import AdapterFileError
from imageprompt.core.hub import Location


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is wrong with a file; nothing, if `ok`."""

    path: str
    checked: tuple[str, ...]
    findings: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "findings": problem_dicts(self.findings), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.path}: {finding.code}: {finding.message}" for finding in self.findings]
        return "\n".join(lines or [f"{self.path}: nothing is wrong ({', '.join(self.checked)})"])


def validate(
    path: Location, base: Location | None = None, encoder: Location | None = None
) -> Findings:
    """Check names, shapes and every value of a file; with `base` and `encoder`, that they fit.

    `base` is the folder of a pipeline or denoiser (its weights are compared as well: was anything
    trained?) or a published family; `encoder` a folder. A file that is no adapter is a finding.
    Raises NotFoundError and OptionError.
    """
    against = None if base is None else open_base(base)
    widths = None if encoder is None else encoder_widths(encoder)
    place = locate_source(path)
    checked = ["whole", "finite", "not constant"]
    checked += ["fits the base"] if against else []
    checked += ["fits the encoder"] if widths else []
    try:
        findings = _findings(open_source(place), against, widths)
    except AdapterFileError as error:
        findings = [Problem("no-adapter", f"{error.reason}. {error.hint}")]
    return Findings(path=str(place), checked=tuple(checked), findings=tuple(findings))


def _findings(
    source: Source, against: Base | None, widths: Mapping[str, int] | None
) -> list[Problem]:
    """By itself, then beside base and encoder. Raises AdapterFileError where it is no adapter."""
    found = identify(source, against.spec if against else None)
    problems = list(found.problems)
    if against is not None and problems:
        alone = identify(source)
        problems = problems if alone.problems else [_wrong_base(alone, against, problems)]
    tensors = canonical(found.parts)
    problems += copies_differ(found) + not_finite(tensors) + constants(tensors)
    problems += untrained(found, against)
    return problems if widths is None else problems + _wrong_encoder(found, widths)


def _wrong_base(alone: Identified, against: Base, problems: Sequence[Problem]) -> Problem:
    """A whole adapter, for another base."""
    what = "; ".join(problem.message for problem in problems)
    return Problem(
        "wrong-base", f"it was made for {alone.host}, not for {against.spec.family}: {what}"
    )


def _wrong_encoder(found: Identified, widths: Mapping[str, int]) -> list[Problem]:
    if found.spec is None:
        return []
    wanted, width = found.spec.feature, found.spec.feature_dim
    made = wanted.image if wanted.image in widths else None
    if made is not None and widths[made] == width:
        return []
    offer = ", ".join(f"{feature} {count} wide" for feature, count in widths.items())
    name = encoder_name(wanted, width)
    likely = f"; it was made for {name}" if name else ""
    message = f"it reads {wanted} {width} wide, this encoder makes {offer}{likely}"
    return [Problem("wrong-encoder", message)]
