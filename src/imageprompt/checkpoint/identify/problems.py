"""What is wrong with an adapter's names and shapes: missing, extra, misshapen, contradictory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from imageprompt.checkpoint.formats import ParsedNames, Parts
from imageprompt.checkpoint.identify.layer_ids import NumberedSites
from imageprompt.checkpoint.identify.match import KEY, VALUE, Match, ShapeDifference
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.checkpoint.report import Problem, base_name, first_names, tensors_that
from imageprompt.checkpoint.tensor_bytes import same_bytes
from imageprompt.core.spec import FEATURES, HostSpec, Shape, Shapes
from imageprompt.variants import (
    VARIANTS,
    has_place,
    projected_as_text,
    readable_features,
    tensor_shapes,
    twins,
)

PROJECTOR, SITES = "image_proj", "ip_adapter"


def problems_of(
    parsed: ParsedNames[StoredTensor],
    numbered: NumberedSites[StoredTensor],
    best: Match | None,
    shapes: Parts[Shape],
    metadata: Mapping[str, str],
) -> Iterator[Problem]:
    """Everything that is wrong with a file by its names, shapes and metadata."""
    if parsed.unplaced:
        yield _extra(parsed.unplaced, "layout")
    if numbered.unknown:
        names = numbered.unknown
        lacking = "that this base does not have"
        what = tensors_that(names, f"is of a layer {lacking}", f"are of layers {lacking}")
        yield Problem("unknown-layers", f"{what}; name the base that it was trained on")
    if best is None:
        yield Problem("missing", "there are no K' and V' weights, so the base is unknown")
        return
    if best.variant is None:
        known = ", ".join(variant.name for variant in VARIANTS)
        which = f"({first_names(shapes.projector)}); known variants: {known}"
        what = f"the projector fits no known variant {which}"
        yield Problem("unknown-variant", what if shapes.projector else "there is no projector")
    if best.variant is not None and not best.template.sites:
        yield from _no_place(best)
    template, found = _canonical(best.template), _canonical(shapes)
    difference = ShapeDifference.between(template, found)
    if difference.missing:
        yield _missing(difference.missing, template)
    if difference.extra:
        yield _extra(difference.extra, "adapter")
    if difference.misshapen:
        yield _misshapen(difference.misshapen, template, found)
    yield from _contradictions(best, shapes, metadata)


def _no_place(best: Match) -> Iterator[Problem]:
    """An adapter without sites fits a base whose text takes tokens as wide as its own."""
    assert best.variant is not None
    assert best.projector is not None
    made, host = best.projector.cross_attention_dim, best.host
    name = base_name(host.family)
    if not has_place(best.variant, host):
        yield Problem("wrong-base", f"its tokens follow those of the text, not so on {name}")
    elif made != host.cross_attention_dim:
        message = f"its tokens are {made} wide, the text of this {name} is "
        yield Problem("wrong-base", f"{message}{host.cross_attention_dim}")


def differing_copies(
    copies: Iterable[tuple[str, StoredTensor, StoredTensor]], stored_as: Mapping[int, str]
) -> list[Problem]:
    """Tensors that a file stores under two names must be equal to the bit."""
    differing = [
        (stored_as.get(id(one), name), stored_as.get(id(other), name))
        for name, one, other in copies
        if one.storage != other.storage and not same_bytes(one, other)
    ]
    if not differing:
        return []
    first, second = differing[0]
    what = "1 tensor is" if len(differing) == 1 else f"{len(differing)} tensors are"
    message = f"{what} stored twice, and the copies differ ({first} and {second}"
    return [Problem("copies-differ", message + (", ...)" if len(differing) > 1 else ")"))]


def wrong_base(made_for: HostSpec, base: HostSpec) -> Problem:
    """The file was made for another base than the one that the user names."""
    return Problem("wrong-base", f"made for {_described(made_for)}, not for {_described(base)}")


def _described(host: HostSpec) -> str:
    sizes = f"{len(host.sites)} sites, text width {host.cross_attention_dim}"
    return f"{base_name(host.family)} ({sizes})"


def _canonical(parts: Parts[Shape]) -> dict[str, Shape]:
    return tensor_shapes.under(PROJECTOR, parts.projector) | tensor_shapes.under(SITES, parts.sites)


def _extra(names: Sequence[str], container: str) -> Problem:
    what = f"not belong to this {container}"
    return Problem("extra", tensors_that(names, f"does {what}", f"do {what}"))


def _missing(names: Sequence[str], template: Shapes) -> Problem:
    verb = "is" if len(names) == 1 else "are"
    what = f"{len(names)} of {len(template)} tensors {verb} missing"
    if set(names) == {name for name in template if "_lora." in name}:
        what += ": all of its LoRA, which a filter for `_ip.` loses; convert the checkpoint again"
    return Problem("missing", f"{what} ({first_names(names)})")


def _misshapen(names: Sequence[str], template: Shapes, found: Shapes) -> Problem:
    shapes = [f"{name} is {list(found[name])} instead of {list(template[name])}" for name in names]
    sites = [name for name in names if name.startswith(SITES)]
    subject = "1 tensor has" if len(names) == 1 else f"{len(names)} tensors have"
    what = f"{subject} the wrong shape"
    if sites and sorted(found[n] for n in sites) == sorted(template[n] for n in sites):
        what += ", that of another layer: the layers were numbered by counting, not by the base"
    return Problem("misshapen", f"{what} ({first_names(shapes)})")


def _contradictions(
    best: Match, shapes: Parts[Shape], metadata: Mapping[str, str]
) -> Iterator[Problem]:
    """What does not fit together although every tensor has its shape."""
    widths = Counter(
        shape[-1] for name, shape in shapes.sites.items() if shape and name.endswith((KEY, VALUE))
    )
    if best.projector and widths:
        made, ((read, _),) = best.projector.cross_attention_dim, widths.most_common(1)
        between = best.variant is not None and projected_as_text(best.variant)
        if made != read and not between:
            message = f"the projector makes tokens {made} wide, but K' and V' read {read}: "
            yield Problem("mismatched", f"{message}these are halves of two adapters")
    stated, feature = metadata.get("variant"), metadata.get("feature")
    if best.variant is not None and stated == best.variant.name and feature in FEATURES:
        known = tuple(map(str, readable_features(best.variant)))
        if feature not in known:
            message = f"the metadata says that it reads {feature}, but {stated} adapters read "
            yield Problem("metadata", message + " or ".join(known))
    if best.variant is None or stated in (None, best.variant.name, *twins(best.variant)):
        return
    if stated in {name for variant in VARIANTS for name in (variant.name, *twins(variant))}:
        message = f"the metadata says {stated}, but the tensors are those of {best.variant.name}"
        yield Problem("metadata", message)
