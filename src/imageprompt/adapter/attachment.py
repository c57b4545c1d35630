"""Attaching to a denoiser and detaching: one shared state however many adapters, exact inverses."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping, Sequence
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
from imageprompt.hosts import AttachableHost, denoisers_of, host_of


@dataclass(eq=False)
class _Installation:
    """What all adapters on one denoiser share, and what undoes it when the last one leaves.

    Only the hooks of the denoiser keep it alive, by way of the state. A table that did would keep
    the denoiser alive too, for ever, if it is dropped without `detach()`.
    """

    state: AttentionState
    undos: tuple[Any, ...]
    """What undoes the host's part, for each denoiser."""
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
    others: tuple[nn.Module, ...] = ()
    """Denoisers of the same pipeline that run other steps, with the same sites: Wan 2.2's second
    transformer. They share the state of `denoiser`."""

    @classmethod
    def of(cls, pipe: object) -> AttachedDenoiser:
        """The denoiser of a pipeline, or a denoiser itself. Raises AttachError."""
        denoiser, *others = cast(list[nn.Module], denoisers_of(pipe))
        host = host_of(denoiser)
        spec = host.describe(denoiser)
        if any(host_of(other) is not host or host.describe(other) != spec for other in others):
            raise AttachError(
                f"the two transformers of a {type(pipe).__name__}",
                reason="each runs a part of the steps, and their attention layers differ",
                hint="Attach an adapter to each of them: attach(pipe.transformer) and so on.",
            )
        return cls(denoiser, host, spec, tuple(others))

    @property
    def denoisers(self) -> tuple[nn.Module, ...]:
        return (self.denoiser, *self.others)

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
        self._check_shared()
        if self.denoiser not in _installations:
            state = AttentionState()
            undos = self._install_host(state)
            state.check = partial(_check_intact, self.host, undos)
            before, after = eager_hook(state.before_forward), eager_hook(state.after_forward)
            hooks: list[Any] = []
            for denoiser in self.denoisers:
                hooks.append(denoiser.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(denoiser.register_forward_hook(after, always_call=True))
                if hasattr(denoiser, "cache_context"):
                    state.contexts = state.contexts or CacheContexts()
                    state.contexts.listen(denoiser)
            state.installation = _Installation(state, undos, tuple(hooks))
            for denoiser in self.denoisers:
                _installations[denoiser] = weakref.ref(state.installation)
        self.check()
        installation = _installed(self.denoiser)
        installation.adapters += 1
        return installation.state

    def _install_host(self, state: AttentionState) -> tuple[Any, ...]:
        """What undoes it, for each denoiser. All or none; raises AttachError."""
        undos: list[Any] = []
        try:
            for denoiser in self.denoisers:
                drop_copies(denoiser)
                undos.append(self.host.install(denoiser, self.spec, state))
        except BaseException:
            for undo in undos:
                self.host.remove(undo)
            raise
        return tuple(undos)

    def _check_shared(self) -> None:
        """Raises AttachError for a state that belongs to one of two denoisers, or to both."""
        found = [_installations.get(denoiser) for denoiser in self.denoisers]
        installations = {id(one and one()): one and one() for one in found}
        shared = next(iter(installations.values()))
        if len(installations) > 1 or (shared and len(shared.undos) != len(found)):
            raise AttachError(
                "adapters on a pipeline with two transformers",
                reason="one is attached to both transformers, another to one alone",
                hint="Attach both to the pipeline, or detach one.",
            )

    def uninstall(self) -> None:
        """The inverse of `install`; the last adapter to leave restores the denoiser."""
        installation = _installed(self.denoiser)
        installation.adapters -= 1
        if installation.adapters > 0:
            return
        for hook in installation.hooks:
            hook.remove()
        for denoiser, undo in zip(self.denoisers, installation.undos, strict=True):
            if installation.state.contexts is not None:
                installation.state.contexts.remove(denoiser)
            self.host.remove(undo)
            del _installations[denoiser]

    def intact(self) -> bool:
        """Are the attention processors still those of `install`?"""
        return _intact(self.host, _installed(self.denoiser).undos)

    def check(self) -> None:
        """Raises AttachError if the attention processors were replaced since `install`."""
        _check_intact(self.host, _installed(self.denoiser).undos)


EXPORTED = "_imageprompt_exported"
"""The attribute that marks a denoiser without weights of its own, which a runtime computes."""


def is_exported(denoiser: nn.Module) -> bool:
    return hasattr(denoiser, EXPORTED)


def state_of(denoiser: nn.Module) -> AttentionState | None:
    """What the sites of a denoiser read; None where no adapter is attached."""
    return _installed(denoiser).state if denoiser in _installations else None


def _has_hooks(denoiser: nn.Module) -> bool:
    """Does any module have a hook of diffusers? Its own search takes milliseconds."""
    modules = [denoiser]
    while modules:
        module = modules.pop()
        if getattr(vars(module).get("_diffusers_hook"), "hooks", None):
            return True
        modules.extend(child for child in module._modules.values() if child is not None)
    return False


def _intact(host: AttachableHost, undos: Sequence[Any]) -> bool:
    return all(host.intact(undo) for undo in undos)


def _check_intact(host: AttachableHost, undos: Sequence[Any]) -> None:
    if not _intact(host, undos):
        raise AttachError(
            "the attention processors of this denoiser",
            reason="replaced after an adapter was attached, which would then have no effect",
            hint="detach() and attach() again after changing attention processors. A pipeline "
            "that replaces them while it runs cannot be used with an adapter.",
        )
