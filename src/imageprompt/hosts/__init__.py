"""One file per denoiser family: its sites, and how image tokens enter there.

A file in this folder that ends in a constant `HOST` is a host and needs no registration. Files
whose name starts with `_` are parts of hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from imageprompt.core.errors import AttachError
from imageprompt.core.registry import Registry
from imageprompt.core.spec import HostSpec
from imageprompt.hosts.contract import AttachableHost, Host, Training

__all__ = [
    "HOSTS",
    "AttachableHost",
    "Host",
    "Training",
    "denoiser_of",
    "denoisers_of",
    "families",
    "host_of",
    "training_of",
]

HOSTS: Registry[Host] = Registry(__name__, "HOST")


_WITH_PUBLISHED_ADAPTERS = ("unet", "flux", "sd3")


def families(stated: str = "") -> Iterator[HostSpec]:
    """The published bases that published adapters exist for, and that of the host `stated`.

    Files for other bases are our own, and their metadata states the host. Each host is loaded when
    its turn comes: a search that ends early loads no other.
    """
    for name in dict.fromkeys((*_WITH_PUBLISHED_ADAPTERS, stated)):
        host = HOSTS.get(name)
        if host is not None:
            yield from host.families()


_ATTRIBUTES = ("unet", "transformer", "transformer_2")
"""The attributes of a pipeline that may hold its denoiser; the third runs the later steps."""


def denoiser_of(pipe: object) -> object:
    """The denoiser of a pipeline, or the denoiser itself; wrappers of torch.compile are removed."""
    return denoisers_of(pipe)[0]


def denoisers_of(pipe: object) -> list[object]:
    """Its denoisers: two where each runs a part of the steps (Wan 2.2), else one."""
    parts = [getattr(pipe, name, None) for name in _ATTRIBUTES]
    found = [getattr(part, "_orig_mod", part) for part in parts if part is not None]
    return list({id(part): part for part in found}.values()) or [getattr(pipe, "_orig_mod", pipe)]


def host_of(denoiser: object) -> AttachableHost:
    """The host of this denoiser. Raises AttachError if there is none that adapters can run on."""
    host = _named_alike(denoiser) or next((one for one in HOSTS if one.claims(denoiser)), None)
    if host is not None and host.attachable:
        return cast(AttachableHost, host)
    supported = "; ".join(one.summary for one in HOSTS if one.attachable)
    raise AttachError(
        f"a {type(denoiser).__name__}",
        reason="no host describes this denoiser",
        hint=f"Attach to a pipeline or denoiser of: {supported}.",
    )


def training_of(denoiser: object) -> Training:
    """How adapters are trained on this denoiser. Raises AttachError if they cannot be."""
    training = host_of(denoiser).training
    if training is not None:
        return training
    raise AttachError(
        f"training on a {type(denoiser).__name__}",
        reason="its host only runs adapters",
        hint="`imageprompt hosts` lists the bases that adapters can be trained on.",
    )


def _named_alike(denoiser: object) -> Host | None:
    """The host that claims it and whose name its class begins with: so no other file is loaded."""
    name = type(denoiser).__name__.lower()
    alike = [one for one in HOSTS.names() if name.startswith(one.replace("-", ""))]
    for host in (HOSTS[one] for one in sorted(alike, key=len, reverse=True)):
        if host.claims(denoiser):
            return host
    return None
