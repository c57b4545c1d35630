"""What a run and its continuation must have in common, so that resuming is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.training.loop.checkpoints import Checkpoint
from imageprompt.training.loop.logging import log


@dataclass(frozen=True)
class RunIdentity:
    """The settings and the data of a run, as values that JSON can hold.

    The number of `steps` is compared only where the result depends on it. With a constant learning
    rate no step depends on how many follow, so a run that is extended ends exactly as if it had
    been that long from the start. A cosine or linear schedule stretches with `steps`: the steps
    already taken had other learning rates than those of the longer run.
    """

    config: Mapping[str, Any]
    data: str = ""
    """Fingerprint of the training data."""
    allow_changes: bool = field(default=False, compare=False)

    def metadata(self, processes: int) -> dict[str, Any]:
        """Values to store in a checkpoint."""
        return {"config": _as_json(self.config), "data": self.data, "processes": processes}

    def check(self, checkpoint: Checkpoint, processes: int, folder: Path) -> None:
        """Raises OptionError if the checkpoint belongs to another run, unless changes are allowed.

        Allowed changes are logged.
        """
        before, now = checkpoint.metadata, self.metadata(processes)
        changes = _config_changes(before["config"], now["config"], checkpoint.step)
        if before["data"] != now["data"]:
            changes.append("the data")
        if before["processes"] != processes:
            changes.append(f"{before['processes']} processes became {processes}")
        if not changes:
            return
        summary = ", ".join(changes)
        if self.allow_changes:
            log(f"continuing from step {checkpoint.step} with changes: {summary}")
            return
        raise OptionError(
            f"training folder {str(folder)!r}",
            reason=f"contains a run with other settings ({summary})",
            hint="Use the same settings or another output, or continue with --allow-changes.",
        )


def _config_changes(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """One entry for each setting that has changed since the first `step` steps."""
    changes = []
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name):
            continue
        change = f"{name}: {before.get(name)!r} became {now.get(name)!r}"
        if name == "steps" and name in now and "schedule" in now:
            if now["schedule"] != "constant":
                change += f", which the {now['schedule']} learning rate depends on"
            elif now["steps"] >= step:
                continue
            else:
                change += f", but {step} are done"
        changes.append(change)
    return changes


def _as_json(value: Any) -> Any:
    """The value as it comes back from JSON: tuples become lists, and every key text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value
