"""Which variant on which host has tensors of these shapes: the template that fits best.

No variant, host or layout is known by name here; all of them are tried. Where no published base
fits, the host is inferred from the adapter's own K', V' and LoRA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from imageprompt.checkpoint.formats import Parts
from imageprompt.core.spec import (
    OWN_BASE,
    AttentionLayer,
    HostSpec,
    ProjectorSpec,
    Shape,
    Shapes,
    Site,
    SiteKind,
)
from imageprompt.hosts import HOSTS, families
from imageprompt.variants import (
    VARIANTS,
    Variant,
    has_place,
    projected_as_text,
    projector_shapes,
    site_kinds,
    site_shapes,
    tensor_shapes,
)

Candidate = tuple[Variant, ProjectorSpec]
KEY, VALUE = ".to_k_ip.weight", ".to_v_ip.weight"
PLAUSIBLE = 0.5  # share of equal tensors from which a file may be a damaged one of a known base


@dataclass(frozen=True)
class ShapeDifference:
    """What a file lacks, has in excess, or has in another shape."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    @classmethod
    def between(cls, template: Shapes, found: Shapes) -> ShapeDifference:
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
    """A variant (None: no variant has this projector) on a host, and the tensors of both."""

    variant: Variant | None
    projector: ProjectorSpec | None
    host: HostSpec
    template: Parts[Shape]
    misfit: int
    """How many tensors are missing, in excess or misshapen."""


def best_matches(
    shapes: Parts[Shape],
    base: HostSpec | None,
    *,
    published: bool = True,
    stated: str = "",
    host: str = "",
) -> list[Match]:
    """The matches with the smallest misfit; several where shapes cannot tell.

    With `base`, no other host is tried; `published=False` excludes the published bases. `stated` is
    the variant that the metadata names: if every tensor fits it, no other variant is tried, since
    metadata decides between variants that fit equally well. `host` is the host that it names.
    """
    variant = VARIANTS.get(stated)
    if variant is not None:
        exact = _best(shapes, base, _candidates(shapes.projector, [variant]), published, host)
        if exact and exact[0].misfit == 0:
            return exact
    candidates = _candidates(shapes.projector, VARIANTS) or [None]
    return _best(shapes, base, candidates, published, host)


def _best(
    shapes: Parts[Shape],
    base: HostSpec | None,
    candidates: Sequence[Candidate | None],
    published: bool,
    host: str,
) -> list[Match]:
    if not candidates:
        return []
    if base is not None:
        tried = _try(shapes, candidates, [base]) or [_match(shapes, candidates[0], base)]
    else:
        tried = _on_published_bases(shapes, candidates, host) if published else []
    if not tried:
        for candidate in candidates:
            kinds = site_kinds(candidate[0]) if candidate else ("cross",)
            inferred = _infer_host(shapes.sites, kinds, host)
            if candidate and kinds == ("text",):
                inferred = _host_of_text(candidate[1].cross_attention_dim)
            tried += _try(shapes, [candidate], [inferred] if inferred else [])
    least = min((match.misfit for match in tried), default=0)
    return [match for match in tried if match.misfit == least]


def lora_rank(sites: Shapes) -> int | None:
    """The rank of most LoRA layers; None without LoRA."""
    ranks = Counter(
        shape[0] for name, shape in sites.items() if name.endswith("_lora.down.weight") and shape
    )
    return ranks.most_common(1)[0][0] if ranks else None


def plausible(template: Shapes, found: Shapes) -> bool:
    """Could this be a damaged file of the template's base, rather than one of another base?"""
    equal = sum(template.get(name) == shape for name, shape in found.items())
    if not template or equal == len(found):
        return bool(template) or not found
    return equal >= PLAUSIBLE * len(template.keys() | found.keys())


def _candidates(projector: Shapes, variants: Iterable[Variant]) -> list[Candidate | None]:
    """The variants that have a projector with these tensors."""
    found: list[Candidate | None] = []
    for variant in variants:
        try:
            spec = variant.read(projector)
        except (ValueError, IndexError):
            continue  # right names, wrong number of dimensions
        if spec is not None:
            found.append((variant, spec))
    return found


def _try(
    shapes: Parts[Shape], candidates: Sequence[Candidate | None], hosts: Iterable[HostSpec]
) -> list[Match]:
    """Every candidate on every host that has sites for it."""
    return [
        _match(shapes, candidate, host)
        for host in hosts
        for candidate in candidates
        if candidate is None or _has_sites_for(candidate, host)
    ]


def _has_sites_for(candidate: Candidate, host: HostSpec) -> bool:
    variant, projector = candidate
    equal = host.cross_attention_dim == projector.cross_attention_dim
    if equal and projected_as_text(variant):
        return False  # what the base projects has another width afterwards
    if site_kinds(variant) == ("text",) and not equal:
        return False
    return has_place(variant, host)


