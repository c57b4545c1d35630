"""What is this file? Format, variant, projector and host, from names, shapes and metadata alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.checkpoint.identify.layer_ids import number
from imageprompt.checkpoint.identify.match import Match, lora_rank, matches
from imageprompt.checkpoint.identify.other_models import explain_names
from imageprompt.checkpoint.identify.problems import SITES, Problem, problems_of
from imageprompt.checkpoint.identify.published import Published, published_as
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import Source, StoredTensor
from imageprompt.checkpoint.tensor_bytes import same_bytes
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.core.spec import OWN_BASE, AdapterSpec, HostSpec, Shape, Shapes
from imageprompt.hosts import HOSTS
from imageprompt.variants import VARIANTS, more_general, twins

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Identified", "Problem", "identify", "kinds_of", "likely_families", "read_adapter"]


@dataclass(frozen=True, kw_only=True)
class Identified:
    """All that names, shapes and metadata tell of an adapter file."""

    format: str
    variants: tuple[str, ...]
    """Every variant that it can be; empty where its projector is of none."""
    differences: str
    """What tells those variants, and the published files, from each other."""
    published: tuple[str, ...]
    spec: AdapterSpec | None
    host: str
    base: HostSpec | None
    """The sites that it was held against."""
    template: Parts[Shape]
    parts: Parts[StoredTensor]
    """One copy of every tensor, all sites by file id."""
    copies: tuple[tuple[str, StoredTensor, StoredTensor], ...]
    """Tensors that are there twice: canonical name, the one in `parts`, the other."""
    ignored: Mapping[str, StoredTensor]
    """What is beside the adapter, such as the frozen base."""
    lora_rank: int | None
    problems: tuple[Problem, ...]
    metadata: Mapping[str, str]
    matches: tuple[Match, ...]
    """The variants' templates that fit it equally well."""


def identify(source: Source, base: HostSpec | None = None) -> Identified:
    """Say what a file is, whole or damaged; `base` is the base to hold it against, if it is known.

    Raises AdapterFileError, which says what it is instead, for what is no adapter at all.
    """
    layout = next((one for one in FORMATS if one.claims(source.tensors)), None)
    if layout is None:
        explain_names(source.path, source.tensors)
    read = layout.read(source.tensors)
    numbered = number(read, base)
    parts = Parts(read.parts.projector, numbered.sites, source.metadata)
    shapes = Parts(_shapes(parts.projector), _shapes(parts.sites))
    own = source.metadata.get("host") == OWN_BASE
    tied = _settled(matches(shapes, numbered.host, published=not own), source.metadata)
    best = tied[0] if tied else None
    variants = _variants(tied, source.metadata)
    known = (
        published_as(variants, best.host.family, best.projector) if best and best.projector else ()
    )
    template = best.template if best else Parts({}, {})
    return Identified(
        format=layout.name,
        variants=variants,
        differences=_differences(variants, known),
        published=tuple(one.name for one in known),
        spec=_spec(tied, variants),
        host=best.host.family if best else OWN_BASE,
        base=best.host if best else None,
        template=template,
        parts=parts,
        copies=tuple((f"{SITES}.{name}", one, two) for name, one, two in numbered.copies),
        ignored=read.ignored,
        lora_rank=lora_rank(shapes.sites),
        problems=tuple(problems_of(read, numbered, best, shapes, source.metadata)),
        metadata=source.metadata,
        matches=tuple(tied),
    )


def read_adapter(path: Path, variant: str | None = None) -> tuple[AdapterSpec, Parts[Tensor]]:
    """Read a whole adapter of any layout, to be run; `variant` is what the user says it is.

    Raises NotFoundError, or AdapterFileError when it is none, not whole, of no known variant, or of
    one of several that run differently; OptionError for a variant that it cannot be.
    """
    from imageprompt.checkpoint.write.storage import tensor_of

    found = identify(open_source(path))
    problems = [problem.message for problem in found.problems]
    if any(not same_bytes(kept, other) for _, kept, other in found.copies):
        problems.append("the two copies of its tensors differ")
    if problems or found.spec is None:
        raise AdapterFileError(
            str(path),
            reason="; ".join(problems),
            hint="`imageprompt inspect` says more; download it again, or take another file.",
        )
    return _run_as(path, found, variant), Parts(
        {name: tensor_of(stored) for name, stored in found.parts.projector.items()},
        {name: tensor_of(stored) for name, stored in found.parts.sites.items()},
        found.metadata,
    )


