"""A feature cache built by the workers of a Ray cluster, which share the partitions among them.

Config, data and cache have to be at the same place on all machines, and the storage of the cache
needs working locks: a partition is encoded by the worker that holds its lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imageprompt.core.ray_cluster import Place, connected
from imageprompt.training.cache.build import CacheReport, build_cache_for
from imageprompt.training.cache.encode import OnProgress
from imageprompt.training.config.config import TrainingConfig


class CacheBuilder:
    """A worker on the cluster."""

    def __init__(self, config: str, changes: Sequence[str], place: Place) -> None:
        place.enter()
        self._config = TrainingConfig.load(config, changes)

    def run(self, _: int) -> dict[str, Any]:
        """Encode what nobody has encoded or is encoding; a report as plain values."""
        return build_cache_for(self._config).as_dict()


def build_on_ray(
    config: Path,
    changes: Sequence[str],
    address: str,
    *,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> CacheReport:
    """`build_cache_for` on as many workers as the cluster has room for; a report of all of them.

    Raises OptionError, and what a worker raises.
    """
    started = time.monotonic()
    TrainingConfig.load(config, changes)  # errors in it show at once
    arguments, reports = (str(config.resolve()), [*changes], Place.here()), []
    with connected(address) as cluster:
        builds = deque(range(cluster.room))
        for _, report in cluster.results(CacheBuilder, arguments, builds, cluster.room):
            reports.append(report)
            on_progress("workers", len(reports), cluster.room)
    return _together(reports, time.monotonic() - started)


def _together(reports: Sequence[dict[str, Any]], seconds: float) -> CacheReport:
    """What was encoded adds up; all else is what the worker says that saw the least there."""
    first = min(reports, key=lambda one: sum(one["existing"].values()))
    encoded = {
        kind: sum(one["encoded"].get(kind, 0) for one in reports) for kind in first["existing"]
    }
    merged = {**first, "path": Path(first["path"]), "encoded": encoded, "seconds": seconds}
    return CacheReport(**merged)
