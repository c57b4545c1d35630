"""One file per denoiser family: its sites, and how image tokens enter there.

A file in this folder that ends in a constant `HOST` is a host and needs no registration. Files
whose name starts with `_` are parts of hosts.
"""

from __future__ import annotations

from typing import cast

from imageprompt.core.errors import AttachError
from imageprompt.core.registry import Registry
from imageprompt.hosts.contract import AttachableHost, Host

__all__ = ["HOSTS", "AttachableHost", "Host", "denoiser_of", "host_of"]

HOSTS: Registry[Host] = Registry(__name__, "HOST")


def denoiser_of(pipe: object) -> object:
    """The denoiser of a pipeline, or the denoiser itself; wrappers of torch.compile are removed."""
    attributes = dict.fromkeys(host.pipeline_attribute for host in HOSTS)
    found = next((getattr(pipe, name) for name in attributes if hasattr(pipe, name)), pipe)
    return getattr(found, "_orig_mod", found)


def host_of(denoiser: object) -> AttachableHost:
    """The host of this denoiser. Raises AttachError if there is none that adapters can run on."""
    host = next((host for host in HOSTS if host.claims(denoiser)), None)
    if host is not None and host.attachable:
        return cast(AttachableHost, host)
    files_only = "its adapters can be read, checked and converted, but not run yet"
    supported = ", ".join(h.summary for h in HOSTS if h.attachable)
    raise AttachError(
        f"a {type(denoiser).__name__}",
        reason=files_only if host else "no host describes this denoiser",
        hint=f"Attach to a pipeline or denoiser of: {supported}.",
    )
