"""Opens the training samples that a configuration asks for, live or from a feature cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imageprompt.training.cache.cached_dataset import CachedDataset, PreparedSet, set_path
from imageprompt.training.cache.encode_missing import OnProgress
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.prepare import prepare
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.online_dataset import OnlineDataset
from imageprompt.training.data.scan import Quarantine
from imageprompt.training.data.sources import DataOptions, open_data


def open_dataset(
    data: str | Mapping[str, Any],
    cache: str | None,
    encoders: FeatureExtractors,
    options: PictureOptions,
    *,
    online: bool = False,
    log: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> OnlineDataset | CachedDataset:
    """The samples of `data`; with a `cache`, what it lacks is encoded first.

    Several processes that open the same cache share that work. Raises OptionError, NotFoundError,
    PictureError, CacheError.
    """
    source = DataOptions.of(data)
    records = open_data(source)
    if cache is None:
        quarantine = Quarantine(len(records), source.max_broken, records.troubles())
        return OnlineDataset(records, encoders, options, quarantine)
    folder = Path(cache).expanduser()
    work = (records, encoders) if online and encoders.reads_pictures else None
    known = PreparedSet.find(set_path(folder, records, encoders, options, online))
    if known is not None:
        samples = CachedDataset(folder, known, work)
        if samples.complete():
            return samples
    done = prepare(
        records,
        encoders,
        options,
        folder,
        max_broken=source.max_broken,
        online=online,
        log=log,
        on_progress=on_progress,
    )
    assert done.set is not None  # it was no dry run
    return CachedDataset(folder, done.set, work)