def _match(shapes: Parts[Shape], candidate: Candidate | None, host: HostSpec) -> Match:
    variant, projector = candidate or (None, None)
    rank = lora_rank(shapes.sites)
    if variant is None or projector is None:
        sites = host.shapes() | (tensor_shapes.lora(host, rank) if rank else {})
        template = Parts(shapes.projector, sites)
    else:
        sites = site_shapes(variant, host, projector, rank or tensor_shapes.LORA_RANK)
        template = Parts(projector_shapes(variant, projector), sites)
    misfit = sum(
        ShapeDifference.between(*pair).count
        for pair in ((template.projector, shapes.projector), (template.sites, shapes.sites))
    )
    return Match(variant, projector, host, template, misfit)


def _on_published_bases(
    shapes: Parts[Shape], candidates: Sequence[Candidate | None], stated: str
) -> list[Match]:
    """Plausible matches on the published bases whose text is as wide as the projector's tokens, or
    as K' reads."""
    sites = shapes.sites
    widths = {shape[-1] for name, shape in sites.items() if shape and name.endswith((KEY, VALUE))}
    widths |= {candidate[1].cross_attention_dim for candidate in candidates if candidate}
    hosts = [one for one in families(stated) if one.cross_attention_dim in widths]
    tried = _try(shapes, candidates, hosts)
    return [match for match in tried if plausible(match.template.sites, sites)]


# ── a base that is not published ─────────────────────────────────────────────────────────────────


def _infer_host(sites: Shapes, kinds: Sequence[SiteKind], stated: str) -> HostSpec | None:
    """The sites that have a K' or V', for a variant with these kinds of sites; None without any.

    `stated` is the host that the metadata names, if any.
    """
    keys: dict[str, Shape] = {}
    for suffix in (VALUE, KEY):
        keys |= {n.removesuffix(suffix): shape for n, shape in sites.items() if n.endswith(suffix)}
    keys = {i: shape for i, shape in keys.items() if i.isdecimal() and len(shape) == 2}
    if not keys:
        return None
    host = None if stated == OWN_BASE else HOSTS.get(stated)
    kind = _kind(keys, kinds) if host is None else host.published()[0].sites[0].kind
    family = _family(kind) if host is None else host.name
    cross_attention_dim = Counter(shape[1] for shape in keys.values()).most_common(1)[0][0]
    inferred = tuple(
        Site(
            name="",
            file_id=i,
            inner_dim=keys[i][0],
            heads=_heads(keys[i][0], tensor_shapes.size(sites, (f"{i}.norm_q.weight", 0))),
            cross_attention_dim=cross_attention_dim,
            role="other",
            kind=kind,
        )
        for i in sorted(keys, key=int)
    )
    return HostSpec(family=family, sites=inferred, layers=tuple(_layers(sites, keys)))


def _host_of_text(width: int) -> HostSpec | None:
    """The base whose text takes image tokens, with a text of that width."""
    known = next((one for one in families() if one.text is not None), None)
    if known is None or known.text is None:
        return None
    text = replace(known.text, inner_dim=width, cross_attention_dim=width)
    return HostSpec(family=known.family, sites=(), text=text)


def _kind(ids: Iterable[str], kinds: Sequence[SiteKind]) -> SiteKind:
    """Cross-attention has odd ids, as self-attention precedes it; joint attention has all ids."""
    return "cross" if all(int(i) % 2 for i in ids) else kinds[0]


def _family(kind: SiteKind) -> str:
    """A custom UNet, or the base of the published adapters at blocks of this kind."""
    return {"cross": OWN_BASE, "joint": "sd3"}.get(kind, "flux")


def _heads(width: int, head_width: int) -> int:
    """From the width of a norm over one head; 1 without such a norm."""
    return max(width // head_width, 1) if head_width else 1


def _layers(sites: Shapes, keys: Shapes) -> Iterator[AttentionLayer]:
    """Every layer seen, and before each cross-attention a self-attention of the same width."""
    seen = (name.split(".", 1)[0] for name in sites)
    ids = {int(i) for i in seen if i.isdecimal()} | {int(i) - 1 for i in keys}
    for i in sorted(ids):
        near = keys.get(str(i)) or keys.get(str(i + 1)) or (0, 0)
        width = tensor_shapes.size(sites, (f"{i}.to_q_lora.up.weight", 0)) or near[0]
        input_dim = near[1] if str(i) in keys else width
        yield AttentionLayer(name="", file_id=str(i), inner_dim=width, input_dim=input_dim)
