"""What one denoiser call shares with its attention sites: active prompts, step and guidance layout.

A denoiser with adapters attached owns one AttentionState (two that run in turn, Wan 2.2's, share
it). Its forward pre-hook works out which rows
of the batch are positive or negative and which step of the loop the call is; each site then asks
for its image terms.

Prompts in use belong to a context (a thread or an asyncio task), not to the denoiser: a call hears
those whose `use()` block it is in, and no others.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.attention.active_prompt import ActivePrompt
from imageprompt.attention.cfg_layout import (
    LAYOUTS,
    CFGLayout,
    check_prompts,
    count_images_per_prompt,
)
from imageprompt.attention.compiled import Reader, StrengthReader, is_compiled, is_exporting
from imageprompt.attention.decoupled import ImageTerm
from imageprompt.attention.step_tracker import StepPosition, StepTracker, is_view
from imageprompt.attention.witness import CacheContexts, Witness, find_witness
from imageprompt.core.errors import AttachError, GuidanceError
from imageprompt.core.spec import Arguments, Call, CallReader, KeywordArguments

_in_use: ContextVar[tuple[ActivePrompt, ...]] = ContextVar("imageprompt_in_use", default=())
"""The prompts in use in this context, on whatever denoiser, in order of use."""


class AttentionState:
    """What the sites of one denoiser read while it runs."""

    def __init__(self) -> None:
        self.open: list[ActivePrompt] = []
        """The prompts in use in any context."""
        self.current: list[ActivePrompt] = []
        """Those of the call that runs."""
        self.readers: list[Reader] = []
        """Where image terms are added, in order: what of them a graph reads."""
        self.strength_readers: list[StrengthReader] = []
        """The LoRA of adapters in live mode."""
        self.levels: tuple[int, ...] = ()
        """The level of the denoiser that each reader is at; level 0 has the size of the picture."""
        self.read: CallReader = _no_host
        """How the host reads a call."""
        self.extend: Callable[[Arguments, KeywordArguments, Call], Any] = _unchanged
        """How the host appends image tokens to the text of a call: its new arguments, or None."""
        self.positions = self.references = 0
        """Positions of the picture at level 0, and `Call.references`, of the call that runs."""
        self.starts: tuple[int, ...] = ()
        """`Call.starts` of it."""
        self.contexts: CacheContexts | None = None
        """What cache contexts say of a call, on denoisers that have them."""
        self.installation: Any = None
        """What undoes the attachment: it lives as long as the hooks that hold this state."""
        self.parts: list[nn.Module] = []
        """The modules between the denoiser and its sites: each may be compiled alone.

        Not the denoiser itself, which would then never be freed.
        """
        self._published: tuple[Any, ...] = ()
        self.epoch = 0
        """Changes when a new loop begins or the text was written to: what was cached is stale."""
        self._tracker = StepTracker()
        self._text = TextWatch()
        self._contributions: weakref.WeakKeyDictionary[nn.Module, dict[str | None, list[Any]]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()  # held while what threads share here is changed
        self._running = threading.RLock()  # one call at a time among those with a prompt in use
        self._holder: int | None = None
        self.check: Callable[[], None] = _no_check
        """Raises AttachError if the attention processors of the sites were replaced."""

    def __reduce__(self) -> Any:
        """A copy, or what a pickle restores, is the state of a denoiser with nothing attached."""
        return AttentionState, ()

    # ── prompts in use ──────────────────────────────────────────────────────────────────────────

    @property
    def active(self) -> list[ActivePrompt]:
        """The prompts in use in this context."""
        found = [prompt for prompt in _in_use.get() if prompt.state is self]
        if not found and self.open and torch._C._current_graph_task_id() != -1:
            return self._in_backward()
        return [prompt for prompt in found if prompt in self.open] if found else found

    def _in_backward(self) -> list[ActivePrompt]:
        """Those of a block that gradient checkpointing runs again, in a thread of autograd.

        Raises GuidanceError where prompts of several threads are in use: which of them is it?
        """
        if len({prompt.thread for prompt in self.open}) > 1:
            raise GuidanceError(
                "gradient checkpointing on a denoiser with image prompts of several threads in use",
                reason="a block that runs again for backward() can belong to either",
                hint="Run them one after the other, or without gradient checkpointing.",
            )
        return self.open

    def enter(self, prompt: ActivePrompt) -> None:
        """Take a prompt into use in this context."""
        with self._lock:
            self.open = [*self.open, prompt]
            self.epoch += 1
        _in_use.set((*_in_use.get(), prompt))

    def leave(self, *prompts: ActivePrompt) -> None:
        """End the use of prompts, in every context."""
        with self._lock:
            self.open = [prompt for prompt in self.open if prompt not in prompts]
            self.epoch += 1
            if not self.open:
                self.current = []
                self._publish(None, compiled=False)
        _in_use.set(tuple(prompt for prompt in _in_use.get() if prompt not in prompts))
        self._release()

    # ── a call ──────────────────────────────────────────────────────────────────────────────────

    def before_forward(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Forward pre-hook: read batch and timestep of the call and prepare the prompts for it.

        Returns the arguments of a call whose text gets longer. No graph traces it.
        """
        active, compiled = self.active, is_compiled([denoiser, *self.parts])
        if active and is_exporting():
            raise AttachError(
                "export of a denoiser with an image prompt in use",
                reason="its K', V' and scale would be constants of the graph: one picture for ever",
                hint="Use `imageprompt export`, whose graph reads them as inputs.",
            )
        if active or compiled:  # graphs of every thread read the same slots
            self._acquire()
        try:
            with self._lock:  # calls without a prompt, too, move the clock
                call = self.read(args, kwargs)
                self._prepare(denoiser, active, call)
                self._publish(call, compiled)
                return self.extend(args, kwargs, call) if active else None
        except BaseException:
            self._release()
            raise

    def after_forward(self, *_: object) -> None:
        """Forward hook, also called after an error; no graph traces it."""
        self._release()

    def _prepare(self, denoiser: nn.Module, active: list[ActivePrompt], call: Call) -> None:
        self.current = active
        self._tell_readers(call)
        witness = None
        if active and not is_view(call.timestep):  # FLUX passes a number of its own
            witness = find_witness(denoiser, call.text)
        told = (None, None) if witness is None else (witness.timestep, witness.timesteps)
        if not self._tracker.update(call.timestep if told[0] is None else told[0], told[1]):
            self.epoch += 1
        if active:
            self.check()
            self.epoch += self._text.changed(call.text)
            for prompt in active:
                prompt.called = True
                if prompt.is_timed:
                    prompt.go_to(self._position(prompt))
                layout = prompt.layout
                if layout is None:
                    witness = witness or find_witness(denoiser, call.text)
                    layout = self._infer_layout(call, prompt, witness)
                step = self._tracker.step
                known = None if step is None else (self._tracker.layouts.loop, step)
                prompt.set_time(call.timestep, known, layout)
                images = count_images_per_prompt(call.sample.shape[0], layout, prompt.prompts)
                prompt.bind(layout, images, call.sample, call.size)
        self._void_step_caches(denoiser)

    def _position(self, prompt: ActivePrompt) -> StepPosition:
        """The step of this call: by the user's timesteps, the cache context or the timestep."""
        stated = None if self.contexts is None else self.contexts.step
        if stated is not None and prompt.timesteps is None:
            return StepPosition(*stated)
        return self._tracker.position(prompt.timesteps)

    def _tell_readers(self, call: Call) -> None:
        """Where the picture's positions are."""
        self.positions = call.size[0] * call.size[1]
        if (call.references, call.starts) != (self.references, self.starts):
            self.references, self.starts = call.references, call.starts
            for reader in self.readers:
                reader.references, reader.starts = call.references, call.starts

    def _infer_layout(self, call: Call, prompt: ActivePrompt, witness: Witness) -> CFGLayout:
        if call.separate:
            named = None if self.contexts is None else self.contexts.branch
            side = named or witness.branch or witness.side
            if witness.two_texts and side is None:
                raise GuidanceError(
                    f"a call of {witness.source}'s denoiser",
                    reason="its text is neither the positive nor the negative one of the pipeline, "
                    "so it can be either side of guidance",
                    hint="Pass guidance='positive' or 'negative' to use().",
                )
            alone = witness.source and not witness.two_texts and side != "negative"
            if alone and prompt.needs_negative and witness.branch is None:
                raise GuidanceError(
                    f"{prompt.needs_negative} with {witness.source}",
                    reason="it runs the positive side alone here, which does not read it",
                    hint="Pass it a negative prompt (an empty one will do) and, if it has a "
                    "true_cfg_scale, one above 1; or leave it out.",
                )
            layout = LAYOUTS[side or "positive"]
            check_prompts(prompt.prompts, call.sample.shape[0], layout, witness)
            return layout
        layouts = self._tracker.layouts
        layout = layouts.layout(
            call.sample, call.text, prompt.prompts, witness=witness, step=self._tracker.step
        )
        if call.positive_first:
            layout = layout[::-1]
        if layouts.unsure:
            prompt.unsure.add(layouts.loop)
        else:
            prompt.unsure.discard(layouts.loop)
        return layout

    def _publish(self, call: Call | None, compiled: bool) -> None:
        """Hand every site and LoRA what a graph reads there; None where there should be no graph.

        It stays until the next call, because gradient checkpointing runs parts of this one again.
        """
        prompts = self.current if self.open else []
        if call is None or not compiled or not prompts:
            key: tuple[Any, ...] = (bool(prompts),)
            if key != self._published:
                self._published = key
                for reader in self.readers:
                    reader.slots = None if prompts else ()
                for lora in self.strength_readers:
                    lora.strength = None
            return
        key = tuple(prompt.contribution for prompt in prompts)
        if key != self._published or torch.is_grad_enabled():
            self._published = key
            by_prompt = [prompt.slots(self.levels, call.size) for prompt in prompts]
            for reader, *slots in zip(self.readers, *by_prompt, strict=True):
                reader.slots = tuple(slot for slot in slots if slot is not None)
        for lora in self.strength_readers:
            lora.strength = self.lora_strength(lora.owner, always=True)

    def _acquire(self) -> None:
        """Wait until no other thread runs this denoiser with a prompt in use."""
        if self._holder == threading.get_ident():
            return  # a call of this thread was interrupted
        self._running.acquire()
        self._holder = threading.get_ident()

    def _release(self) -> None:
        if self._holder == threading.get_ident():
            self._holder = None
            self._running.release()

    def acts_at(self, place: int) -> bool:
        """Is a prompt in use whose adapter adds image terms at this place?"""
        return bool(self.open) and any(prompt.acts_at(place) for prompt in self.active)

    def terms(self, place: int, q: Tensor) -> list[ImageTerm]:
        """The image terms at one place, in order of use."""
        terms = (prompt.term(place, q) for prompt in self.active)
        return [term for term in terms if term is not None]

    def lora_strength(self, owner: object, *, always: bool = False) -> Tensor | None:
        """The LoRA strength of an adapter: the largest of its active prompts; None if LoRA is off.

        With `always` there is one wherever the adapter is in use: 0 if LoRA is off.

        Two uses of one adapter share its LoRA, so their strengths are not added.
        """
        strengths = [
            prompt.lora_strength
            for prompt in self.active
            if prompt.owner is owner and (always or prompt.adds_lora)
        ]
        if len(strengths) > 1:
            return torch.stack(strengths).amax()
        return strengths[0] if strengths else None

    # ── diffusers' caches over steps ────────────────────────────────────────────────────────────

    def _void_step_caches(self, denoiser: nn.Module) -> None:
        """Reset the step caches if the sites now add something else than when they were filled.

        Most keep what they hold for each cache context; what the two sides of guidance add differs.
        """
        contributions = [prompt.contribution for prompt in self.current]
        added = self._contributions.setdefault(denoiser, {})
        context = None if self.contexts is None else self.contexts.name
        if contributions != added.get(context, []):
            reset_step_caches(denoiser)
        elif contributions != added.get(_LAST_CALL, []):
            reset_step_caches(denoiser, by_context=False)
        if len(added) > _MOST_CONTEXTS:
            added.clear()
        added[context] = added[_LAST_CALL] = contributions


