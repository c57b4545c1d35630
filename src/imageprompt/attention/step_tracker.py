"""Where in the denoise loop a call of the denoiser is; told from its timestep alone.

Schedulers keep their timesteps in one tensor, and a loop hands out views of it in order: the memory
behind such a view tells its place and how many there are. Nothing of the pipeline is read, and the
device is read once a loop at most.
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

    A loop's first timestep is step 0, so that the shortened schedules of img2img come out right;
    the steps are the distinct timesteps from there to the end of the schedule. Solvers that call
    the denoiser twice at one timestep (Heun, PNDM) are in the same step, as are pipelines that do.
    Where a loop stops before its schedule ends (`denoising_end`; IPNDM, which keeps one timestep
    more than it runs), the steps it leaves out count.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None  # the last view; it keeps the schedule's memory alive
        self._first = 0
        self._places: list[int] | None = None
        self._number: float | None = None
        self._timestep: object = None
        self._backwards = False

    @property
    def scheduled(self) -> bool:
        """Did the last timestep come out of a schedule, as a view of its tensor?"""
        return self._seen is not None

    def update(self, timestep: object) -> bool:
        """Read a call's timestep; does it go on with the loop of the call before?

        A repeated timestep does not go on, though it is the same step: what was kept for the loop
        may be out of date.
        """
        self._timestep = timestep
        if isinstance(timestep, Tensor):
            if is_view(timestep):
                return self._update_from_view(timestep)
            if timestep.numel() != 1 or timestep.device.type != "cpu":
                self._seen, self._number = None, None
                return False
        before = None if self._seen is not None else self._number
        self._seen, self._number = None, float(timestep)  # type: ignore[arg-type]
        return before is not None and self._number < before

    def _update_from_view(self, timestep: Tensor) -> bool:
        before, offset = self._seen, int(timestep.storage_offset())
        same = before is not None and _memory(before) == _memory(timestep)
        last = int(before.storage_offset()) if before is not None and same else -1
        if offset < last or not same:
            self._backwards = offset == last - 1 and _entries(timestep) > 2
            self._first, self._places = offset, None
        self._seen, self._number = timestep, None
        return same and offset > last

    def position(self, explicit_timesteps: Sequence[float] | None = None) -> StepPosition:
        """The step of the last call. `explicit_timesteps` are a loop's timesteps, given by the user.

        Raises GuidanceError where it cannot be told.
        """
        if explicit_timesteps is not None:
            return self._looked_up(explicit_timesteps)
        if self._seen is None or self._backwards:
            raise GuidanceError(
                "a schedule of the reference",
                reason="which step this call is cannot be told: its timestep is "
                + ("one before the last" if self._seen is not None else "no view of a scheduler's"),
                hint="Pass the loop's timesteps to use(): timesteps=scheduler.timesteps.",
            )
        if self._places is None:
            self._places = places(_tail(self._seen, self._first))
        step = self._places[int(self._seen.storage_offset()) - self._first]
        return StepPosition(step, max(self._places) + 1)

    def _looked_up(self, explicit_timesteps: Sequence[float]) -> StepPosition:
        timestep: Any = self._timestep
        value = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        known = dict(zip(explicit_timesteps, places(explicit_timesteps), strict=True))
        if value not in known:
            raise GuidanceError(
                f"timestep {value:g}",
                reason="it is none of the timesteps= that were explicit_timesteps",
                hint="State those that the loop runs through, in order.",
            )
        return StepPosition(known[value], max(known.values()) + 1)


def explicit_timesteps(timesteps: Any) -> tuple[float, ...] | None:
    """The timesteps of a loop as a user states them: numbers or a tensor. Raises OptionError."""
    if timesteps is None:
        return None
    found = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    if not isinstance(found, list | tuple) or not found:
        raise OptionError("timesteps", reason="a list of numbers, or a scheduler's tensor")
    for value in found:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise OptionError(f"timesteps: {value!r}", reason="a timestep is a number")
    return tuple(float(value) for value in found)


def places(timesteps: Sequence[float]) -> list[int]:
    """The step of each timestep: distinct ones in order of appearance."""
    seen: dict[float, int] = {}
    return [seen.setdefault(value, len(seen)) for value in timesteps]


def is_view(timestep: object) -> bool:
    """Is it one number, or one number repeated, out of a larger tensor?"""
    if not isinstance(timestep, Tensor):
        return False
    single = all(
        size == 1 or step == 0 for size, step in zip(timestep.shape, timestep.stride(), strict=True)
    )
    # inference tensors know no base, so their memory is looked at as well
    base = timestep._base
    return single and (_entries(timestep) > 1 or (base is not None and base.ndim > 0))


def _memory(timestep: Tensor) -> tuple[int, Any]:
    return timestep.untyped_storage().data_ptr(), timestep.device


def _entries(timestep: Tensor) -> int:
    return int(timestep.untyped_storage().nbytes()) // timestep.element_size()


def _tail(timestep: Tensor, first: int) -> list[float]:
    """The schedule from entry `first` to its end; this reads the device."""
    count = _entries(timestep) - first
    tail: list[float] = timestep.detach().as_strided((count,), (1,), first).tolist()
    return tail
