"""One file an architecture: its sites, its guidance, where image tokens enter.

A file in this folder that ends in a constant `HOST` is a host; nothing else needs to know.
"""

from __future__ import annotations

from imageprompt.errors import AttachError
from imageprompt.hosts.contract import Host
from imageprompt.registry import Registry

__all__ = ["HOSTS", "Host", "denoiser_of", "host_of"]

HOSTS: Registry[Host] = Registry(__name__, "HOST")


def denoiser_of(pipe: object) -> object:
    """The denoiser of a pipeline, or the denoiser itself; compiled wrappers are opened."""
    attributes = {host.pipeline_attribute for host in HOSTS}
    found = next((getattr(pipe, name) for name in attributes if hasattr(pipe, name)), pipe)
    return getattr(found, "_orig_mod", found)


def host_of(denoiser: object) -> Host:
    """The host that knows this denoiser. Raises AttachError if there is none."""
    for host in HOSTS:
        if host.claims(denoiser):
            return host
    raise AttachError(
        f"a {type(denoiser).__name__}",
        rule="no host describes this denoiser",
        remedy=f"Attach to a pipeline or denoiser of: {', '.join(h.summary for h in HOSTS)}.",
    )
