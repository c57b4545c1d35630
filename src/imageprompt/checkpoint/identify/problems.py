"""What is wrong with an adapter's names and shapes: missing, extra, misshapen, contradictory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from imageprompt.checkpoint.formats import Parts, Read
from imageprompt.checkpoint.identify.layer_ids import Numbered
from imageprompt.checkpoint.identify.match import Difference, Match
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.core.spec import Shape, Shapes
from imageprompt.variants import VARIANTS, tensor_shapes, twins

PROJECTOR, SITES = "image_proj", "ip_adapter"
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file: a short code, and one line that says it."""

    code: str
    message: str


def problems_of(
    read: Read[StoredTensor],
    numbered: Numbered[StoredTensor],
    best: Match | None,
    shapes: Parts[Shape],
    metadata: Mapping[str, str],
) -> Iterator[Problem]:
    """Everything that names, shapes and metadata say against a file."""
    if read.unplaced:
        yield _extra(read.unplaced, "layout")
    if numbered.unknown:
        yield Problem(
            "unknown-layers",
            f"{_tensors(numbered.unknown)} of layers that this base has not, so they cannot be "
            f"numbered ({first(numbered.unknown)}); give the base that it was trained on",
        )
    if best is None:
        yield Problem("missing", "it has no K' and V' weights, so nothing tells its base")
        return
    if best.variant is None:
        known = ", ".join(variant.name for variant in VARIANTS)
        what = f"its projector is of no known variant ({first(shapes.projector)}); known: {known}"
        yield Problem("unknown-variant", what if shapes.projector else "it has no projector")
    template, found = _canonical(best.template), _canonical(shapes)
    difference = Difference.between(template, found)
    if difference.missing:
        yield _missing(difference.missing, template)
    if difference.extra:
        yield _extra(difference.extra, "adapter")
    if difference.misshapen:
        yield _misshapen(difference.misshapen, template, found)
    yield from _contradictions(best, metadata)


def _canonical(parts: Parts[Shape]) -> dict[str, Shape]:
    return tensor_shapes.under(PROJECTOR, parts.projector) | tensor_shapes.under(SITES, parts.sites)


def _extra(names: Sequence[str], whose: str) -> Problem:
    return Problem("extra", f"{_tensors(names)} too many for this {whose} ({first(names)})")


def _missing(names: Sequence[str], template: Shapes) -> Problem:
    what = f"{len(names)} of {len(template)} tensors missing"
    if set(names) == {name for name in template if "_lora." in name}:
        what += ": all of its LoRA, which a filter for `_ip.` loses; convert the checkpoint again"
    return Problem("missing", f"{what} ({first(names)})")


def _misshapen(names: Sequence[str], template: Shapes, found: Shapes) -> Problem:
    shown = [f"{name} is {list(found[name])} instead of {list(template[name])}" for name in names]
    sites = [name for name in names if name.startswith(SITES)]
    what = f"{_tensors(names)} of the wrong shape"
    if sites and sorted(found[n] for n in sites) == sorted(template[n] for n in sites):
        what += ", but that of another layer: they were numbered by counting, not by the base"
    return Problem("misshapen", f"{what} ({first(shown)})")


def _contradictions(best: Match, metadata: Mapping[str, str]) -> Iterator[Problem]:
    """What does not fit together though every tensor has its shape."""
    projector, cross_attention_dim = best.projector, best.host.cross_attention_dim
    if projector and projector.cross_attention_dim != cross_attention_dim:
        yield Problem(
            "mismatched",
            f"its projector makes tokens {projector.cross_attention_dim} wide, its sites read {cross_attention_dim}: "
            "the halves of two adapters",
        )
    told = metadata.get("variant")
    known = {name for variant in VARIANTS for name in (variant.name, *twins(variant))}
    if best.variant and told in known - {best.variant.name, *twins(best.variant)}:
        yield Problem(
            "metadata", f"its metadata says {told}, its tensors are those of {best.variant.name}"
        )


def _tensors(names: Sequence[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def first(names: Iterable[str]) -> str:
    """The first five of them, and whether there are more."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
