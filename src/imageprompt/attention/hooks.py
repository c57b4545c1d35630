"""Forward hooks that act on one denoiser and nowhere else: copies of it are not attached."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


class Hook:
    """A forward hook or pre-hook. Its copies and pickles do nothing and go at their first call.

    So a copy of a denoiser (`copy.deepcopy`, pickle, `torch.save` of the module) is not attached.
    `check` is called before a copy is made, and may raise to refuse it.
    """

    def __init__(
        self, call: Callable[..., Any] | None = None, check: Callable[[], None] | None = None
    ) -> None:
        self.call, self._check = call, check

    def __call__(self, module: nn.Module, *args: Any) -> Any:
        if self.call is None:
            _drop(self, module)
            return None
        return self.call(module, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return self._copy()

    def __copy__(self) -> Hook:
        return self._copy()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        self._copy()
        return Hook, ()

    def _copy(self) -> Hook:
        if self._check is not None:
            self._check()
        return Hook()


def eager_hook(
    call: Callable[..., Any] | None = None, check: Callable[[], None] | None = None
) -> Hook:
    """A hook that no graph traces: torch runs it in Python before or after a compiled module.

    Loads torch._dynamo, as the models of diffusers do.
    """
    return _eager_type()(call, check)


@cache
def _eager_type() -> type[Hook]:
    class EagerHook(Hook):
        __call__ = torch.compiler.disable(  # type: ignore[no-untyped-call]
            Hook.__call__, reason="adapters read a call of their denoiser in Python"
        )

    return EagerHook


def drop_copies(denoiser: nn.Module) -> None:
    """Take copies of hooks out of every module, before hooks with the same numbers can come."""
    for module in denoiser.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for hook in list(hooks.values()):
                if isinstance(hook, Hook) and hook.call is None:
                    _drop(hook, module)


def _drop(hook: Hook, module: nn.Module) -> None:
    """Take a hook out of a module, with the marks that torch keeps beside it."""
    kinds: list[tuple[dict[int, Any], ...]] = [
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        ),
    ]
    for hooks, *marks in kinds:
        for number in [number for number, each in hooks.items() if each is hook]:
            for numbered in (hooks, *marks):
                numbered.pop(number, None)
