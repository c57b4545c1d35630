"""The step of the denoise loop that a call belongs to, read from its timestep alone.

Schedulers keep their timesteps in one tensor, and a loop passes views into it in order. The memory
behind such a view tells its position and the number of steps. Nothing is read from the pipeline,
and the device is read at most once per loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imageprompt.core.errors import GuidanceError, OptionError


@dataclass(frozen=True)
class StepPosition:
    """Step `step` (from 0) of `steps`."""

    step: int
    steps: int


class StepTracker:
    """Reads the timestep of every call.

    The first timestep of a loop is step 0, so the shortened schedules of img2img are counted from
    their own start. Steps are the distinct timesteps from there to the end of the schedule: two
    calls at one timestep (Heun, PNDM) are the same step. Where a loop stops before its schedule
    ends (`denoising_end`; IPNDM, which keeps one timestep more than it runs), the steps that it
    leaves out are counted too.
    """

    def __init__(self) -> None:
        self._view: Tensor | None = None  # the last view; it keeps the schedule's memory alive
        self._first = 0
        self._step_indices: list[int] | None = None
        self._number: float | None = None
        self._timestep: object = None
        self._backwards = False

    @property
    def scheduled(self) -> bool:
        """Was the last timestep a view into a schedule?"""
        return self._view is not None

    def update(self, timestep: object) -> bool:
        """Read the timestep of a call; returns True if the call continues the current loop.

        A repeated timestep does not continue the loop, although it is the same step: what was
        cached for the loop may be stale.
        """
        self._timestep = timestep
        if isinstance(timestep, Tensor):
            if is_view(timestep):
                return self._update_from_view(timestep)
            if timestep.numel() != 1 or timestep.device.type != "cpu":
                self._view, self._number = None, None
                return False
        before = None if self._view is not None else self._number
        self._view, self._number = None, float(timestep)  # type: ignore[arg-type]
        return before is not None and self._number < before

    def _update_from_view(self, timestep: Tensor) -> bool:
        before, offset = self._view, int(timestep.storage_offset())
        same_schedule = before is not None and _memory(before) == _memory(timestep)
        last = int(before.storage_offset()) if before is not None and same_schedule else -1
        if offset < last or not same_schedule:
            self._backwards = offset == last - 1 and _count_entries(timestep) > 2
            self._first, self._step_indices = offset, None
        self._view, self._number = timestep, None
        return same_schedule and offset > last

    def position(self, timesteps: Sequence[float] | None = None) -> StepPosition:
        """The step of the last call; `timesteps` are those of the loop, if the user stated them.

        Raises GuidanceError where the step cannot be determined.
        """
        if timesteps is not None:
            return self._look_up(timesteps)
        if self._view is None or self._backwards:
            why = "goes back by one" if self._view is not None else "is not a view into a schedule"
            raise GuidanceError(
                "a schedule of the reference",
                reason=f"the step of this call is unknown: its timestep {why}",
                hint="Pass the loop's timesteps to use(): timesteps=scheduler.timesteps.",
            )
        if self._step_indices is None:
            self._step_indices = step_indices(_read_from(self._view, self._first))
        step = self._step_indices[int(self._view.storage_offset()) - self._first]
        return StepPosition(step, max(self._step_indices) + 1)

    def _look_up(self, timesteps: Sequence[float]) -> StepPosition:
        timestep: Any = self._timestep
        value = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        steps = dict(zip(timesteps, step_indices(timesteps), strict=True))
        if value not in steps:
            raise GuidanceError(
                f"timestep {value:g}",
                reason="not one of the timesteps= passed to use()",
                hint="Pass all timesteps of the loop, in order.",
            )
        return StepPosition(steps[value], max(steps.values()) + 1)


def parse_timesteps(timesteps: Any) -> tuple[float, ...] | None:
    """The timesteps of a loop that a user passed: numbers or a tensor. Raises OptionError."""
    if timesteps is None:
        return None
    values = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    if not isinstance(values, list | tuple) or not values:
        raise OptionError("timesteps", reason="must be a list of numbers or a scheduler's tensor")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise OptionError(f"timesteps: {value!r}", reason="a timestep is a number")
    return tuple(float(value) for value in values)


def step_indices(timesteps: Sequence[float]) -> list[int]:
    """The step of each timestep: distinct values are numbered in order of appearance."""
    indices: dict[float, int] = {}
    return [indices.setdefault(value, len(indices)) for value in timesteps]


def is_view(timestep: object) -> bool:
    """Is it one number, possibly repeated, inside a larger tensor?"""
    if not isinstance(timestep, Tensor):
        return False
    single = all(
        size == 1 or step == 0 for size, step in zip(timestep.shape, timestep.stride(), strict=True)
    )
    # inference tensors have no _base, so the size of their memory counts as well
    base = timestep._base
    return single and (_count_entries(timestep) > 1 or (base is not None and base.ndim > 0))


def _memory(timestep: Tensor) -> tuple[int, Any]:
    return timestep.untyped_storage().data_ptr(), timestep.device


def _count_entries(timestep: Tensor) -> int:
    return int(timestep.untyped_storage().nbytes()) // timestep.element_size()


def _read_from(timestep: Tensor, first: int) -> list[float]:
    """The schedule from entry `first` to its end; this reads the device."""
    count = _count_entries(timestep) - first
    values: list[float] = timestep.detach().as_strided((count,), (1,), first).tolist()
    return values
