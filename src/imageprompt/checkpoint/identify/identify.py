"""What a file is: format, variant, projector and host, from names, shapes and metadata alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imageprompt.checkpoint.formats import ParsedNames, Parts, parse_names
from imageprompt.checkpoint.identify.layer_ids import NumberedSites, number_sites
from imageprompt.checkpoint.identify.match import Match, best_matches, lora_rank, plausible
from imageprompt.checkpoint.identify.problems import (
    PROJECTOR,
    SITES,
    differing_copies,
    problems_of,
    wrong_base,
)
from imageprompt.checkpoint.identify.published import PUBLISHED, PublishedAdapter, published_as
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource
from imageprompt.checkpoint.report import Problem
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.core.spec import OWN_BASE, AdapterSpec, Feature, HostSpec, Shape, Shapes
from imageprompt.hosts import families
from imageprompt.variants import VARIANTS, Variant, more_general, readable_features, twins

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.checkpoint.identify.counted_ids import CountedIds

MAX_TENSORS = 5000  # FaceID for SDXL, with its LoRA, has 1,300
MAX_NAME = 80  # characters of what a file says its encoder is
FIRST_COUNTED = "0.to_k_ip.weight"  # of sites that are counted: a UNet's first site is 1


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Everything that names, shapes and metadata say about an adapter file."""

    format: str
    variants: tuple[str, ...]
    """Every variant that fits; empty if the projector fits none."""
    differences: str
    """How those variants, and the published files, differ from each other."""
    published: tuple[str, ...]
    spec: AdapterSpec | None
    host: str
    base: HostSpec | None
    """The host that it was compared with."""
    template: Parts[Shape]
    parts: Parts[StoredTensor]
    """One copy of every tensor, all sites by file id."""
    copies: tuple[tuple[str, StoredTensor, StoredTensor], ...]
    """Tensors that are stored twice: canonical name, the one in `parts`, the other."""
    stored_as: Mapping[int, str]
    """`id` of a stored tensor -> its name in the file."""
    ignored: Mapping[str, StoredTensor]
    """Tensors that are not the adapter's, such as the frozen base."""
    lora_rank: int | None
    problems: tuple[Problem, ...]
    metadata: Mapping[str, str]
    matches: tuple[Match, ...]
    """The templates that fit it equally well."""
    notes: tuple[str, ...] = ()


def identify(
    source: TensorSource, base: HostSpec | None = None, *, renumber: bool = False
) -> Identification:
    """Say what a file is, complete or damaged; `base` is the base to compare it with, if known.

    A file that clearly belongs to another base than `base` is described for its own base, and its
    first problem is "wrong-base". Sites that were counted otherwise than in the file format are a
    problem, unless `renumber` asks for their own ids; they are described under those. Raises
    AdapterFileError, which says what the file is instead, if it is not an adapter at all.
    """
    found = _identify(source, base, renumber)
    if base is None or not found.problems or plausible(*_key_values(found)):
        return found
    alone = _identify(source, None, renumber)
    if alone.base is None or any(problem.code == "unknown-layers" for problem in alone.problems):
        return found
    return replace(alone, problems=(wrong_base(alone.base, base), *alone.problems))


def _key_values(found: Identification) -> tuple[Shapes, Shapes]:
    """K' and V' of the template and of the file."""
    shapes = _shapes(found.parts.sites)
    template, ours = (
        {name: shape for name, shape in sites.items() if "_ip." in name}
        for sites in (found.template.sites, shapes)
    )
    return template, ours


