"""One file an architecture: its sites, its guidance, where image tokens enter.

A file in this folder that ends in a constant `HOST` is a host; nothing else needs to know. Files
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
    """The denoiser of a pipeline, or the denoiser itself; compiled wrappers are opened."""
    attributes = dict.fromkeys(host.pipeline_attribute for host in HOSTS)
    found = next((getattr(pipe, name) for name in attributes if hasattr(pipe, name)), pipe)
    return getattr(found, "_orig_mod", found)


def host_of(denoiser: object) -> AttachableHost:
    """The host that knows this denoiser and can be entered. Raises AttachError if there is none."""
    host = next((host for host in HOSTS if host.claims(denoiser)), None)
    if host is not None and host.attachable:
        return cast(AttachableHost, host)
    known = "adapters for it are read, checked and converted, but not run yet"
    summaries = ", ".join(h.summary for h in HOSTS if h.attachable)
    raise AttachError(
        f"a {type(denoiser).__name__}",
        reason=known if host else "no host describes this denoiser",
        hint=f"Attach to a pipeline or denoiser of: {summaries}.",
    )
