"""Shards made by the workers of a Ray cluster; each shard is given to one of them.

The folder of the batch, and what its rows name, have to be at the same place on all machines.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.core.ray_cluster import Place, connected
from imageprompt.serve.batch.shards import Batch, claimed, make_shard

BUSY_SECONDS = 1.0
"""Pause after a shard that another run is making."""


class ShardMaker:
    """A worker on the cluster; the base and its adapters stay loaded from shard to shard."""

    def __init__(self, folder: str, rows: str, place: Place) -> None:
        self._folder, self._rows = Path(folder), rows
        place.enter()

    @cached_property
    def _batch(self) -> Batch:
        try:
            found = Batch.open(self._folder)
        except OptionError as error:
            raise _not_shared(self._folder) from error
        if found.hash != self._rows:
            raise _not_shared(self._folder)
        return found

    def run(self, shard: int) -> bool:
        """Make a shard unless it is made already; False if another run is making it."""
        if self._batch.is_done(shard):
            return True
        with claimed(self._batch, shard) as broken_off:
            if broken_off is not None:
                make_shard(self._batch, shard, broken_off=broken_off)
        if self._batch.is_done(shard):
            return True
        time.sleep(BUSY_SECONDS)
        return False


def share_on_ray(
    begun: Batch,
    shards: Sequence[int],
    address: str,
    workers: int | None,
    tell: Callable[[], object],
) -> None:
    """Make the shards with at most `workers` workers of a cluster; `tell` is called after each.

    A worker that is lost is replaced, and its shard made again; shards in which a process died
    come last. Raises OptionError, and what a worker raises.
    """
    waiting = deque(sorted(shards, key=begun.broken_off))
    arguments = (str(begun.folder.resolve()), begun.hash, Place.here())
    with connected(address) as cluster:
        tell()
        for shard, made in cluster.results(ShardMaker, arguments, waiting, workers or cluster.room):
            if made:
                tell()
            else:
                waiting.append(shard)
    if not all(begun.is_done(shard) for shard in shards):
        raise _not_shared(begun.folder)


def _not_shared(folder: Path) -> OptionError:
    return OptionError(
        f"output {str(folder)!r}",
        reason="is not the same folder on all machines of the cluster",
        hint="Name a folder on storage that they share.",
    )
