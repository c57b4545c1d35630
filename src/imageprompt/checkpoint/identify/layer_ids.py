"""From layer names to file ids: a training checkpoint's processors, numbered by the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic

from imageprompt.checkpoint.formats import Read
from imageprompt.checkpoint.formats.contract import T
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.core.spec import HostSpec, Shape
from imageprompt.hosts import HOSTS

_SUFFIX_LENGTHS = (2, 3)  # to_k_ip.weight, to_q_lora.down.weight


@dataclass(frozen=True)
class Numbered(Generic[T]):
    """A file's tensors at the sites, all under file ids."""

    sites: Mapping[str, T]
    copies: tuple[tuple[str, T, T], ...] = ()
    """Tensors that were there under both names: (name, the one in `sites`, the other)."""
    unknown: tuple[str, ...] = ()
    """Names of layers that no base has."""
    host: HostSpec | None = None
    """The base, where the file itself or the caller told it."""


def number(read: Read[StoredTensor], base: HostSpec | None) -> Numbered[StoredTensor]:
    """Give every tensor its id: by `base`, by the frozen base in the file, or by the families."""
    named = read.parts.named
    host = base or _seen(read)
    if not named:
        return Numbered(read.parts.sites, host=host)
    ids = _ids(host or _family({name: tensor.shape for name, tensor in named.items()}))
    sites, copies, unknown = dict(read.parts.sites), [], []
    for name, tensor in named.items():
        canonical = _canonical(name, ids)
        if canonical is None:
            unknown.append(name)
        elif canonical in sites:
            copies.append((canonical, sites[canonical], tensor))
        else:
            sites[canonical] = tensor
    return Numbered(sites, tuple(copies), tuple(unknown), host)


def _seen(read: Read[StoredTensor]) -> HostSpec | None:
    """The frozen base beside the adapter, if it has all of the adapter's layers."""
    shapes = {name: tensor.shape for name, tensor in read.ignored.items()}
    for host in (one.from_weights(shapes) for one in HOSTS):
        if host and _knows_all(host, read.parts.named):
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
    """The ways to take a name apart into a layer's and a tensor's."""
    parts = name.split(".")
    for length in _SUFFIX_LENGTHS:
        yield ".".join(parts[:-length]), ".".join(parts[-length:])


def _family(named: Mapping[str, Shape]) -> HostSpec | None:
    """The published base of these layers: the same sites, or, if some are missing, their shapes.

    A smaller base may have some of the names of a larger one, at other places.
    """
    for host in (host for one in HOSTS for host in one.families()):
        template, ids = host.shapes(), _ids(host)
        found = {_canonical(name, ids): shape for name, shape in named.items()}
        sites = {name: shape for name, shape in found.items() if name is None or "_ip." in name}
        same_shapes = all(template.get(name or "") == shape for name, shape in sites.items())
        if None not in found and (same_shapes or sites.keys() == template.keys()):
            return host
    return None
