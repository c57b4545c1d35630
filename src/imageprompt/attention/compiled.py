"""What graphs and copies of a denoiser see of us: plain tensors, and hooks that copies drop.

A graph guards every Python value that it reads, so a site inside one reads nothing but `slots`,
which the forward pre-hook fills by ordinary Python: a new prompt, scale, step, mask or guidance is
another tensor in the same graph, and the sites of one kind of block share it.

Shapes: B batch, H heads, Q query positions, N image tokens, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imageprompt.attention.decoupled import ImageTerm
from imageprompt.core.errors import GuidanceError
from imageprompt.core.spec import Entry

Slot = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]
"""What one image prompt adds at a site: K', V' [B, H, N, D], weights [B, 1, Q, 1] in float32, and
`ImageTerm.norms`. In exported graphs that of R prompts: [B, R, H, N, D] and [B, R, 1, Q, 1]."""

_DEEPEST = 200
Slots = tuple[Slot, ...] | None
"""Those of a site: a slot for each prompt in use; None in calls that no graph should run in."""


class Reader(Protocol):
    """A place where image terms are added, as compiled graphs see it."""

    site: int
    """The index of its site among those of the host."""
    entry: Entry
    references: int
    """`Call.references` of the call that runs."""
    starts: tuple[int, ...]
    """`Call.starts` of it."""
    slots: Slots


class StrengthReader(Protocol):
    """The LoRA of an adapter, as compiled graphs see it."""

    owner: object
    strength: Tensor | None


def is_compiled(parts: Sequence[nn.Module]) -> bool:
    """Will a site of this call run inside a graph?

    Either one of `parts`, the denoiser and what lies between it and its sites, is compiled in place
    (`compile()`, `compile_repeated_blocks()`), or a function on the call stack is
    (`torch.compile(unet)`). Asked in a hook that torch.compiler.disable keeps out of graphs.
    """
    if any(part.__dict__.get("_compiled_call_impl") is not None for part in parts):
        return True
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    frame, own_wrapper = sys._getframe(1), True
    for _ in range(_DEEPEST if dynamo is not None else 0):
        if frame.f_code.co_filename == dynamo.__file__:  # type: ignore[union-attr]
            if not own_wrapper:
                return True
            own_wrapper = False
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


_traced = False


@contextmanager
def traced() -> Iterator[None]:
    """While a denoiser is exported: its sites read their slots, whatever traces them.

    Of the whole process: nothing else may run a denoiser with an adapter meanwhile.
    """
    global _traced
    _traced = True
    try:
        yield
    finally:
        _traced = False


def reads_slots() -> bool:
    """Does a site read its slots: does a graph run it, or record it?"""
    return torch.compiler.is_compiling() or _traced


def is_exporting() -> bool:
    """Does torch.export, or torch.jit.trace, record what runs now?"""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def level_size(height: int, width: int, level: int) -> tuple[int, int]:
    """The size of a UNet's level for latents of that size: half of the one before, rounded up."""
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def new_slot(
    key: Tensor, value: Tensor, weight: Tensor, norms: tuple[Tensor, Tensor] | None
) -> Slot:
    """A slot; prompts with another number of tokens share a graph, which is told here."""
    from torch._dynamo import maybe_mark_dynamic

    maybe_mark_dynamic(key, 2)
    maybe_mark_dynamic(value, 2)
    return key, value, weight, norms


def slot_terms(slots: Slots, q: Tensor) -> list[ImageTerm]:
    """The image terms of one site, for queries [B * frames, H, Q, D]. Traced into graphs.

    Raises GuidanceError where the slots do not fit the queries.
    """
    if slots is None:
        raise GuidanceError(
            "a compiled denoiser",
            reason="this way of compiling it was not noticed before the call",
            hint="Use torch.compile(unet), unet.compile() or unet.compile_repeated_blocks().",
        )
    if _traced:  # what is compared below may be symbols there
        return [ImageTerm(key, value, weight, norms=norms) for key, value, weight, norms in slots]
    terms = []
    for key, value, weight, norms in slots:
        frames, rest = divmod(q.shape[0], key.shape[0])
        if rest or weight.shape[2] != q.shape[2]:
            raise GuidanceError(
                f"{q.shape[0]} rows of {q.shape[2]} positions at a compiled site",
                reason=f"the call began with {key.shape[0]} rows, of {weight.shape[2]} positions "
                "there (something cuts the batch or changes sizes inside the denoiser)",
                hint="Use this base without torch.compile.",
            )
        if frames > 1:  # video: frames are flattened into the batch
            key, value, weight = (x.repeat_interleave(frames, 0) for x in (key, value, weight))
        terms.append(ImageTerm(key.to(q.dtype), value.to(q.dtype), weight, norms=norms))
    return terms


# ── hooks that act on one denoiser and nowhere else ─────────────────────────────────────────────


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
