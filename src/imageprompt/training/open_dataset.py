"""Opens the training samples that a configuration asks for, live or from a feature cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imageprompt.training.cache.cached_dataset import CachedSamples, PreparedSet, set_path
from imageprompt.training.cache.encode_missing import Told
from imageprompt.training.cache.encoders import Encoders
from imageprompt.training.cache.prepare import prepare
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.online_dataset import LiveSamples
from imageprompt.training.data.scan import Quarantine
from imageprompt.training.data.sources import DataOptions, open_data


def open_samples(
    data: str | Mapping[str, Any],
    cache: str | None,
    encoders: Encoders,
    options: PictureOptions,
    *,
    online: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    told: Told = lambda what, done, total: None,
) -> LiveSamples | CachedSamples:
    """The samples of `data`; with a `cache`, what it lacks is encoded first.

    Several processes that open the same cache share that work. Raises OptionError, NotFoundError,
    PictureError, CacheError.
    """
    source = DataOptions.of(data)
    records = open_data(source)
    if cache is None:
        quarantine = Quarantine(len(records), source.max_broken, records.troubles())
        return LiveSamples(records, encoders, options, quarantine)
    folder = Path(cache).expanduser()
    work = (records, encoders) if online and encoders.reads_pictures else None
    known = PreparedSet.find(set_path(folder, records, encoders, options, online))
    if known is not None:
        samples = CachedSamples(folder, known, work)
        if samples.complete():
            return samples
    done = prepare(
        records,
        encoders,
        options,
        folder,
        max_broken=source.max_broken,
        online=online,
        announce=announce,
        told=told,
    )
    assert done.set is not None  # it was no dry run
    return CachedSamples(folder, done.set, work)
