"""The processes of a run: this one's rank, what all share, who may train in a folder, signals."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imageprompt.core.atomic_files import locked
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.loading import usable_device
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.loop.objective import NullConditions, Objective

T = TypeVar("T")
LOCK = ".lock"


class AdapterLoss(nn.Module):
    """The loss as a module whose only parameters are the adapter's, so that DDP sees no others.

    `frozen`: the attached adapter, the denoiser and its scheduler.
    """

    def __init__(
        self, objective: Objective, frozen: tuple[Any, Any, Any], nulls: NullConditions
    ) -> None:
        super().__init__()
        self.adapter = frozen[0].module
        self._objective, self._frozen, self._nulls = objective, frozen, nulls

    def forward(
        self, batch: Batch, streams: RandomStreams, until: ExitStack
    ) -> tuple[Tensor, Tensor]:
        """Losses and timesteps [b]; the image prompt stays active until `until` is closed."""
        loss = self._objective.loss(*self._frozen, batch, self._nulls, streams)
        return until.enter_context(loss)


class Processes:
    """A single process, or one of those that torchrun or `accelerate launch` started."""

    def __init__(self, device: str | None = None) -> None:
        """On `device`, by default the best one. Raises OptionError if it is not available."""
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        options = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        on_cpu = usable_device(device) == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[options])
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are averaged over the processes."""
        return module if self.count == 1 else self.accelerator.prepare_model(module)

    def sync_gradients(self, module: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """Whether the backward pass in the block exchanges gradients."""
        return nullcontext() if now else self.accelerator.no_sync(module)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        if self.count == 1:
            return flags
        summed = self.all_reduce_sum(torch.tensor(flags, dtype=torch.float64))
        return tuple(bool(one) for one in summed > 0)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.count == 1:
            return values
        dtype = values.dtype if self.device.type == "cpu" else torch.float32
        total: Tensor = self.accelerator.reduce(values.to(self.device, dtype), reduction="sum")
        return total.cpu()

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process and return its result in all of them.

        An error ends every process: the first one raises the original, the others its message
        (of the same type if it is an ImagePromptError, else OptionError).
        """
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]  # the result, and (error type, message)
        raised: BaseException | None = None
        if self.main:
            try:
                outcome[0] = work()
            except BaseException as error:  # whatever it is, the other processes wait for it
                raised, outcome[1] = error, _as_message(error)
        broadcast_object_list(outcome)
        if raised is not None:
            raise raised
        if outcome[1] is not None:
            kind, message = outcome[1]
            raise kind(message)
        result: T = outcome[0]
        return result

    def assert_same(self, what: str, value: object) -> None:
        """Raises OptionError unless `value` is equal in all processes."""
        first = self.on_main(lambda: value)
        (differs,) = self.any_rank(first != value)
        if differs:
            raise OptionError(
                what,
                reason=f"differs between the {self.count} processes",
                hint="Start all of them with the same config and the same data.",
            )

    @contextmanager
    def distributed_errors(self, hint: Callable[[], str]) -> Iterator[None]:
        """Inside the block, the loss of another process is an OptionError that ends in `hint`.

        It has the other's message, if that one ended by an error and not by a kill: each process
        leaves its own error in the store that all of them were started with.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            if not (isinstance(error, RuntimeError) and _is_lost_peer(error)):
                _leave_message(f"process {self.rank} failed: {_describe(error)}")
                raise
            reason = _left_message() or f"another process is gone ({_first_sentence(error)})"
            raise OptionError(
                f"training with {self.count} processes", reason=reason, hint=hint()
            ) from error


_MESSAGE = "imageprompt/error"


def _leave_message(text: str) -> None:
    """For the other processes; the first message stays. Never raises."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.compare_set(_MESSAGE, "", text)
    except (RuntimeError, ValueError):  # the store may be gone with the process that had it
        return


def _left_message() -> str | None:
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.get(_MESSAGE).decode() if store.check([_MESSAGE]) else None
    except (RuntimeError, ValueError):
        return None


def _describe(error: BaseException) -> str:
    if isinstance(error, ImagePromptError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _as_message(error: BaseException) -> tuple[type[ImagePromptError], str]:
    """An error as (type, message) that another process can raise."""
    if isinstance(error, ImagePromptError):
        return type(error), str(error)
    return OptionError, f"the first process failed: {_describe(error)}"


def _first_sentence(error: RuntimeError) -> str:
    """The message without the position in gloo's source that it starts with."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].partition(". ")[0]


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether the error is torch.distributed's about another process."""
    kinds = tuple(
        getattr(torch.distributed, name)
        for name in ("DistBackendError", "DistNetworkError", "DistStoreError")
        if hasattr(torch.distributed, name)
    )
    words = ("gloo", "nccl", "connection", "peer")
    return isinstance(error, kinds) or any(word in str(error).lower() for word in words)


# ── one run a folder, and how it is stopped ───────────────────────────────────────────────────────


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder inside the block, one run a folder; a killed run leaves it unlocked.

    Raises OptionError if another run holds the lock.
    """
    with locked(
        folder / LOCK,
        f"output folder {str(folder)!r}",
        timeout=0,
        reason="another run is training there",
        hint="Wait for it, stop it, or choose another output.",
    ):
        yield


class StopRequest:
    """Inside the block, SIGTERM and Ctrl-C set `signal`, and the run ends after its step.

    A second Ctrl-C ends it at once. Outside the main thread Python receives no signals, and
    nothing changes.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
