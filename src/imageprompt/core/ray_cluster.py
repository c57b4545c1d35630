"""Workers on an existing Ray cluster: each is a process with one GPU, or one core where none are.

Ray is loaded here only, when it is asked for. What goes to a worker and back are paths, numbers,
texts and typed errors; Ray itself packs them with pickle, between machines that trust each other.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageprompt.core.errors import ImagePromptError, OptionError

LOSSES = 10
"""Workers that may be lost without a task being done in between."""
_NAMES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "IMAGEPROMPT_LIBRARY")
"""Variables that models and styles are found by; the others are the cluster's own."""


@dataclass(frozen=True)
class Place:
    """Where a program runs, so that a worker finds the same files by the same names."""

    folder: str
    environment: dict[str, str]

    @classmethod
    def here(cls) -> Place:
        found = {name: os.environ[name] for name in _NAMES if name in os.environ}
        return cls(str(Path.cwd()), found)

    def enter(self) -> None:
        """Go there, if this machine has the folder; for good."""
        os.environ.update(self.environment)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)


class RayCluster:
    """A connection; `ray` is the package."""

    def __init__(self, ray: Any, address: str) -> None:
        self._ray, self._address = ray, address
        resources = ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0))
        self.room = self._gpus or max(1, int(resources.get("CPU", 0)))
        """How many workers run at once: as many as there are GPUs, else cores."""

    def results(
        self, kind: type, arguments: Sequence[Any], tasks: deque[Any], workers: int
    ) -> Iterator[tuple[Any, Any]]:
        """Each task with what `kind(*arguments).run(task)` returned, as soon as it has.

        Every worker makes one object of `kind`, whose package its machine has to have. Tasks that
        are added meanwhile are run, too. A worker that is lost is replaced, and its task run again.
        Raises what a worker raises, and OptionError for errors that are not typed, and when one
        worker after another is lost.
        """
        running: dict[Any, tuple[Any, Any]] = {}
        lost = 0

        def give(worker: Any) -> None:
            if tasks:
                task = tasks.popleft()
                running[worker.run.remote(task)] = (worker, task)
            else:
                self._ray.kill(worker)

        try:
            for _ in range(min(workers, len(tasks))):
                give(self._start(kind, arguments))
            while running:
                (call,), _ = self._ray.wait([*running])
                worker, task = running[call]
                try:
                    result = self._result(call)
                except self._ray.exceptions.RayActorError as error:
                    del running[call]
                    lost += 1
                    if lost > LOSSES:
                        raise self._error(f"{lost} workers were lost, one after another") from error
                    tasks.append(task)
                    give(self._start(kind, arguments))
                    continue
                lost = 0
                yield task, result
                del running[call]
                give(worker)
        finally:
            for worker, _ in running.values():
                self._ray.kill(worker)

    def _start(self, kind: type, arguments: Sequence[Any]) -> Any:
        needs = {"num_gpus": 1} if self._gpus else {"num_cpus": 1}
        return self._ray.remote(**needs)(kind).remote(*arguments)

    def _result(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ImagePromptError):
                raise cause from None
            raise self._error(f"a worker ended with an error: {cause or error}") from error

    def _error(self, reason: str) -> OptionError:
        return OptionError(
            f"--ray {self._address}",
            reason=reason,
            hint="See the logs of Ray, or run it without --ray to see the error.",
        )


@contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """A connection to the cluster at HOST:PORT, or "auto" for that of this machine.

    One that the program has already is used. Raises OptionError.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError(
            f"--ray {address}",
            reason="Ray is not installed",
            hint="Install it here and on the cluster: pip install imageprompt[ray].",
        ) from error
    if ray.is_initialized():
        yield RayCluster(ray, address)
        return
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"--ray {address}",
            reason=f"no Ray cluster answers there: {error}",
            hint="Start one with `ray start --head`, and give its HOST:PORT.",
        ) from error
    try:
        yield RayCluster(ray, address)
    finally:
        ray.shutdown()
