"""Entering and leaving a denoiser: one state each, however many adapters; exact inverses."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from imageprompt.attention.state import AttentionState
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import HostSpec
from imageprompt.hosts import AttachableHost, denoiser_of, host_of


@dataclass
class _Installation:
    """What all adapters on one denoiser share, and what undoes it when the last one leaves."""

    state: AttentionState
    undo: Any
    hook: Any
    adapters: int = 0


_installations: weakref.WeakKeyDictionary[nn.Module, _Installation] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class AttachedDenoiser:
    """A denoiser, the host that describes it, and its sites."""

    denoiser: nn.Module
    host: AttachableHost
    sites: HostSpec

    @classmethod
    def of(cls, pipe: object) -> AttachedDenoiser:
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

    def install(self) -> AttentionState:
        """Let the sites read a state. All sites or none; raises AttachError."""
        if self.denoiser not in _installations:
            state = AttentionState()
            undo = self.host.install(self.denoiser, self.sites, state)
            state.check = partial(_check_intact, self.host, undo)
            hook = self.denoiser.register_forward_pre_hook(state.before_forward, with_kwargs=True)
            _installations[self.denoiser] = _Installation(state, undo, hook)
        self.check()
        entered = _installations[self.denoiser]
        entered.adapters += 1
        return entered.state

    def uninstall(self) -> None:
        """The inverse of `install`."""
        entered = _installations[self.denoiser]
        entered.adapters -= 1
        if entered.adapters == 0:
            entered.hook.remove()
            self.host.remove(entered.undo)
            del _installations[self.denoiser]

    def check(self) -> None:
        """Somebody may have replaced the processors since. Raises AttachError."""
        _check_intact(self.host, _installations[self.denoiser].undo)


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
            reason="they were replaced after an adapter was attached, so it would do nothing",
            hint="detach() and attach() again after changing attention processors; a pipeline "
            "that replaces them while it runs cannot be used with an adapter.",
        )
