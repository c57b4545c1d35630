"""From layer names to file ids: the processors of a training checkpoint, numbered by the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic

from imageprompt.checkpoint.formats import ParsedNames
from imageprompt.checkpoint.formats.contract import T
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.core.spec import HostSpec, Shape
from imageprompt.hosts import HOSTS, families

_SUFFIX_LENGTHS = (2, 3)  # to_k_ip.weight, to_q_lora.down.weight


@dataclass(frozen=True)
class NumberedSites(Generic[T]):
    """The tensors of the sites, all under file ids."""

    sites: Mapping[str, T]
    copies: tuple[tuple[str, T, T], ...] = ()
    """Tensors stored under both names: (name, the one in `sites`, the other)."""
    unknown: tuple[str, ...] = ()
    """Names of layers that the base does not have."""
    host: HostSpec | None = None
    """The base, if the caller or the file itself says which."""


def number_sites(
    parsed: ParsedNames[StoredTensor], base: HostSpec | None
) -> NumberedSites[StoredTensor]:
    """Give every tensor its id: by `base`, the frozen base in the file, or a published one."""
    named = parsed.parts.named
    host = base or _frozen_base(parsed)
    if not named:
        return NumberedSites(parsed.parts.sites, host=host)
    ids = _ids(host or _family({name: tensor.shape for name, tensor in named.items()}))
    sites, copies, unknown = dict(parsed.parts.sites), [], []
    for name, tensor in named.items():
        canonical = _canonical(name, ids)
        if canonical is None:
            unknown.append(name)
        elif canonical in sites:
            copies.append((canonical, sites[canonical], tensor))
        else:
            sites[canonical] = tensor
    return NumberedSites(sites, tuple(copies), tuple(unknown), host)


def _frozen_base(parsed: ParsedNames[StoredTensor]) -> HostSpec | None:
    """The frozen base in the file, if it has all of the adapter's layers."""
    shapes = {name: tensor.shape for name, tensor in parsed.ignored.items()}
    if not shapes:
        return None
    for host in (one.from_weights(shapes) for one in HOSTS):
        if host and _knows_all(host, parsed.parts.named):
            return host
    return None


def _ids(host: HostSpec | None) -> dict[str, str]:
    if host is None:
        return {}
    return {site.name: site.file_id for site in host.sites} | {
        layer.name: layer.file_id for layer in host.layers
    }


def _knows_all(host: HostSpec, named: Iterable[str]) -> bool:
    ids = _ids(host)
    return all(_canonical(name, ids) for name in named)


def _canonical(name: str, ids: Mapping[str, str]) -> str | None:
    for layer, suffix in _splits(name):
        if layer in ids:
            return f"{ids[layer]}.{suffix}"
    return None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The ways to split a name into a layer and a tensor."""
    parts = name.split(".")
    for length in _SUFFIX_LENGTHS:
        yield ".".join(parts[:-length]), ".".join(parts[-length:])


def _family(named: Mapping[str, Shape]) -> HostSpec | None:
    """The published base with these layers: the same sites or, if some are missing, their shapes.

    A smaller base may share names with a larger one, in other places.
    """
    for host in families():
        template, ids = host.shapes(), _ids(host)
        found = {_canonical(name, ids): shape for name, shape in named.items()}
        sites = {name: shape for name, shape in found.items() if name is None or "_ip." in name}
        same_shapes = all(template.get(name or "") == shape for name, shape in sites.items())
        if None not in found and (same_shapes or sites.keys() == template.keys()):
            return host
    return None