_LAST_CALL = "the last call, in whatever context"
_MOST_CONTEXTS = 16


def reset_step_caches(denoiser: nn.Module, *, by_context: bool = True) -> None:
    """Reset every stateful hook of diffusers on a denoiser: the next call computes everything.

    Without `by_context` only those that keep one state for all cache contexts.

    Such hooks return at a later step what a layer returned at an earlier one, image terms included.
    Of those in diffusers 0.42, PyramidAttentionBroadcast and TaylorSeer run on a UNet.
    FirstBlockCache, MagCache and SeaCache find nothing to hook there; FasterCache with guidance
    cuts the batch within the call, which the sites refuse. Hooks without state (offloading,
    casting) are left alone.
    """
    for module, hook in _stateful_hooks(denoiser):
        # a reset also forgets the cache context that the pipeline has set, which must survive
        managers = [value for value in vars(hook).values() if hasattr(value, "set_context")]
        if managers and not by_context:
            continue
        contexts = [manager._context for manager in managers]
        hook.reset_state(module)
        for manager, context in zip(managers, contexts, strict=True):
            manager.set_context(context)


def _stateful_hooks(denoiser: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    for module in denoiser.modules():
        registry: Any = module.__dict__.get("_diffusers_hook")
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield module, hook


class TextWatch:
    """Notices writes to the text between two calls, also those through `.data`.

    Versions of a tensor count the other writes. On the CPU its memory is compared, which is no
    operation of torch; elsewhere it costs one comparison, and waits for the device.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, Any]] = {}

    def changed(self, text: object) -> bool:
        """Was this text written to since the last call with it?"""
        if not isinstance(text, Tensor) or torch.is_grad_enabled() or text.is_inference():
            return False  # nothing is cached there
        if text.device.type == "cpu" and text.untyped_storage().nbytes() > _LARGEST_TEXT:
            return True  # a view into something large: not worth comparing
        reference, version, before = self._seen.get(id(text), (None, -1, None))
        known = reference is not None and reference() is text and version == text._version
        if known and _same_content(text, before):
            return False
        self._seen[id(text)] = (weakref.ref(text), text._version, _content(text))
        while len(self._seen) > _MOST_TEXTS:
            del self._seen[next(iter(self._seen))]
        return known


_MOST_TEXTS = 4
_LARGEST_TEXT = 2**26  # bytes


def _content(text: Tensor) -> Any:
    if text.device.type != "cpu":
        return text.clone()
    storage = text.untyped_storage()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes())


def _same_content(text: Tensor, before: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(text, before)
    return bool(_content(text) == before)


def _no_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    raise NotImplementedError("a state without a host reads no call")


def _unchanged(args: Arguments, kwargs: KeywordArguments, call: Call) -> None:
    """A host that appends nothing to the text leaves the arguments as they are."""


def _no_check() -> None:
    """A state without a denoiser has nothing to check."""
