"""Opens a training set: from its cache, which is filled first where it lacks something, or live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from imageprompt.core.yaml_file import brief, expand_user
from imageprompt.training.cache.cached_dataset import CachedDataset, CacheIndex, index_path
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.sources import DataOptions, open_data
from imageprompt.training.data.views import PictureOptions

if TYPE_CHECKING:
    from imageprompt.training.cache.build import Log
    from imageprompt.training.cache.encode import OnProgress
    from imageprompt.training.data.online_dataset import OnlineDataset

Pairs = Literal["none", "columns", "self-made"]


def open_dataset(
    data: str | Mapping[str, Any],
    cache: str | None,
    extractors: FeatureExtractors,
    options: PictureOptions,
    *,
    online: bool = False,
    pairs: Pairs = "none",
    log: Log = lambda line: None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> OnlineDataset | CachedDataset:
    """The samples of `data`; what a `cache` lacks is encoded first.

    With `pairs`, each has a content and a style reference, which are encoded online. Several
    processes that open the same cache share that work. Raises OptionError, NotFoundError,
    PictureError, CacheError.
    """
    source = DataOptions.of(data)
    records = open_data(source)
    extractors.check_sizes(options.sizes)
    references = None
    if pairs != "none":
        from imageprompt.training.data.pairs import PairReferences

        references, online = PairReferences(pairs, extractors), True
    if cache is None:
        from imageprompt.training.data.online_dataset import OnlineDataset
        from imageprompt.training.data.scan import Quarantine

        quarantine = Quarantine(len(records), source.max_broken, records.problems())
        return OnlineDataset(records, extractors, options, quarantine, references)
    folder = expand_user(cache, f"cache {brief(cache)}")
    encoded_online = records if online and extractors.reads_pictures else None
    path = index_path(folder, records, extractors, options, online)
    index = CacheIndex.load(path, records, extractors, options, online)
    if index is not None:
        dataset = CachedDataset(folder, index, extractors, encoded_online, references)
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
    return CachedDataset(folder, report.index, extractors, encoded_online, references)
