"""The processes of a run, through accelerate: who this one is, what they share and agree on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.loading import usable_device
from imageprompt.training.data.dataset import Batch
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.loop.objective import NullConditions, Objective

T = TypeVar("T")


class AdapterLoss(nn.Module):
    """The loss as a module that owns the adapter's weights alone: all that DDP may know of.

    `frozen`: the attached adapter, the denoiser and its scheduler.
    """

    def __init__(
        self, objective: Objective, frozen: tuple[Any, Any, Any], nulls: NullConditions
    ) -> None:
        super().__init__()
        self.adapter = frozen[0].module
        self._objective, self._frozen, self._nulls = objective, frozen, nulls

    def forward(
        self, batch: Batch, chance: RandomStreams, until: ExitStack
    ) -> tuple[Tensor, Tensor]:
        """Losses and timesteps [b]; the prompt stays in use until `until` is closed."""
        loss = self._objective.loss(*self._frozen, batch, self._nulls, chance)
        return until.enter_context(loss)


class Processes:
    """One process alone, or one of those that torchrun or `accelerate launch` has started."""

    def __init__(self, device: str | None = None) -> None:
        """On `device`, or the best one here. Raises OptionError for one that is not here."""
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
        kept = values.dtype if self.device.type == "cpu" else torch.float32
        total: Tensor = self.accelerator.reduce(values.to(self.device, kept), reduction="sum")
        return total.cpu()

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, told to all; an error there is everyone's."""
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        said: list[Any] = [None, None]
        if self.main:
            try:
                said[0] = work()
            except ImagePromptError as error:
                said[1] = (type(error), str(error))
        broadcast_object_list(said)
        if said[1] is not None:
            kind, message = said[1]
            raise kind(message)
        result: T = said[0]
        return result

    def assert_same(self, what: str, value: object) -> None:
        """Raises OptionError unless `value` is equal in all processes."""
        theirs = self.on_main(lambda: value)
        (differs,) = self.any_rank(theirs != value)
        if differs:
            raise OptionError(
                what,
                reason=f"it differs between the {self.count} processes",
                hint="Start all of them with the same config and the same data.",
            )

    @contextmanager
    def distributed_errors(self, hint: Callable[[], str]) -> Iterator[None]:
        """While the block runs, a process that died is an error of one line; `hint` ends it."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _lost(error):
                raise
            raise OptionError(
                f"training with {self.count} processes",
                reason=f"another process is gone ({_first_sentence(error)})",
                hint=hint(),
            ) from error


def _first_sentence(error: RuntimeError) -> str:
    """Without the place in gloo's source that it begins with."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].partition(". ")[0]


def _lost(error: RuntimeError) -> bool:
    """Whether the error is one of torch.distributed's about its peers."""
    kinds = tuple(
        getattr(torch.distributed, name)
        for name in ("DistBackendError", "DistNetworkError", "DistStoreError")
        if hasattr(torch.distributed, name)
    )
    words = ("gloo", "nccl", "connection", "peer")
    return isinstance(error, kinds) or any(word in str(error).lower() for word in words)