def _identify(source: TensorSource, base: HostSpec | None, renumber: bool) -> Identification:
    if source.holds_pair:
        raise AdapterFileError(
            str(source.path),
            reason="holds a pair of adapters, content and style",
            hint=f"Name one of them: {source.path.name}#content or {source.path.name}#style; "
            "generate takes both: --content PIC --style PIC --adapter FILE.",
        )
    understood = parse_names(source.tensors)
    if understood is None:
        from imageprompt.checkpoint.read.refusals import explain_names

        explain_names(source.path, source.tensors)
    layout, parsed = understood
    count = len(parsed.parts.projector) + len(parsed.parts.sites)
    if count > MAX_TENSORS:
        reason = f"it contains {count} tensors of an adapter; the limit is {MAX_TENSORS}"
        raise AdapterFileError(str(source.path), reason=reason, hint="Use another file.")
    numbered = number_sites(parsed, base)
    counted = _counted(numbered)
    sites = counted.renumbered(numbered.sites) if counted else numbered.sites
    parts = Parts(parsed.parts.projector, sites, source.metadata)
    shapes = Parts(_shapes(parts.projector), _shapes(parts.sites))
    own = source.metadata.get("host") == OWN_BASE
    tied = best_matches(
        shapes,
        numbered.host,
        published=not own,
        stated=source.metadata.get("variant", ""),
        host=source.metadata.get("host", ""),
    )
    tied = _of_one_host(tied, source.metadata)
    best = tied[0] if tied else None
    variants = _variants(tied, source.metadata)
    known = (
        published_as(variants, best.host.family, best.projector) if best and best.projector else ()
    )
    spec = _spec(tied, variants, source.metadata)
    if spec is not None and spec.feature != VARIANTS[spec.variant].feature:
        known = ()  # another encoder's features, though they may be as wide
    problems = tuple(problems_of(parsed, numbered, best, shapes, source.metadata))
    asked = counted is not None and renumber and counted.order is not None
    if counted and not asked:
        problems = (counted.problem(), *problems)
    return Identification(
        format=layout,
        variants=variants,
        differences=_differences(variants, known),
        published=tuple(one.name for one in known),
        spec=spec,
        host=best.host.family if best else OWN_BASE,
        base=best.host if best else None,
        template=best.template if best else Parts({}, {}),
        parts=parts,
        copies=tuple(_copies(parsed, numbered, parts)),
        stored_as={id(tensor): name for name, tensor in source.tensors.items()},
        ignored=parsed.ignored,
        lora_rank=lora_rank(shapes.sites),
        problems=problems,
        metadata=source.metadata,
        matches=tuple(tied),
        notes=(counted.note(),) if counted and asked else (),
    )


def _counted(numbered: NumberedSites[StoredTensor]) -> CountedIds | None:
    if FIRST_COUNTED not in numbered.sites:
        return None
    from imageprompt.checkpoint.identify.counted_ids import counted_ids  # for few files

    return counted_ids(_shapes(numbered.sites), numbered.host)


def _copies(
    parsed: ParsedNames[StoredTensor],
    numbered: NumberedSites[StoredTensor],
    parts: Parts[StoredTensor],
) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """Tensors stored under two names: of a layer and of its id, or with and without a wrapper."""
    names = {id(tensor): f"{PROJECTOR}.{name}" for name, tensor in parts.projector.items()}
    names |= {id(tensor): f"{SITES}.{name}" for name, tensor in parts.sites.items()}
    for name, one, other in numbered.copies:
        names[id(other)] = f"{SITES}.{name}"
        yield f"{SITES}.{name}", one, other
    for one, other in parsed.copies:
        if id(one) in names:
            yield names[id(one)], one, other


def read_adapter(
    path: Path,
    variant: str | None = None,
    on_base: Callable[[TensorSource], TensorSource] | None = None,
) -> tuple[AdapterSpec, Parts[Tensor]]:
    """Load a complete adapter of any layout, from a file or folder; `variant` is the user's choice.

    `on_base` gives a light adapter the weights of its base, without which it cannot be read.
    Raises NotFoundError; AdapterFileError if it is not an adapter, is incomplete, of no known
    variant, or of one of several that run differently; OptionError for a variant that does not fit.
    """
    from imageprompt.checkpoint.torch_io import tensor_of

    source = open_source(path)
    if source.light is not None and on_base is not None:
        source = on_base(source)
    found = identify(source)
    faults = [*found.problems, *differing_copies(found.copies, found.stored_as)]
    problems = [problem.message for problem in faults]
    if problems or found.spec is None:
        raise AdapterFileError(
            str(path),
            reason="; ".join(problems),
            hint="`imageprompt inspect` says more. Download it again, or use another file.",
        )
    return run_as(path, found, variant), Parts(
        {name: tensor_of(stored) for name, stored in found.parts.projector.items()},
        {name: tensor_of(stored) for name, stored in found.parts.sites.items()},
        found.metadata,
    )


