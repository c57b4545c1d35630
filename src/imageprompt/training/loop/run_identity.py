"""What a run and its continuation must have in common, and what is said if they have not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.training.loop.checkpoints import Checkpoint
from imageprompt.training.loop.logging import log


@dataclass(frozen=True)
class Identity:
    """The settings and the data of a run, as values that JSON can hold."""

    config: Mapping[str, Any]
    data: str = ""
    """Fingerprint of the training data."""
    allow_changes: bool = field(default=False, compare=False)

    def facts(self, processes: int) -> dict[str, Any]:
        """For a checkpoint."""
        return {"config": _plain(self.config), "data": self.data, "processes": processes}

    def check(self, found: Checkpoint, processes: int, folder: Path) -> None:
        """Raises OptionError if `found` is of another run, unless changes are allowed."""
        told, now = found.facts, self.facts(processes)
        changed = _changes(told["config"], now["config"])
        if told["data"] != now["data"]:
            changed.append("the data")
        if told["processes"] != processes:
            changed.append(f"{told['processes']} processes became {processes}")
        if not changed:
            return
        what = ", ".join(changed)
        if self.allow_changes:
            log(f"going on from step {found.step} with changes: {what}")
            return
        raise OptionError(
            f"training folder {str(folder)!r}",
            reason=f"it belongs to a run with other settings ({what})",
            hint="Use the same ones or another output; --allow-changes goes on all the same.",
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted({*before, *now})
    return [
        f"{name}: {before.get(name)!r} became {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _plain(value: Any) -> Any:
    """As it comes back from JSON: tuples are lists there, and every key is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
