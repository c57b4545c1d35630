"""Entering and leaving a denoiser: one carrier each, however many adapters; exact inverses."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from imageprompt.attention.state import Carrier
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import HostSpec
from imageprompt.hosts import AttachableHost, denoiser_of, host_of


@dataclass
class _Entered:
    """What all adapters on one denoiser share, and what undoes it when the last one leaves."""

    carrier: Carrier
    undo: Any
    hook: Any
    adapters: int = 0


_entered: weakref.WeakKeyDictionary[nn.Module, _Entered] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """A denoiser, the host that describes it, and its sites."""

    denoiser: nn.Module
    host: AttachableHost
    sites: HostSpec

    @classmethod
    def of(cls, pipe: object) -> Place:
        """The place that a pipeline or denoiser offers. Raises AttachError."""
        denoiser = cast(nn.Module, denoiser_of(pipe))
        host = host_of(denoiser)
        return cls(denoiser, host, host.describe(denoiser))

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in, by diffusers' rule: a hook that casts, else the first
        floating weight that is not kept in float32."""
        kept = getattr(self.denoiser, "_keep_in_fp32_modules", None) or ()
        for name, weight in () if _hooked(self.denoiser) else self.denoiser.named_parameters():
            if weight.is_floating_point() and not any(part in name for part in kept):
                return weight.dtype
        return cast(torch.dtype, self.denoiser.dtype)

    @property
    def device(self) -> torch.device:
        """Where its weights lie; the meta device while they are offloaded."""
        return next(self.denoiser.parameters()).device

    def linears(self, file_ids: Container[str]) -> dict[str, Mapping[str, nn.Module]]:
        """The linear maps of these layers, by file id, then by kind: q, k, v, out."""
        return {
            layer.file_id: self.host.linears(self.denoiser, layer.name)
            for layer in self.sites.layers
            if layer.file_id in file_ids
        }

    def enter(self) -> Carrier:
        """Let the sites read a carrier. All sites or none; raises AttachError."""
        if self.denoiser not in _entered:
            carrier = Carrier()
            undo = self.host.install(self.denoiser, self.sites, carrier)
            carrier.check = partial(_check_intact, self.host, undo)
            hook = self.denoiser.register_forward_pre_hook(carrier.before_forward, with_kwargs=True)
            _entered[self.denoiser] = _Entered(carrier, undo, hook)
        self.check()
        entered = _entered[self.denoiser]
        entered.adapters += 1
        return entered.carrier

    def leave(self) -> None:
        """The inverse of `enter`."""
        entered = _entered[self.denoiser]
        entered.adapters -= 1
        if entered.adapters == 0:
            entered.hook.remove()
            self.host.remove(entered.undo)
            del _entered[self.denoiser]

    def check(self) -> None:
        """Somebody may have replaced the processors since. Raises AttachError."""
        _check_intact(self.host, _entered[self.denoiser].undo)


def _hooked(denoiser: nn.Module) -> bool:
    """Has any module a hook of diffusers? It looks for them itself, but in milliseconds."""
    waiting = [denoiser]
    while waiting:
        module = waiting.pop()
        if "_diffusers_hook" in vars(module):
            return True
        waiting.extend(child for child in module._modules.values() if child is not None)
    return False


def _check_intact(host: AttachableHost, undo: Any) -> None:
    if not host.intact(undo):
        raise AttachError(
            "the attention processors of this denoiser",
            rule="they were replaced after an adapter was attached, so it would do nothing",
            remedy="detach() and attach() again after changing attention processors; a pipeline "
            "that replaces them while it runs cannot be used with an adapter.",
        )