def run_as(path: Path, found: Identification, variant: str | None) -> AdapterSpec:
    """The architecture to run a file as: stated by the file or by the user, never guessed."""
    if variant is not None and variant not in found.variants:
        raise OptionError(
            f"{path} as {variant!r}",
            reason=f"the file is of variant {' or '.join(found.variants)}",
            hint="Choose one of these, or give another file.",
        )
    names = architectures(found.variants if variant is None else (variant,))
    others = needs_of(found) if variant is None else ()
    if others:
        raise AdapterFileError(
            str(path),
            reason=f"these are the tensors of {' and of '.join(found.published)}; {others[0]}",
            hint="InstantID as a whole does not run here. If this is the other adapter, or to use "
            f'this half alone, choose variant="{names[0]}" in Python, --variant {names[0]} on the '
            "command line.",
        )
    if len(names) > 1:
        raise AdapterFileError(
            str(path),
            reason=f"this may be {' or '.join(names)}, which have the same tensors but run "
            "differently; the metadata does not say which",
            hint=f'Choose one: variant="{names[-1]}" in Python, --variant {names[-1]} on the '
            "command line; imageprompt convert --variant writes it into the file.",
        )
    spec = _spec(found.matches, names, found.metadata)
    assert spec is not None
    return spec


def needs_of(found: Identification) -> tuple[str, ...]:
    """What the published adapters that this may be need besides, if no metadata tells which."""
    if "variant" in found.metadata:
        return ()
    return tuple(one.needs for one in PUBLISHED if one.name in found.published and one.needs)


def architectures(variants: Iterable[str]) -> list[str]:
    """The variants among these that run differently: twins run alike."""
    names = {*variants}
    if len(names) == 1 and VARIANTS.get(*names) is not None:
        return [*names]
    return [variant.name for variant in VARIANTS if {variant.name, *twins(variant)} & names]


def likely_families(shapes: Shapes) -> list[str]:
    """Names of the published bases with K' and V' of these shapes."""
    return [spec.family for spec in families() if spec.shapes() == dict(shapes)]


def _shapes(tensors: Mapping[str, StoredTensor]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


# ── one of several ──────────────────────────────────────────────────────────────────────────────


def _of_one_host(tied: list[Match], metadata: Mapping[str, str]) -> list[Match]:
    """Those of the host and variant that the metadata names, else of the host of a published file.

    A general variant is dropped if a more special one fits as well.
    """
    families = [match.host.family for match in tied]
    family = metadata.get("host", "")
    if family not in families:
        hits = [m.host.family for m in tied if m.projector and m.variant and _is_published(m)]
        family = next(iter(hits or families), "")
    matches = [match for match in tied if match.host.family == family]
    stated = metadata.get("variant")
    named = [m for m in matches if m.variant and stated in (m.variant.name, *twins(m.variant))]
    general = {more_general(match.variant) for match in matches if match.variant}
    return named or [m for m in matches if m.variant is None or m.variant.name not in general]


def _is_published(match: Match) -> bool:
    assert match.variant is not None
    assert match.projector is not None
    names = (match.variant.name, *twins(match.variant))
    return bool(published_as(names, match.host.family, match.projector))


def _variants(tied: Sequence[Match], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Names of all variants that fit; only the one that the metadata names, if it fits."""
    names: list[str] = []
    for match in tied:
        if match.variant:
            names += [match.variant.name, *twins(match.variant)]
    stated = metadata.get("variant", "")
    if stated in names:
        return (stated,)
    shortcut = metadata.get("shortcut", "").lower()
    with_shortcut = [
        match.variant.name
        for match in tied
        if match.variant and str(getattr(match.variant, "shortcut", None)).lower() == shortcut
    ]
    return tuple(with_shortcut or names)


def _spec(
    tied: Sequence[Match], variants: Sequence[str], metadata: Mapping[str, str]
) -> AdapterSpec | None:
    """The adapter as its first possible variant, reading what the metadata says if that can be."""
    for match in tied:
        variant, projector = match.variant, match.projector
        if variant and projector and variants[0] in (variant.name, *twins(variant)):
            return AdapterSpec(
                variant=variant.name,
                host=match.host.family,
                feature=_stated_feature(variant, metadata),
                null_rule=variant.null_rule,
                projector=projector,
                encoder_type=metadata.get("encoder_type", "")[:MAX_NAME],
            )
    return None


def _stated_feature(variant: Variant, metadata: Mapping[str, str]) -> Feature:
    stated = metadata.get("feature")
    found = (one for one in readable_features(variant) if str(one) == stated)
    return next(found, variant.feature)


def _differences(variants: Sequence[str], known: Sequence[PublishedAdapter]) -> str:
    """One line; empty if there is nothing to choose."""
    lines: dict[str, str] = {}
    if len(variants) > 1:
        for variant in VARIANTS:
            described = {variant.name: variant.summary, **twins(variant)}
            lines |= {name: described[name] for name in variants if name in described}
    if len(known) > 1:
        lines |= {one.name: one.note for one in known if one.note}
    return "; ".join(f"{name}: {text}" for name, text in lines.items())
