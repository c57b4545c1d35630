"""Attaching to a denoiser and detaching: one shared state however many adapters, exact inverses."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from imageprompt.attention.compiled import drop_copies, eager_hook
from imageprompt.attention.state import AttentionState
from imageprompt.attention.witness import CacheContexts
from imageprompt.core.errors import AttachError
from imageprompt.core.spec import HostSpec
from imageprompt.hosts import AttachableHost, denoiser_of, host_of


@dataclass(eq=False)
class _Installation:
    """What all adapters on one denoiser share, and what undoes it when the last one leaves.

    Only the hooks of the denoiser keep it alive, by way of the state. A table that did would keep
    the denoiser alive too, for ever, if it is dropped without `detach()`.
    """

    state: AttentionState
    undo: Any
    hooks: tuple[Any, ...]
    adapters: int = 0


_installations: weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Installation]] = (
    weakref.WeakKeyDictionary()
)


def _installed(denoiser: nn.Module) -> _Installation:
    installation = _installations[denoiser]()
    assert installation is not None, "the hooks of an attached denoiser were removed"
    return installation


@dataclass(frozen=True)
class AttachedDenoiser:
    """A denoiser with its host and its sites."""

    denoiser: nn.Module
    host: AttachableHost
    spec: HostSpec

    @classmethod
    def of(cls, pipe: object) -> AttachedDenoiser:
        """The denoiser of a pipeline, or a denoiser itself. Raises AttachError."""
        if getattr(pipe, "transformer_2", None) is not None:
            raise AttachError(
                f"a {type(pipe).__name__} with two transformers",
                reason="each runs a part of the steps, and an adapter acts on one",
                hint="Attach it to pipe.transformer, and a copy of it to pipe.transformer_2.",
            )
        denoiser = cast(nn.Module, denoiser_of(pipe))
        host = host_of(denoiser)
        return cls(denoiser, host, host.describe(denoiser))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in, by diffusers' rule: that of a casting hook, else of the first
        floating-point weight that is not kept in float32."""
        float32 = getattr(self.denoiser, "_keep_in_fp32_modules", None) or ()
        for name, weight in () if _has_hooks(self.denoiser) else self.denoiser.named_parameters():
            if weight.is_floating_point() and not any(part in name for part in float32):
                return weight.dtype
        return cast(torch.dtype, self.denoiser.dtype)

    @property
    def device(self) -> torch.device:
        """The device of its weights; the meta device while they are offloaded."""
        return next(self.denoiser.parameters()).device

    @property
    def execution_device(self) -> torch.device:
        """The device it computes on; while offloaded, that to which its hooks bring the weights.

        Raises AttachError for weights on the meta device that nothing brings back.
        """
        if self.device.type != "meta":
            return self.device
        from imageprompt.adapter.offloading import offloaded_to

        return offloaded_to(self.denoiser)

    def linears(self, file_ids: Container[str]) -> dict[str, Mapping[str, nn.Module]]:
        """The linear layers of these attention layers: file id -> kind (q, k, v, out) -> layer."""
        return {
            layer.file_id: self.host.linears(self.denoiser, layer.name)
            for layer in self.spec.layers
            if layer.file_id in file_ids
        }

    def install(self) -> AttentionState:
        """Let the sites read a state, which is returned. All sites or none; raises AttachError."""
        if self.denoiser not in _installations:
            drop_copies(self.denoiser)
            state = AttentionState()
            undo = self.host.install(self.denoiser, self.spec, state)
            state.check = partial(_check_intact, self.host, undo)
            hooks = (
                self.denoiser.register_forward_pre_hook(
                    eager_hook(state.before_forward), with_kwargs=True
                ),
                self.denoiser.register_forward_hook(
                    eager_hook(state.after_forward), always_call=True
                ),
            )
            if hasattr(self.denoiser, "cache_context"):
                state.contexts = CacheContexts(self.denoiser)
            state.installation = _Installation(state, undo, hooks)
            _installations[self.denoiser] = weakref.ref(state.installation)
        self.check()
        installation = _installed(self.denoiser)
        installation.adapters += 1
        return installation.state

    def uninstall(self) -> None:
        """The inverse of `install`; the last adapter to leave restores the denoiser."""
        installation = _installed(self.denoiser)
        installation.adapters -= 1
        if installation.adapters == 0:
            for hook in installation.hooks:
                hook.remove()
            if installation.state.contexts is not None:
                installation.state.contexts.remove(self.denoiser)
            self.host.remove(installation.undo)
            del _installations[self.denoiser]

    def intact(self) -> bool:
        """Are the attention processors still those of `install`?"""
        return self.host.intact(_installed(self.denoiser).undo)

    def check(self) -> None:
        """Raises AttachError if the attention processors were replaced since `install`."""
        _check_intact(self.host, _installed(self.denoiser).undo)


def _has_hooks(denoiser: nn.Module) -> bool:
    """Does any module have a hook of diffusers? Its own search takes milliseconds."""
    modules = [denoiser]
    while modules:
        module = modules.pop()
        if getattr(vars(module).get("_diffusers_hook"), "hooks", None):
            return True
        modules.extend(child for child in module._modules.values() if child is not None)
    return False


def _check_intact(host: AttachableHost, undo: Any) -> None:
    if not host.intact(undo):
        raise AttachError(
            "the attention processors of this denoiser",
            reason="replaced after an adapter was attached, which would then have no effect",
            hint="detach() and attach() again after changing attention processors. A pipeline "
            "that replaces them while it runs cannot be used with an adapter.",
        )