def _run_as(path: Path, found: Identified, variant: str | None) -> AdapterSpec:
    """The one architecture that a file is run as: told by itself or by the user, never guessed."""
    if variant is not None and variant not in found.variants:
        raise OptionError(
            f"{path} as {variant!r}",
            reason=f"it is of variant {' or '.join(found.variants)}",
            hint="Name one of these, or give another file.",
        )
    names = kinds_of(found.variants if variant is None else (variant,))
    if len(names) > 1:
        raise AdapterFileError(
            str(path),
            reason=f"it is {' or '.join(names)}: the tensors are the same, what they make is not, "
            "and its metadata does not say",
            hint=f'Say which: variant="{names[-1]}" in Python, --variant {names[-1]} on the '
            "command line; imageprompt convert --variant writes it into the file.",
        )
    spec = _spec(found.matches, names)
    assert spec is not None
    return spec


def kinds_of(variants: Iterable[str]) -> list[str]:
    """The architectures among these variants: twins run alike."""
    wanted = {*variants}
    return [kind.name for kind in VARIANTS if {kind.name, *twins(kind)} & wanted]


def likely_families(shapes: Shapes) -> list[str]:
    """Names of the published bases that K' and V' of these shapes belong to."""
    families = (spec for host in HOSTS for spec in host.families())
    return [spec.family for spec in families if spec.shapes() == dict(shapes)]


def _shapes(tensors: Mapping[str, StoredTensor]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


# ── which of several ────────────────────────────────────────────────────────────────────────────


def _settled(tied: list[Match], metadata: Mapping[str, str]) -> list[Match]:
    """Those of one host and variant that metadata names; else of the host of a published file.

    A general variant goes where a special one fits as well.
    """
    families = [match.host.family for match in tied]
    family = metadata.get("host", "")
    if family not in families:
        hits = [m.host.family for m in tied if m.projector and m.variant and _is_published(m)]
        family = next(iter(hits or families), "")
    kept = [match for match in tied if match.host.family == family]
    told = metadata.get("variant")
    named = [m for m in kept if m.variant and told in (m.variant.name, *twins(m.variant))]
    special = {more_general(match.variant) for match in kept if match.variant}
    return named or [m for m in kept if m.variant is None or m.variant.name not in special]


def _is_published(match: Match) -> bool:
    assert match.variant is not None
    assert match.projector is not None
    names = (match.variant.name, *twins(match.variant))
    return bool(published_as(names, match.host.family, match.projector))


def _variants(tied: Sequence[Match], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Names of all that it can be; the one that metadata names, if it is among them."""
    names: list[str] = []
    for match in tied:
        if match.variant:
            names += [match.variant.name, *twins(match.variant)]
    told = metadata.get("variant", "")
    if told in names:
        return (told,)
    shortcut = metadata.get("shortcut", "").lower()
    with_it = [
        match.variant.name
        for match in tied
        if match.variant and str(getattr(match.variant, "shortcut", None)).lower() == shortcut
    ]
    return tuple(with_it or names)


def _spec(tied: Sequence[Match], variants: Sequence[str]) -> AdapterSpec | None:
    """The adapter as its first possible variant."""
    for match in tied:
        variant, projector = match.variant, match.projector
        if variant and projector and variants[0] in (variant.name, *twins(variant)):
            return AdapterSpec(
                variant=variant.name,
                host=match.host.family,
                feature=variant.feature,
                null_rule=variant.null_rule,
                projector=projector,
            )
    return None


def _differences(variants: Sequence[str], known: Sequence[Published]) -> str:
    """One line; empty where there is nothing to choose."""
    lines: dict[str, str] = {}
    if len(variants) > 1:
        for variant in VARIANTS:
            described = {variant.name: variant.summary, **twins(variant)}
            lines |= {name: described[name] for name in variants if name in described}
    if len(known) > 1:
        lines |= {one.name: one.note for one in known if one.note}
    return "; ".join(f"{name}: {text}" for name, text in lines.items())
