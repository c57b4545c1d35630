"""Opens the training set that a config describes, encoded online or read from a feature cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.training.cache.cached_dataset import CachedDataset, CacheIndex, index_path
from imageprompt.training.cache.feature_extractors import FeatureExtractors
from imageprompt.training.data.sources import DataOptions, open_data
from imageprompt.training.data.views import PictureOptions

if TYPE_CHECKING:
    from imageprompt.training.cache.encode import OnProgress
    from imageprompt.training.data.online_dataset import OnlineDataset


def open_dataset(
    data: str | Mapping[str, Any],
    cache: str | None,
    extractors: FeatureExtractors,
    options: PictureOptions,
    *,
    online: bool = False,
    log: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> OnlineDataset | CachedDataset:
    """The samples of `data`; what a `cache` lacks is encoded first.

    Several processes that open the same cache share that work. Raises OptionError, NotFoundError,
    PictureError, CacheError.
    """
    source = DataOptions.of(data)
    records = open_data(source)
    if cache is None:
        from imageprompt.training.data.online_dataset import OnlineDataset
        from imageprompt.training.data.scan import Quarantine

        quarantine = Quarantine(len(records), source.max_broken, records.problems())
        return OnlineDataset(records, extractors, options, quarantine)
    folder = Path(cache).expanduser()
    encoded_online = (records, extractors) if online and extractors.reads_pictures else None
    index = CacheIndex.load(index_path(folder, records, extractors, options, online))
    if index is not None:
        dataset = CachedDataset(folder, index, encoded_online)
        if dataset.complete():
            return dataset
    from imageprompt.training.cache.build import build_cache

    report = build_cache(
        records,
        extractors,
        options,
        folder,
        max_broken=source.max_broken,
        online=online,
        log=log,
        on_progress=on_progress,
    )
    assert report.index is not None  # not a dry run
    return CachedDataset(folder, report.index, encoded_online)
