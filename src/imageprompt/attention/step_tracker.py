"""The step of the denoise loop that a call belongs to, read from its timestep alone.

Schedulers keep their timesteps in one tensor, and a loop passes views into it in order. The memory
behind such a view tells its position and the number of steps. The device is read at most once per
loop.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from imageprompt.attention.cfg_layout import LayoutCache
from imageprompt.core.errors import GuidanceError, OptionError


@dataclass(frozen=True)
class StepPosition:
    """Step `step` (from 0) of `steps`."""

    step: int
    steps: int


class Loop:
    """One denoise loop over a schedule: where it began, and where it is."""

    def __init__(self, timestep: Tensor) -> None:
        self.layouts = LayoutCache()
        self._schedule: Any = StorageWeakRef(timestep.untyped_storage())  # type: ignore[no-untyped-call]
        self.end: int | None = None
        """The entry after its last one; None: it runs to the end of the schedule."""
        self._begin(int(timestep.storage_offset()), backwards=False)

    def _begin(self, offset: int, *, backwards: bool) -> None:
        self.offset, self._first, self.backwards = offset, offset, backwards
        self._step_indices: list[int] | None = None
        self.layouts.reset()

    @property
    def over(self) -> bool:
        """Is its schedule gone? Another one may have taken over the memory."""
        return bool(self._schedule.expired())

    def update(self, timestep: Tensor) -> bool:
        """Take on the timestep of a call; returns True if it continues the loop."""
        offset = int(timestep.storage_offset())
        continues = offset >= self.offset
        if not continues:
            backwards = offset == self.offset - 1 and _count_entries(timestep) > 2
            self._begin(offset, backwards=backwards)
        self.offset = offset
        return continues

    def position(self, timestep: Tensor) -> StepPosition:
        """The step of the last call; this reads the schedule from the device once."""
        if self._step_indices is None:
            self._step_indices = step_indices(_read_from(timestep, self._first, self.end))
        return StepPosition(
            self._step_indices[self.offset - self._first], max(self._step_indices) + 1
        )


class StepTracker:
    """Reads the timestep of every call.

    The first timestep of a loop is step 0, so the shortened schedules of img2img are counted from
    their own start. Steps are the distinct timesteps from there to the end of the schedule: two
    calls at one timestep (Heun, PNDM) are the same step. Where a loop stops before its schedule
    ends (`denoising_end`; IPNDM, which keeps one timestep more than it runs), the steps that it
    leaves out are counted too, unless the pipeline's own list of timesteps is told.

    Loops over different schedules may take turns: each keeps its own step. A timestep that is not
    a view into a schedule tells no step; a rising number begins a new loop.
    """

    def __init__(self) -> None:
        self._loops: dict[tuple[int, Any], Loop] = {}
        self._loop: Loop | None = None
        self._number: float | None = None
        self._timestep: object = None
        self._unscheduled = LayoutCache()

    @property
    def layouts(self) -> LayoutCache:
        """What is known of the layouts of the loop that the last call belongs to."""
        return self._unscheduled if self._loop is None else self._loop.layouts

    @property
    def step(self) -> object:
        """What the step of the last call is known by; None if it cannot be read."""
        return self._number if self._loop is None else self._loop.offset

    def update(self, timestep: object, timesteps: object = None) -> bool:
        """Read the timestep of a call; returns False if the call begins a new loop.

        `timesteps` are those that the loop runs through, if the pipeline tells; a view.
        """
        self._timestep = timestep
        if isinstance(timestep, Tensor) and is_view(timestep):
            continues = self._update_from_view(timestep)
            assert self._loop is not None
            self._loop.end = _end(timesteps, timestep)
            return continues
        self._loop = None
        before, self._number = self._number, _as_number(timestep)
        continues = before is None or self._number is None or self._number <= before
        if not continues:
            self._unscheduled.reset()
        return continues

    def _update_from_view(self, timestep: Tensor) -> bool:
        self._loops = {memory: loop for memory, loop in self._loops.items() if not loop.over}
        memory = _memory(timestep)
        if memory in self._loops:
            self._loop = self._loops[memory]
            return self._loop.update(timestep)
        self._loop = self._loops[memory] = Loop(timestep)
        return False

    def position(self, timesteps: Sequence[float] | None = None) -> StepPosition:
        """The step of the last call; `timesteps` are those of the loop, if the user stated them.

        Raises GuidanceError where the step cannot be determined.
        """
        if timesteps is not None:
            return self._look_up(timesteps)
        if self._loop is None or self._loop.backwards:
            why = "goes back by one" if self._loop is not None else "is not a view into a schedule"
            raise GuidanceError(
                "a schedule of the reference",
                reason=f"the step of this call is unknown: its timestep {why}",
                hint="Pass the loop's timesteps to use(): timesteps=scheduler.timesteps.",
            )
        assert isinstance(self._timestep, Tensor)
        return self._loop.position(self._timestep)

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


_NUMBERS: dict[torch.dtype, Any] = {
    torch.int64: ctypes.c_int64,
    torch.int32: ctypes.c_int32,
    torch.float32: ctypes.c_float,
    torch.float64: ctypes.c_double,
}


def _as_number(timestep: object) -> float | None:
    """A timestep as a number; None where reading it would wait for a device.

    A tensor on the CPU is read from its memory, which is no operation of torch.
    """
    if isinstance(timestep, Tensor):
        kind = _NUMBERS.get(timestep.dtype)
        if timestep.numel() != 1 or timestep.device.type != "cpu" or kind is None:
            return None
        return float(kind.from_address(timestep.data_ptr()).value)
    return float(timestep) if isinstance(timestep, int | float) else None


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
    # the one entry of a schedule is a number; AuraFlow repeats one that is in no schedule
    of_one = timestep.ndim == 0 and base is not None and base.ndim > 0
    return single and (_count_entries(timestep) > 1 or of_one)


def _memory(timestep: Tensor) -> tuple[int, Any]:
    return timestep.untyped_storage().data_ptr(), timestep.device


def _count_entries(timestep: Tensor) -> int:
    return int(timestep.untyped_storage().nbytes()) // timestep.element_size()


def _end(timesteps: object, timestep: Tensor) -> int | None:
    """The entry after the last of `timesteps`, if `timestep` is one of them: SCM's loop leaves
    out the last of its schedule."""
    if not isinstance(timesteps, Tensor) or timesteps.ndim != 1:
        return None
    if _memory(timesteps) != _memory(timestep) or timesteps.stride() != (1,):
        return None
    first = int(timesteps.storage_offset())
    end = first + timesteps.numel()
    return end if first <= timestep.storage_offset() < end else None


def _read_from(timestep: Tensor, first: int, end: int | None) -> list[float]:
    """The schedule from entry `first` to `end`, or to its own; this reads the device."""
    count = (_count_entries(timestep) if end is None else end) - first
    values: list[float] = timestep.detach().as_strided((count,), (1,), first).tolist()
    return values
