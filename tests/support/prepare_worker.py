"""Builds a training cache, here or in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imageprompt.training.cache import encode
from imageprompt.training.cache.build import CacheReport, build_cache
from imageprompt.training.data import scan
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.sources import open_data
from imageprompt.training.data.views import PictureOptions
from imageprompt.variants import VARIANTS
from training_data import Parts

PICTURES = PictureOptions(resolution=16, crop="random", views=2)


def run(parts: Parts, data: Path, cache: Path, **options: Any) -> CacheReport:
    """Build a cache: by default for a plus adapter, with two random crops of each picture."""
    variant, pictures = options.pop("variant", "plus"), options.pop("pictures", PICTURES)
    extractors = FeatureExtractors(parts, VARIANTS[variant])
    return build_cache(open_data(str(data)), extractors, pictures, cache, **options)


def prepare(
    data: Path, cache: Path, result: Path, at_first: Callable[[], object] = lambda: None
) -> None:
    """Build a cache; the numbers of encoded entries go to `result`.

    Small shards, so that there are many moments for a kill. `at_first` is called when the first
    pictures are encoded, with a lock in hand.
    """
    encode.SHARD_ENTRIES, scan.UNIT = 3, 8
    began = list[str]()

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "pictures" and not began:
            began.append(phase)
            at_first()

    done = run(Parts(), data, cache, on_progress=progress)
    result.with_suffix(".part").write_text(json.dumps(done.encoded))
    result.with_suffix(".part").rename(result)
