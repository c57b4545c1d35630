"""A base that is not published, as far as an adapter's own K', V' and LoRA tell its sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from imageprompt.core.spec import OWN_BASE, AttentionLayer, HostSpec, Shape, Shapes, Site, SiteKind
from imageprompt.hosts import HOSTS
from imageprompt.variants.tensor_shapes import size

KEY = ".to_k_ip.weight"
VALUE = ".to_v_ip.weight"


def own_host(sites: Shapes, kinds: Sequence[SiteKind]) -> HostSpec | None:
    """The sites that have a K' or V', for a variant that enters these kinds; None if none has."""
    keys: dict[str, Shape] = {}
    for suffix in (VALUE, KEY):
        keys |= {n.removesuffix(suffix): shape for n, shape in sites.items() if n.endswith(suffix)}
    keys = {i: shape for i, shape in keys.items() if i.isdecimal() and len(shape) == 2}
    if not keys:
        return None
    kind = _kind(keys, kinds)
    cross_attention_dim = Counter(shape[1] for shape in keys.values()).most_common(1)[0][0]
    found = tuple(
        Site(
            name="",
            file_id=i,
            inner_dim=keys[i][0],
            heads=_heads(keys[i][0], size(sites, (f"{i}.norm_q.weight", 0))),
            cross_attention_dim=cross_attention_dim,
            role="other",
            kind=kind,
        )
        for i in sorted(keys, key=int)
    )
    return HostSpec(family=_family(kind), sites=found, layers=tuple(_layers(sites, keys)))


def _kind(ids: Iterable[str], wanted: Sequence[SiteKind]) -> SiteKind:
    """Cross-attention has odd ids, for self-attention comes before it; joint attention has all."""
    return "cross" if all(int(i) % 2 for i in ids) else wanted[0]


def _family(kind: SiteKind) -> str:
    """A UNet of somebody's own, or the host whose blocks are of this kind."""
    families = (spec for host in HOSTS for spec in host.families())
    first = next(spec.family for spec in families if spec.sites[0].kind == kind)
    return OWN_BASE if kind == "cross" else first


def _heads(width: int, head_width: int) -> int:
    """As many as a norm over one head tells; 1 where there is none."""
    return max(width // head_width, 1) if head_width else 1


def _layers(sites: Shapes, keys: Shapes) -> Iterator[AttentionLayer]:
    """Every layer seen, and before each cross-attention a self-attention of the same width."""
    seen = (name.split(".", 1)[0] for name in sites)
    ids = {int(i) for i in seen if i.isdecimal()} | {int(i) - 1 for i in keys}
    for i in sorted(ids):
        near = keys.get(str(i)) or keys.get(str(i + 1)) or (0, 0)
        width = size(sites, (f"{i}.to_q_lora.up.weight", 0)) or near[0]
        read = near[1] if str(i) in keys else width
        yield AttentionLayer(name="", file_id=str(i), inner_dim=width, input_dim=read)
