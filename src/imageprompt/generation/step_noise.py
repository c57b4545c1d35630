"""Noise that is added in the steps of sampling: drawn by the seeds, and as much as `eta` says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError


def draws_by_eta(pipe: Any) -> bool:
    """Can the steps of a pipeline draw a share of their noise anew?"""
    return _has_own_eta(pipe) or _is_euler(pipe.scheduler)


def eta_options(eta: float | None, pipe: Any) -> Mapping[str, float]:
    """The pipeline's arguments for this share of new noise; flow matching gets it in `step_noise`.

    Raises OptionError for a scheduler that has no such share.
    """
    if eta and not draws_by_eta(pipe):
        raise OptionError(
            f"eta {eta:g}",
            reason=f"the steps of a {type(pipe.scheduler).__name__} draw no such noise",
            hint="Use a DDIMScheduler or a FlowMatchEulerDiscreteScheduler, or leave it out.",
        )
    return {"eta": eta} if eta and _has_own_eta(pipe) else {}


@contextmanager
def step_noise(pipe: Any, generators: Sequence[Any], eta: float | None) -> Iterator[None]:
    """While the block runs, steps of the pipeline's scheduler draw their noise from `generators`.

    diffusers' pipelines of transformers give it none (`stochastic_sampling` of flow matching, SDE
    solvers): the noise would be anyone's, and another one in every call. Euler's steps of flow
    matching draw noise by `eta`, too.
    """
    scheduler = pipe.scheduler
    own, step = vars(scheduler).get("step"), scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return

    @functools.wraps(step)
    def seeded(*args: Any, **options: Any) -> Any:
        return step(*args, **{"generator": generators, **options})

    ancestral = bool(eta) and _is_euler(scheduler)
    scheduler.step = _ancestral(seeded, scheduler, generators, eta) if ancestral else seeded
    try:
        yield
    finally:
        if own is None:
            del scheduler.step
        else:
            scheduler.step = own


def _has_own_eta(pipe: Any) -> bool:
    calls = (pipe.scheduler.step, type(pipe).__call__)
    return all("eta" in inspect.signature(call).parameters for call in calls)


def _is_euler(scheduler: Any) -> bool:
    """Does it take Euler's steps from noise to picture, and add nothing to them?"""
    euler = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    return euler and not scheduler.config.stochastic_sampling and not scheduler.config.invert_sigmas


def _ancestral(
    step: Callable[..., Any], scheduler: Any, generators: Sequence[Any], eta: Any
) -> Callable[..., Any]:
    """Steps that end a share of the way below their noise level and go back up to it.

    As k-diffusion's ancestral sampler does (`eta`), for flow matching: x = (1 - s) x0 + s noise.
    """
    from diffusers.utils.torch_utils import randn_tensor

    @functools.wraps(step)
    def with_noise(output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        result = step(output, timestep, sample, **options)
        now, following = scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1]
        if following <= 0:
            return result
        down = following * (1 + eta * (following / now - 1))
        shrunk = (1 - following) / (1 - down)
        added = (following**2 - (down * shrunk) ** 2).clamp(min=0).sqrt()
        noise = randn_tensor(
            sample.shape, generator=list(generators), device=sample.device, dtype=torch.float32
        )
        below = sample.float() + (down - now) * output.float()
        mixed = (shrunk * below + added * noise).to(output.dtype)
        return (mixed,) if isinstance(result, tuple) else type(result)(prev_sample=mixed)

    return with_noise
