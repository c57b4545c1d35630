"""What the running code says about a call of the denoiser: is it guided, which branch is it?

Tensors alone cannot tell two pictures without guidance from the two sides of one. The call stack
can: the nearest diffusers pipeline on it is the one that runs, whichever other pipelines share its
denoiser, and its properties are those of this very run. Where each side has a call of its own,
`denoiser.cache_context("uncond")` says which it is, in a loop of the user's own too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

from torch import nn

from imageprompt.attention.cfg_layout import Branch

_GUIDED = "do_classifier_free_guidance"
_GUIDER_BATCH = "guider_state_batch"  # in the loops of diffusers' modular pipelines
_GUIDER_KEY = "__guidance_identifier__"
_DEEPEST = 200
_NO_TEXT = object()


@dataclass(frozen=True)
class Witness:
    """What is known of a call, None where nothing is."""

    source: str = ""
    """What says so: the class of the pipeline."""
    guided: bool | None = None
    """Does the pipeline use classifier-free guidance in this run?"""
    perturbed: bool = False
    """Does it also run perturbed attention (PAG), a second positive branch?"""
    branch: Branch | None = None
    """The branch of this call, where a guider gives each a call of its own."""
    side: Branch | None = None
    """The branch whose text this call has, where the pipeline keeps the two texts apart."""
    two_texts: bool = False
    """Does the pipeline keep a negative text apart from the positive one?"""
    timestep: object = None
    """The timestep of this step: a view into the schedule, or None."""
    timesteps: object = None
    """The timesteps that the pipeline runs through, a view into the schedule, or None."""
    texts: int | None = None
    """The number of text prompts."""
    images: int | None = None
    """Pictures for each text prompt."""


NOTHING = Witness()


def find_witness(denoiser: object, text: object = None) -> Witness:
    """Read the call stack: the nearest pipeline that holds this denoiser, or a guider's batch.

    `text` is the text of the call.
    """
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    kind: Any = getattr(pipelines, "DiffusionPipeline", ())
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None:
            break
        names = frame.f_code.co_varnames
        if _GUIDER_BATCH in names or _GUIDER_BATCH in frame.f_code.co_cellvars:
            branch = _guider_branch(frame.f_locals.get(_GUIDER_BATCH))
            if branch is not None:
                return Witness("the modular pipeline's guider", True, branch=branch)
        elif names and names[0] == "self":
            pipe = frame.f_locals.get("self")
            if isinstance(pipe, kind) and _holds(pipe, denoiser):
                return _ask(pipe, frame, text)
        frame = frame.f_back
    return NOTHING


def _guider_branch(batch: object) -> Branch | None:
    name = getattr(batch, _GUIDER_KEY, None)
    if not isinstance(name, str):
        return None
    return "negative" if "uncond" in name else "positive"


def _holds(pipe: Any, denoiser: object) -> bool:
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2"))
    return any(part is denoiser or getattr(part, "_orig_mod", None) is denoiser for part in parts)


def _ask(pipe: Any, frame: FrameType, text: object) -> Witness:
    """The pipeline's properties in this run; local variables of its frame come first."""
    local = frame.f_locals
    guided = local.get(_GUIDED, _property(pipe, _GUIDED))
    pag = local.get("do_perturbed_attention_guidance")
    if pag is None:
        pag = _property(pipe, "do_perturbed_attention_guidance")
    images = local.get("num_images_per_prompt", local.get("num_videos_per_prompt"))
    return Witness(
        type(pipe).__name__,
        guided if isinstance(guided, bool) else None,
        perturbed=pag is True,
        texts=_count(local.get("batch_size")),
        images=_count(images),
        # SD3's skip-layer guidance calls its transformer once more, with the positive rows alone
        branch="positive" if text is local.get("original_prompt_embeds", _NO_TEXT) else None,
        side=_side(local, text),
        two_texts=local.get("negative_prompt_embeds") is not None,
        timestep=_timestep(pipe, local),
        timesteps=local.get("timesteps"),
    )


def _timestep(pipe: Any, local: Mapping[str, object]) -> object:
    """That of this step, which some pipelines (FLUX's ControlNets) keep in a variable alone."""
    told = _property(pipe, "_current_timestep")
    return local.get("t") if told is None else told


def _side(local: Mapping[str, object], text: object) -> Branch | None:
    if text is None or local.get("negative_prompt_embeds") is local.get("prompt_embeds"):
        return None
    if text is local.get("negative_prompt_embeds"):
        return "negative"
    return "positive" if text is local.get("prompt_embeds") else None


def _property(pipe: Any, name: str) -> object:
    try:
        return getattr(pipe, name, None)
    except Exception:  # a property of a pipeline that has not set what it reads
        return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


# ── cache contexts ──────────────────────────────────────────────────────────────────────────────


class CacheContexts:
    """What `denoiser.cache_context(...)` says of the call that runs; it is set by pipelines.

    diffusers tells its contexts to the registries of hooks at a denoiser and below. While this
    listens, the denoiser's own registry, hooks and all, lists one more.
    """

    _is_stateful, _hook_order = True, ("contexts",)  # as diffusers reads a registry and a hook

    def __init__(self) -> None:
        from diffusers.hooks.hooks import StateManager

        self.hooks, self._manager = {"contexts": self}, StateManager(object)

    def listen(self, denoiser: nn.Module) -> None:
        """Hear the contexts of this denoiser; one of several that run in turn."""
        from diffusers.hooks.hooks import HookRegistry

        before = HookRegistry.check_if_exists_or_initialize(denoiser)
        registry = _registry_class()(denoiser)
        registry.__dict__, registry.listener = before.__dict__, self
        denoiser._diffusers_hook = registry

    @property
    def name(self) -> str | None:
        """That of the context; None outside of one."""
        return getattr(self._manager._context, "name", None)

    @property
    def branch(self) -> Branch | None:
        """The branch that the context names; None outside of one, or if it names both."""
        name = self.name
        if not isinstance(name, str) or "cond" not in name or "cond_uncond" in name:
            return None
        return "negative" if "uncond" in name else "positive"

    @property
    def step(self) -> tuple[int, int] | None:
        """The step, from 0, and the number of steps, where the context states both."""
        context = self._manager._context
        step = getattr(context, "step_index", None)
        steps = getattr(context, "num_inference_steps", None)
        if isinstance(step, int) and isinstance(steps, int) and 0 <= step < steps:
            return step, steps
        return None

    def remove(self, denoiser: nn.Module) -> None:
        """Leave the denoiser with its registry, and the hooks that it has now."""
        from diffusers.hooks.hooks import HookRegistry

        listening: Any = vars(denoiser).get("_diffusers_hook")
        if getattr(listening, "listener", None) is self:
            plain = HookRegistry(denoiser)
            plain.__dict__ = listening.__dict__
            denoiser._diffusers_hook = plain


@cache
def _registry_class() -> Any:
    from diffusers.hooks.hooks import HookRegistry

    class Registry(HookRegistry):  # type: ignore[misc]
        """A registry that lists a listener as well. A copy is a plain one."""

        __slots__ = ("listener",)

        def _get_child_registries(self) -> list[Any]:
            return [*super()._get_child_registries(), self.listener]

        def __reduce__(self) -> Any:
            return HookRegistry, (self._module_ref,), self.__dict__

    return Registry
