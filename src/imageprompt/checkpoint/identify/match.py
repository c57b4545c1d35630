"""Which variant on which host has tensors of these shapes: the template that fits best.

Nothing is known here of any variant, host or layout by name; all of them are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from imageprompt.checkpoint.formats import Parts
from imageprompt.checkpoint.identify.custom_host import KEY, VALUE, own_host
from imageprompt.core.spec import HostSpec, ProjectorSpec, Shape, Shapes
from imageprompt.hosts import HOSTS
from imageprompt.variants import (
    VARIANTS,
    Variant,
    projector_shapes,
    site_kinds,
    site_shapes,
    tensor_shapes,
)

Reading = tuple[Variant, ProjectorSpec]
PLAUSIBLE = 0.5  # share of equal tensors from which a file may be a damaged one of a published base


@dataclass(frozen=True)
class Difference:
    """What a file lacks, has too much, or has in another shape."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    @classmethod
    def between(cls, template: Shapes, found: Shapes) -> Difference:
        return cls(
            tuple(name for name in template if name not in found),
            tuple(name for name in found if name not in template),
            tuple(n for n, shape in template.items() if n in found and found[n] != shape),
        )

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)


@dataclass(frozen=True)
class Match:
    """A variant (None: no variant has this projector) on a host, and what both ask for."""

    variant: Variant | None
    projector: ProjectorSpec | None
    host: HostSpec
    template: Parts[Shape]
    misfit: int


def matches(shapes: Parts[Shape], base: HostSpec | None, *, published: bool = True) -> list[Match]:
    """The best of all, more than one where shapes cannot tell.

    `base` leaves no other host; `published=False` says that it is none of the published bases.
    """
    readings: list[Reading | None] = list(_readings(shapes.projector)) or [None]
    if base is not None:
        tried = _tried(shapes, readings, [base]) or [_match(shapes, readings[0], base)]
    else:
        hosts = _families(shapes.sites, readings) if published else []
        tried = _tried(shapes, readings, hosts)
        tried = [m for m in tried if _plausible(m.template.sites, shapes.sites)]
    if not tried:
        for reading in readings:
            own = own_host(shapes.sites, site_kinds(reading[0]) if reading else ("cross",))
            tried += _tried(shapes, [reading], [own] if own else [])
    least = min((match.misfit for match in tried), default=0)
    return [match for match in tried if match.misfit == least]


def lora_rank(sites: Shapes) -> int | None:
    """The rank that most of the LoRA layers have; None without LoRA."""
    ranks = Counter(
        shape[0] for name, shape in sites.items() if name.endswith("_lora.down.weight") and shape
    )
    return ranks.most_common(1)[0][0] if ranks else None


def _readings(projector: Shapes) -> Iterator[Reading]:
    for variant in VARIANTS:
        try:
            spec = variant.read(projector)
        except (ValueError, IndexError):
            continue  # right names, wrong number of dimensions
        if spec is not None:
            yield variant, spec


def _tried(
    shapes: Parts[Shape], readings: Sequence[Reading | None], hosts: Iterable[HostSpec]
) -> list[Match]:
    """Every reading on every host that has sites for it."""
    return [
        _match(shapes, reading, host)
        for host in hosts
        for reading in readings
        if reading is None or {site.kind for site in host.sites} & {*site_kinds(reading[0])}
    ]


def _match(shapes: Parts[Shape], reading: Reading | None, host: HostSpec) -> Match:
    variant, projector = reading or (None, None)
    rank = lora_rank(shapes.sites)
    if variant is None or projector is None:
        sites = host.shapes() | (tensor_shapes.lora(host, rank) if rank else {})
        template = Parts(shapes.projector, sites)
    else:
        sites = site_shapes(variant, host, projector, rank or tensor_shapes.LORA_RANK)
        template = Parts(projector_shapes(variant, projector), sites)
    misfit = sum(
        Difference.between(*pair).count
        for pair in ((template.projector, shapes.projector), (template.sites, shapes.sites))
    )
    return Match(variant, projector, host, template, misfit)


def _families(sites: Shapes, readings: Iterable[Reading | None]) -> list[HostSpec]:
    """The published bases whose text is as wide as the projector's tokens, or as K' reads."""
    widths = {shape[-1] for name, shape in sites.items() if shape and name.endswith((KEY, VALUE))}
    widths |= {reading[1].cross_attention_dim for reading in readings if reading}
    return [
        spec for host in HOSTS for spec in host.families() if spec.cross_attention_dim in widths
    ]


def _plausible(template: Shapes, found: Shapes) -> bool:
    """Could this be a damaged file of that base, rather than a whole one of another?"""
    equal = sum(template.get(name) == shape for name, shape in found.items())
    if not template or equal == len(found):
        return bool(template)
    return equal >= PLAUSIBLE * len(template.keys() | found.keys())
